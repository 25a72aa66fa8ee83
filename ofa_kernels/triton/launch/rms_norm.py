"""The calls that allocate and launch RMSNorm at first order."""

import torch
from torch import Tensor

from ofa_kernels.triton import plan
from ofa_kernels.triton import rms_norm as kernels
from ofa_kernels.triton.plan import BACKWARD, FORWARD, dense, dense_like, partials_like, strided, unit_of


def rms_norm_forward(
    x: Tensor, weight: Tensor, eps: float, offset: float, rounding: str, rstd: Tensor | None = None
) -> Tensor:
    """y of x's shape, contiguous; rstd [rows] in the accumulation type is written where it is given."""
    y = dense_like(x)
    _forward((x, None), weight, (None, y, rstd), eps, offset, rounding)
    return y


def add_rms_norm_forward(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    eps: float,
    offset: float,
    rounding: str,
    rstd: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(y, s) of x's shape, contiguous: s = x + residual in x's type, y its norm.

    rstd [rows] of s in the accumulation type is written where it is given.
    """
    y, s = dense_like(x), dense_like(x)
    _forward((x, residual), weight, (s, y, rstd), eps, offset, rounding)
    return y, s


def _forward(
    terms: tuple[Tensor, Tensor | None],
    weight: Tensor,
    outputs: tuple[Tensor | None, Tensor, Tensor | None],
    eps: float,
    offset: float,
    rounding: str,
) -> None:
    x, residual = terms
    n_cols = x.shape[-1]
    n_rows = x.numel() // n_cols
    if not n_rows:
        return
    x, stride = strided(x, n_rows)
    residual, residual_stride = strided(residual, n_rows)
    p = plan.plan(FORWARD, n_cols, x.dtype, unit_of(n_cols, x, residual))
    p.launch(
        kernels.rms_norm_forward,
        n_rows,
        (x, residual, dense(weight), *outputs, p.scratch(x, n_rows, 1)),
        (*stride, *residual_stride, n_cols),
        EPS=eps,
        OFFSET=offset,
        ROUND_X_HAT=rounding == "hf" and offset == 0,
    )


def rms_norm_backward(
    x: Tensor,
    weight: Tensor,
    dy: Tensor,
    ds: Tensor | None,
    eps: float,
    offset: float,
    need_dx: bool,
    need_dw: bool,
    rstd: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """dx of x's shape with ds added before it is rounded, and dw [N]; each where needed.

    rstd is what `rms_norm_forward` wrote for the same x: given, it is read instead of being computed.
    """
    n_cols = x.shape[-1]
    n_rows = x.numel() // n_cols
    dx = dense_like(x) if need_dx else None
    if not n_rows:
        return dx, torch.zeros_like(weight) if need_dw else None
    x, stride = strided(x, n_rows)
    dy, dy_stride = strided(dy, n_rows)
    ds, ds_stride = strided(ds, n_rows)
    p = plan.plan(BACKWARD, n_cols, x.dtype, unit_of(n_cols, x, dy, ds))
    # a program that owes no share of dw takes one row: more of them run at once
    programs = p.programs(n_rows) if need_dw else n_rows
    partials = partials_like(x, programs, n_cols) if need_dw else None
    # nothing is read ahead where a program has one row, and less where ds is read as well
    pipeline = max(p.pipeline - (ds is not None), 1) if programs < n_rows else 1
    p.launch(
        kernels.rms_norm_backward,
        programs,
        (x, dense(weight), dy, ds, rstd, dx, partials, p.scratch(x, n_rows, 2 if rstd is None else 1)),
        (*stride, *dy_stride, *ds_stride, n_rows, n_cols),
        EPS=eps,
        OFFSET=offset,
        PIPELINE=pipeline,
    )
    return dx, None if partials is None else p.finish(partials, dense_like(weight))
