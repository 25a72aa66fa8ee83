"""The calls of the CPU kernels of `csrc`: each hands torch's tensors to one function of the C interface.

`library.py` finds and loads the library; whether it is there and what it uses can be asked here too.
"""

from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor

from ofa_kernels.dtypes import accumulation_dtype
from ofa_kernels.native.library import (
    DTYPES,
    LIBRARY,
    description,
    instruction_set,
    load,
    missing,
    openmp_runtimes,
)
from ofa_kernels.reference import Seed

__all__ = [
    "DTYPES",
    "LIBRARY",
    "add_rms_norm_forward",
    "description",
    "instruction_set",
    "missing",
    "openmp_runtimes",
    "preconditioned_probes",
    "preconditioned_probes_backward",
    "probe_dot",
    "probe_scale",
    "rademacher",
    "rms_norm_backward",
    "rms_norm_backward_tangent",
    "rms_norm_forward",
    "rms_norm_jvp",
    "rms_norm_jvp_backward",
    "step_lengths",
    "step_lengths_backward",
]


def _call(name: str, *members) -> None:
    function, pack = load()[0][name]
    if function(pack(*members)):
        raise MemoryError(f"ofa_kernels: no memory for the scratch space of {name}")


def _rows(x: Tensor) -> Tensor:
    """[rows, N] with unit column stride; a view where strides allow it."""
    if x.dim() != 2:
        x = x.reshape(-1, x.shape[-1])
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


@overload
def _stacked(t: Tensor, rows: Tensor) -> tuple[Tensor, int, int, int]: ...


@overload
def _stacked(t: Tensor | None, rows: Tensor) -> tuple[Tensor | None, int, int, int]: ...


def _stacked(t: Tensor | None, rows: Tensor) -> tuple[Tensor | None, int, int, int]:
    """Tangents [*K, *x.shape] as [K, rows, N] with unit column stride, with pointer, K and row stride."""
    if t is None:
        return None, 0, 0, 0
    t = t.reshape(-1, *rows.shape) if rows.numel() else t.new_empty(0, *rows.shape)
    t = t if t.stride(2) == 1 or t.shape[2] == 1 else t.contiguous()
    return t, t.data_ptr(), t.stride(0), t.stride(1)


def _leading(x: Tensor, x_like: Tensor | None, weight_dot: Tensor | None) -> torch.Size:
    """The tangents' dimensions *K."""
    if x_like is not None:
        return x_like.shape[: x_like.dim() - x.dim()]
    assert weight_dot is not None  # a call has a tangent of one of the two
    return weight_dot.shape[:-1]


def _pointer(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def _contiguous(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


def _like(t: Tensor) -> Tensor:
    """Contiguous memory for a result of t's shape and type."""
    return torch.empty_like(t, memory_format=torch.contiguous_format)


def _empty(shape: Sequence[int], like: Tensor) -> Tensor:
    return like.new_empty(shape)  # as torch.empty, but deaf to a default device


def _bits(seed: Seed) -> int:
    """The seed as an unsigned number; a tensor is the host's, so nothing waits."""
    if isinstance(seed, int):
        return seed
    return seed.item() & 0xFFFFFFFFFFFFFFFF  # pyright: ignore[reportOperatorIssue] - of int64 it is an int


def _head(x: Tensor, weight: Tensor, rows: Tensor) -> tuple[int, ...]:
    n_rows, n_cols = rows.shape
    if weight.numel() != n_cols:  # hooks on saved tensors may have changed one of them
        raise ValueError(
            f"weight must be [N] for rows of N, got {tuple(weight.shape)} for {tuple(rows.shape)}"
        )
    return DTYPES[x.dtype], DTYPES[weight.dtype], torch.get_num_threads(), n_rows, n_cols


def rms_norm_forward(x: Tensor, weight: Tensor, eps: float, offset: float, rounding: str) -> Tensor:
    """y of x's shape, contiguous."""
    rows, weight, y = _rows(x), weight.contiguous(), _like(x)
    round_x_hat = rounding == "hf" and offset == 0
    pointers = rows.data_ptr(), rows.stride(0), 0, 0, weight.data_ptr(), y.data_ptr(), 0
    _call("norm_forward", *_head(x, weight, rows), round_x_hat, eps, offset, *pointers)
    return y


def add_rms_norm_forward(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, offset: float, rounding: str
) -> tuple[Tensor, Tensor]:
    """(y, s) with s = x + residual, both of x's shape and contiguous, in one pass."""
    rows, added, weight = _rows(x), _rows(residual), weight.contiguous()
    y, s = _like(x), _like(x)
    round_x_hat = rounding == "hf" and offset == 0
    inputs = rows.data_ptr(), rows.stride(0), added.data_ptr(), added.stride(0), weight.data_ptr()
    _call(
        "norm_forward", *_head(x, weight, rows), round_x_hat, eps, offset, *inputs, y.data_ptr(), s.data_ptr()
    )
    return y, s


def rms_norm_backward(
    x: Tensor,
    weight: Tensor,
    dy: Tensor,
    ds: Tensor | None,
    eps: float,
    offset: float,
    need_dx: bool,
    need_dw: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """dx (plus ds, where given) of x's shape and dw [N], each where needed; dy is read only."""
    rows, up, weight = _rows(x), _rows(dy), weight.contiguous()
    added = None if ds is None else _rows(ds)
    dx = _like(x) if need_dx else None
    dw = _like(weight) if need_dw else None
    inputs = rows.data_ptr(), rows.stride(0), weight.data_ptr(), up.data_ptr(), up.stride(0)
    inputs += (0, 0) if added is None else (added.data_ptr(), added.stride(0))
    _call("norm_backward", *_head(x, weight, rows), eps, offset, *inputs, _pointer(dx), _pointer(dw))
    return dx, dw


def rms_norm_jvp(
    x: Tensor, weight: Tensor, x_dot: Tensor | None, weight_dot: Tensor | None, eps: float, offset: float
) -> Tensor:
    """ẏ [*K, *x.shape] of K tangents that share one primal."""
    leading = _leading(x, x_dot, weight_dot)
    rows, weight, weight_dot = _rows(x), weight.contiguous(), _contiguous(weight_dot)
    x_dot, *direction = _stacked(x_dot, rows)
    y_dot = _empty(leading + x.shape, x)
    inputs = rows.data_ptr(), rows.stride(0), weight.data_ptr(), *direction, _pointer(weight_dot)
    _call("norm_jvp", *_head(x, weight, rows), leading.numel(), eps, offset, *inputs, y_dot.data_ptr())
    return y_dot


def rms_norm_backward_tangent(
    x: Tensor,
    weight: Tensor,
    dy: Tensor,
    x_dot: Tensor | None,
    weight_dot: Tensor | None,
    dy_dot: Tensor | None,
    eps: float,
    offset: float,
    need_dw: bool,
) -> tuple[Tensor, Tensor | None]:
    """Tangents (dẋ [*K, *x.shape], dẇ [*K, N]) of `rms_norm_backward`, K of them sharing one primal."""
    leading = _leading(x, dy_dot if x_dot is None else x_dot, weight_dot)
    rows, up, weight, weight_dot = _rows(x), _rows(dy), weight.contiguous(), _contiguous(weight_dot)
    x_dot, *direction = _stacked(x_dot, rows)
    dy_dot, *up_change = _stacked(dy_dot, rows)
    dx_dot = _empty(leading + x.shape, x)
    dw_dot = _empty(leading + weight.shape, weight) if need_dw else None
    inputs = rows.data_ptr(), rows.stride(0), weight.data_ptr(), up.data_ptr(), up.stride(0)
    inputs += *direction, _pointer(weight_dot), *up_change
    head = *_head(x, weight, rows), leading.numel(), eps, offset
    _call("norm_backward_tangent", *head, *inputs, dx_dot.data_ptr(), _pointer(dw_dot))
    return dx_dot, dw_dot


def rms_norm_jvp_backward(
    x: Tensor,
    weight: Tensor,
    dy: Tensor,
    x_dot: Tensor | None,
    weight_dot: Tensor | None,
    eps: float,
    offset: float,
    need_dw: bool,
    need_dw_dot: bool,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """Gradients (dx, dw, dẋ, dẇ) of ⟨dy, `rms_norm_jvp`⟩; dx and dw are summed over K."""
    leading = _leading(x, dy, None)
    rows, weight, weight_dot = _rows(x), weight.contiguous(), _contiguous(weight_dot)
    x_dot, *direction = _stacked(x_dot, rows)
    dy, *up = _stacked(dy, rows)
    dx, dx_dot = _like(x), _empty(leading + x.shape, x)
    dw = _like(weight) if need_dw else None
    dw_dot = _empty(leading + weight.shape, weight) if need_dw_dot else None
    inputs = rows.data_ptr(), rows.stride(0), weight.data_ptr(), *up, *direction, _pointer(weight_dot)
    outputs = dx.data_ptr(), _pointer(dw), dx_dot.data_ptr(), _pointer(dw_dot)
    head = *_head(x, weight, rows), leading.numel(), eps, offset
    _call("norm_jvp_backward", *head, *inputs, *outputs)
    return dx, dw, dx_dot, dw_dot


def rademacher(
    n_cols: int, example_ids: Tensor, n_probes: int, layers: Tensor, seed: Seed, dtype: torch.dtype
) -> Tensor:
    """±1 as [layers, n_probes, examples, n_cols]."""
    layers, example_ids = layers.contiguous(), example_ids.contiguous()
    out = example_ids.new_empty((layers.numel(), n_probes, example_ids.numel(), n_cols), dtype=dtype)
    sizes = DTYPES[dtype], torch.get_num_threads(), *out.shape
    _call("rademacher", *sizes, _bits(seed), layers.data_ptr(), example_ids.data_ptr(), out.data_ptr())
    return out


def preconditioned_probes(
    z: Tensor,
    weight: Tensor,
    eps: float,
    offset: float,
    seed: Seed,
    n_probes: int,
    example_ids: Tensor,
    layer: int,
) -> Tensor:
    """(weight + offset) r ν as [n_probes, rows, D], for z [rows, D]."""
    rows, weight, example_ids = _rows(z), weight.contiguous(), example_ids.contiguous()
    out = _empty((n_probes, *z.shape), z)
    sizes = DTYPES[z.dtype], DTYPES[weight.dtype], torch.get_num_threads(), n_probes, *z.shape
    pointers = example_ids.data_ptr(), rows.data_ptr(), rows.stride(0), weight.data_ptr(), out.data_ptr()
    _call("preconditioned_probes", *sizes, _bits(seed), layer, eps, offset, *pointers)
    return out


def preconditioned_probes_backward(
    z: Tensor,
    weight: Tensor,
    dp: Tensor,
    eps: float,
    offset: float,
    seed: Seed,
    example_ids: Tensor,
    layer: int,
) -> tuple[Tensor, Tensor]:
    """Gradients (dz, dw) of ⟨dp, `preconditioned_probes`⟩, dp [n_probes, rows, D]."""
    rows, weight, example_ids = _rows(z), weight.contiguous(), example_ids.contiguous()
    dp, *up = _stacked(dp, rows)
    dz, dw = _like(z), _like(weight)
    sizes = DTYPES[z.dtype], DTYPES[weight.dtype], torch.get_num_threads(), *dp.shape
    inputs = example_ids.data_ptr(), rows.data_ptr(), rows.stride(0), weight.data_ptr(), *up
    _call(
        "preconditioned_probes_backward",
        *sizes,
        _bits(seed),
        layer,
        eps,
        offset,
        *inputs,
        dz.data_ptr(),
        dw.data_ptr(),
    )
    return dz, dw


def probe_dot(t: Tensor, seed: Seed, example_ids: Tensor, layer: int) -> Tensor:
    """Σ_columns ν t as [n_probes, rows] in the accumulation type, for t [n_probes, rows, D]."""
    t = t if t.stride(2) == 1 or t.shape[2] == 1 else t.contiguous()
    example_ids = example_ids.contiguous()
    dots = t.new_empty(t.shape[:2], dtype=accumulation_dtype(t))
    sizes = DTYPES[t.dtype], torch.get_num_threads(), *t.shape
    pointers = example_ids.data_ptr(), t.data_ptr(), t.stride(0), t.stride(1), dots.data_ptr()
    _call("probe_dot", *sizes, _bits(seed), layer, *pointers)
    return dots


def probe_scale(
    scale: Tensor, n_cols: int, seed: Seed, example_ids: Tensor, layer: int, dtype: torch.dtype
) -> Tensor:
    """Scale ν as [n_probes, rows, n_cols]: the transpose of `probe_dot`."""
    out = scale.new_empty((*scale.shape, n_cols), dtype=dtype)
    scale, example_ids = scale.to(accumulation_dtype(out)).contiguous(), example_ids.contiguous()
    sizes = DTYPES[dtype], torch.get_num_threads(), *out.shape
    _call("probe_scale", *sizes, _bits(seed), layer, example_ids.data_ptr(), scale.data_ptr(), out.data_ptr())
    return out


def step_lengths(states: Tensor) -> Tensor:
    """‖Z_t - Z_{t-1}‖ as [T, B] in the accumulation type."""
    states = states if states.stride(2) == 1 or states.shape[2] == 1 else states.contiguous()
    steps, examples, columns = states.shape[0] - 1, *states.shape[1:]
    lengths = states.new_empty((steps, examples), dtype=accumulation_dtype(states))
    sizes = DTYPES[states.dtype], torch.get_num_threads(), steps, examples, columns
    pointers = states.data_ptr(), states.stride(0), states.stride(1), lengths.data_ptr()
    _call("step_lengths", *sizes, *pointers)
    return lengths


def step_lengths_backward(states: Tensor, lengths: Tensor, dlengths: Tensor) -> Tensor:
    """Gradient of ⟨dlengths, `step_lengths`⟩ in the states, in one pass."""
    states = states if states.stride(2) == 1 or states.shape[2] == 1 else states.contiguous()
    lengths, dlengths, dstates = lengths.contiguous(), dlengths.contiguous(), _like(states)
    sizes = DTYPES[states.dtype], torch.get_num_threads(), states.shape[0] - 1, *states.shape[1:]
    pointers = states.data_ptr(), states.stride(0), states.stride(1)
    _call(
        "step_lengths_backward",
        *sizes,
        *pointers,
        lengths.data_ptr(),
        dlengths.data_ptr(),
        dstates.data_ptr(),
    )
    return dstates
