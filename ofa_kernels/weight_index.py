"""Which weight a row has: what an index may be, and who looks whether it is in range."""

import os
from types import ModuleType

import torch
from torch import Tensor

from ofa_kernels import native
from ofa_kernels.boundary import value_of
from ofa_kernels.composed import plain_call
from ofa_kernels.dispatch import kernels_for


def check_index(name: str, x: Tensor, weight: Tensor, index: Tensor) -> None:
    """Raise unless weight is [A, N], and the index has an int64 for each row of x [..., N]."""
    if weight.dim() != 2 or x.dim() == 0 or weight.shape[-1] != x.shape[-1] or 0 in weight.shape:
        raise ValueError(
            f"{name}: with a weight_index, weight must be [A, N] for an x of [..., N] with A, N >= 1, got "
            f"{tuple(weight.shape)} for {tuple(x.shape)}"
        )
    if not isinstance(index, Tensor):
        raise TypeError(f"{name}: weight_index must be a tensor, got {type(index).__name__}")
    if index.dtype != torch.int64:
        raise TypeError(f"{name}: weight_index must be int64, got {index.dtype}; use .long()")
    if index.shape != x.shape[:-1] or index.layout is not torch.strided:
        raise ValueError(
            f"{name}: weight_index must be one index a row, dense and {tuple(x.shape[:-1])}, got "
            f"{tuple(index.shape)}"
        )
    if index.device != x.device:
        raise ValueError(f"{name}: x is on {x.device} and weight_index on {index.device}; move one of them")


def indexed_kernels(name: str, weight: Tensor, index: Tensor, *tensors: Tensor) -> ModuleType | None:
    """What serves a call with an index, which is looked at here where the kernels don't do it.

    Raises:
        IndexError: an index is not from 0 to A - 1. A GPU is waited for only where `OFA_DEBUG=1` is set.
    """
    kernels = kernels_for(*tensors, weight, index=index)
    if not (kernels is native and plain_call()):
        check_range(name, weight, index)
    return kernels


def check_range(name: str, weight: Tensor, index: Tensor) -> None:
    """Raise IndexError where the numbers of an index can be read and one is out of range."""
    values = value_of(index)
    if values is None or not values.numel() or (values.is_cuda and os.environ.get("OFA_DEBUG") != "1"):
        return
    least, largest = (int(bound) for bound in values.aminmax())
    if least < 0 or largest >= weight.shape[0]:
        raise IndexError(
            f"{name}: weight_index must be from 0 to {weight.shape[0] - 1} for a weight of "
            f"{tuple(weight.shape)}, got {least if least < 0 else largest}"
        )
