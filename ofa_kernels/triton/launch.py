"""Launch choices as data, and the calls that allocate and launch."""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ofa_kernels.reference import accumulation_dtype
from ofa_kernels.triton import probes as probe_kernels
from ofa_kernels.triton import rms_norm as norm_kernels


@dataclass(frozen=True)
class RowLaunch:
    """How a kernel that holds one row in registers is launched, for rows up to `max_columns`."""

    max_columns: int
    num_warps: int


# 16 elements a thread and warp-wide 128-bit loads of bfloat16; the compile gate checks spills and loads
ROWS = (RowLaunch(512, 1), RowLaunch(1024, 2), RowLaunch(2048, 4), RowLaunch(4096, 8), RowLaunch(8192, 16))
# enough programs to fill a GPU of 132 multiprocessors once, and few partial sums of dw to add up
BACKWARD_PROGRAMS = 264
GROUPS_PER_PROGRAM = 8  # 1,024 signs a program


def row_launch(n_cols: int) -> RowLaunch:
    """The launch for rows of n_cols."""
    return next(launch for launch in ROWS if n_cols <= launch.max_columns)


def _on(x: Tensor):
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _as_rows(x: Tensor) -> Tensor:
    """[rows, N] with unit column stride; a view where strides allow it."""
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(-1) == 1 else x.contiguous()


def _acc(x: Tensor):
    return tl.float64 if accumulation_dtype(x) == torch.float64 else tl.float32


def rms_norm_forward(x: Tensor, weight: Tensor, eps: float, offset: float, rounding: str) -> Tensor:
    """y of x's shape, contiguous."""
    rows = _as_rows(x)
    n_rows, n_cols = rows.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if n_rows:
        with _on(x):
            norm_kernels.rms_norm_forward[(n_rows,)](
                rows,
                weight.contiguous(),
                y,
                rows.stride(0),
                n_cols,
                EPS=eps,
                OFFSET=offset,
                ROUND_X_HAT=rounding == "hf",
                ACC=_acc(x),
                BLOCK_N=triton.next_power_of_2(n_cols),
                num_warps=row_launch(n_cols).num_warps,
            )
    return y


def rms_norm_backward(
    x: Tensor, weight: Tensor, dy: Tensor, eps: float, offset: float, need_dw: bool
) -> tuple[Tensor, Tensor | None]:
    """dx of x's shape and, where needed, dw [N]; dy is read only."""
    rows, dy_rows = _as_rows(x), _as_rows(dy)
    n_rows, n_cols = rows.shape
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    programs = min(n_rows, BACKWARD_PROGRAMS)
    partial_dw = torch.empty(programs if need_dw else 0, n_cols, dtype=accumulation_dtype(x), device=x.device)
    if n_rows:
        with _on(x):
            norm_kernels.rms_norm_backward[(programs,)](
                rows,
                weight.contiguous(),
                dy_rows,
                dx,
                partial_dw,
                rows.stride(0),
                dy_rows.stride(0),
                n_rows,
                n_cols,
                EPS=eps,
                OFFSET=offset,
                NEED_DW=need_dw,
                ACC=_acc(x),
                BLOCK_N=triton.next_power_of_2(n_cols),
                num_warps=row_launch(n_cols).num_warps,
            )
    return dx, partial_dw.sum(0).to(weight.dtype) if need_dw else None


def rademacher(
    n_cols: int, example_ids: Tensor, n_probes: int, layers: Tensor, seed: int, dtype: torch.dtype
) -> Tensor:
    """±1 as [layers, n_probes, examples, n_cols]."""
    n_layers, n_examples = layers.numel(), example_ids.numel()
    out = torch.empty(n_layers, n_probes, n_examples, n_cols, dtype=dtype, device=example_ids.device)
    if out.numel():
        grid = (n_layers * n_probes * n_examples, triton.cdiv(n_cols, GROUPS_PER_PROGRAM * 128))
        with _on(out):
            probe_kernels.rademacher[grid](
                out,
                layers.contiguous(),
                example_ids.contiguous(),
                # two halves: a Python int is passed as a signed or unsigned type that depends on its value
                seed & 0xFFFFFFFF,
                seed >> 32,
                n_probes,
                n_examples,
                n_cols,
                BLOCK_G=GROUPS_PER_PROGRAM,
            )
    return out
