"""The types that values are computed in."""

import torch
from torch import Tensor


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """The type that the operators compute in and add up in for an x of any shape.

    Args:
        x: its type alone is read.

    Returns:
        `torch.float64` for a float64 x, `torch.float32` for every other.
    """
    return torch.float64 if x.dtype == torch.float64 else torch.float32
