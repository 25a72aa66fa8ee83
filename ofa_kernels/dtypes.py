"""The types that values are computed in."""

import torch
from torch import Tensor


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """The type in which every operator computes, and in which sums over x are returned.

    Args:
        x: [...], any tensor; only its type is read.

    Returns:
        `torch.float64` for a float64 x, `torch.float32` for an x of any other type.
    """
    return torch.float64 if x.dtype == torch.float64 else torch.float32
