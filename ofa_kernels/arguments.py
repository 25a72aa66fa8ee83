"""What callers may pass to the operators: checks whose errors say what was got and what to do."""

import math
import numbers
import operator
from typing import Any

import torch
from torch import Tensor

from ofa_kernels.boundary import KERNEL_DTYPES
from ofa_kernels.reference import Seed
from ofa_kernels.weight_index import check_index

_TYPES = "float64, float32, bfloat16 or float16"
_UINT64 = (1 << 64) - 1


def check_tensor(name: str, argument: str, t: Tensor) -> None:
    """Raise TypeError unless t is a dense tensor of a type that there are kernels for."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{name}: {argument} must be a tensor, got {type(t).__name__}")
    if t.dtype not in KERNEL_DTYPES:
        raise TypeError(f"{name}: {argument} must be floating point ({_TYPES}), got {t.dtype}")
    if t.layout is not torch.strided:
        raise TypeError(f"{name}: {argument} must be dense, got {t.layout}; use .to_dense()")


def check_norm(name: str, x: Tensor, weight: Tensor, index: Tensor | None = None) -> None:
    """Raise unless x is [..., N] and weight [N], of types that there are kernels for, on one device.

    With an index the weight is [A, N].
    """
    try:
        fit = x.dtype in KERNEL_DTYPES and weight.dtype in KERNEL_DTYPES and x.device == weight.device
        sizes = x.shape
    except (AttributeError, RuntimeError):  # what is no tensor, or one without sizes
        fit, sizes = False, ()
    if not fit:
        check_tensor(name, "x", x)
        check_tensor(name, "weight", weight)
        if x.device != weight.device:
            raise ValueError(f"{name}: x is on {x.device} and weight on {weight.device}; move one of them")
    if index is not None:
        check_index(name, x, weight, index)
    elif not sizes or sizes[-1] == 0 or weight.numel() != sizes[-1] or weight.dim() != 1:
        hint = "; a weight for each row needs a weight_index" if weight.dim() > 1 else ""
        raise ValueError(
            f"{name}: weight must be [N] for an x of [..., N] with N >= 1, got {tuple(weight.shape)} "
            f"for {tuple(x.shape)}{hint}"
        )


def norm_arguments(
    name: str, x: Tensor, weight: Tensor | None, eps: float, offset: float, index: Tensor | None = None
) -> tuple[Tensor, float, float, Tensor | None]:
    """The weight, ones for None, eps and offset, and the index as [rows], all checked."""
    if weight is None:
        if index is not None:
            raise ValueError(f"{name}: a weight_index needs a weight [A, N], got None")
        check_tensor(name, "x", x)
        if x.dim() == 0:
            raise ValueError(f"{name}: x must be [..., N], got a scalar")
        weight = x.new_ones(x.shape[-1:])
    check_norm(name, x, weight, index)
    if type(eps) is not float or type(offset) is not float:
        eps, offset = real_numbers(name, eps=eps, offset=offset)
    if index is not None and not (index.dim() == 1 and index.is_contiguous()):
        index = index.reshape(-1).contiguous()
    return weight, eps, offset, index


def real_numbers(name: str, **values: Any) -> list[float]:
    """The values as floats that a kernel can be given."""
    for argument, value in values.items():
        if not isinstance(value, (numbers.Real, torch.SymFloat, torch.SymInt)):
            got = "a tensor; use .item()" if isinstance(value, Tensor) else repr(value)
            raise TypeError(f"{name}: {argument} must be a number, got {got}")
    return [float(value) if isinstance(value, numbers.Real) else value for value in values.values()]


def integer(name: str, argument: str, value: Any) -> int:
    """The value as an int; a bool, a float or a tensor is refused."""
    if type(value) is int:
        return value
    try:
        if isinstance(value, (bool, Tensor)):
            raise TypeError
        if isinstance(value, torch.SymInt):
            return value  # pyright: ignore[reportReturnType] - the stubs make it no int, whose place it takes
        return operator.index(value)
    except TypeError:
        raise TypeError(
            f"{name}: {argument} must be an int, got {value!r} of type {type(value).__name__}"
        ) from None


def checked_seed(seed: Seed, device: torch.device, rows: tuple[int, ...] | None = None) -> Seed:
    """The 64 bits of a seed: an int from 0 to 2^64 - 1, or an int64 tensor of one element on the device.

    Where there are `rows`, the tensor may have an element for each: then it comes back as [rows].
    """
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64:
            raise TypeError(f"a probe seed that is a tensor must be int64, got {seed.dtype}; use seed.long()")
        for_rows = rows is not None and tuple(seed.shape) == tuple(rows)
        if seed.numel() != 1 and not for_rows:
            each = "" if rows is None else f" or one a row, {tuple(rows)}"
            raise ValueError(
                f"a probe seed that is a tensor must be one number{each}, got {tuple(seed.shape)}"
            )
        if seed.device != device:
            raise ValueError(
                f"the probe seed is on {seed.device} and the tensors on {device}; move one of them"
            )
        return seed if seed.numel() == 1 else seed.reshape(-1).contiguous()
    try:
        number = seed if type(seed) is int else integer("", "seed", seed)
    except TypeError:
        raise TypeError(
            f"a probe seed is an int or an int64 tensor of one element, got {seed!r} of type "
            f"{type(seed).__name__}"
        ) from None
    if not 0 <= number <= _UINT64:
        raise ValueError(f"a probe seed is a 64-bit unsigned integer, got {seed}; use seed % 2**64")
    return number


def checked_ids(name: str, rows: tuple[int, ...], example_ids: Tensor | None, device: torch.device) -> Tensor:
    """The ids of the examples as [rows] int64 on the device; by default 0, 1, 2 and so on."""
    if example_ids is None:
        return torch.arange(math.prod(rows), device=device)
    if not isinstance(example_ids, Tensor):
        raise TypeError(f"{name}: example_ids must be a tensor, got {type(example_ids).__name__}")
    if example_ids.is_floating_point() or example_ids.is_complex() or example_ids.dtype == torch.bool:
        raise TypeError(f"{name}: example_ids must be integers, got {example_ids.dtype}; use .long()")
    if tuple(example_ids.shape) != tuple(rows):
        raise ValueError(
            f"{name}: example_ids must be one id a row, {tuple(rows)}, got {tuple(example_ids.shape)}"
        )
    if example_ids.dtype == torch.int64 and example_ids.dim() == 1 and example_ids.device == device:
        return example_ids
    return example_ids.to(device, torch.int64).reshape(-1)
