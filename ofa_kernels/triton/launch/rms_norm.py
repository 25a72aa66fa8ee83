"""The calls that allocate and launch RMSNorm at first order."""

from typing import overload

import torch
from torch import Tensor

from ofa_kernels.triton import plan
from ofa_kernels.triton import rms_norm as kernels
from ofa_kernels.triton.plan import BACKWARD, FORWARD, acc, as_rows, dense_like, partials_like, unit_of


def rms_norm_forward(x: Tensor, weight: Tensor, eps: float, offset: float, rounding: str) -> Tensor:
    """y of x's shape, contiguous."""
    return _forward(x, None, weight, eps, offset, rounding)[0]


def add_rms_norm_forward(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, offset: float, rounding: str
) -> tuple[Tensor, Tensor]:
    """(y, s) of x's shape, contiguous: s = x + residual in x's type, y its norm."""
    return _forward(x, residual, weight, eps, offset, rounding)


@overload
def _forward(
    x: Tensor, residual: None, weight: Tensor, eps: float, offset: float, rounding: str
) -> tuple[Tensor, None]: ...


@overload
def _forward(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, offset: float, rounding: str
) -> tuple[Tensor, Tensor]: ...


def _forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, offset: float, rounding: str
) -> tuple[Tensor, Tensor | None]:
    n_cols = x.shape[-1]
    n_rows = x.numel() // n_cols
    y = dense_like(x)
    s = None if residual is None else torch.empty_like(y)
    if n_rows:
        rows = as_rows(x, n_rows)
        residual_rows = None if residual is None else as_rows(residual, n_rows)
        p = plan.plan(FORWARD, n_cols, x.dtype, unit_of(n_cols, rows, residual_rows))
        p.launch(
            kernels.rms_norm_forward,
            n_rows,
            rows,
            residual_rows,
            weight.contiguous(),
            s,
            y,
            p.scratch(x, n_rows, 1),
            rows.stride()[0],
            0 if residual_rows is None else residual_rows.stride()[0],
            n_cols,
            EPS=eps,
            OFFSET=offset,
            ROUND_X_HAT=rounding == "hf" and offset == 0,
            ACC=acc(x),
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
    """dx of x's shape with ds added before it is rounded, and dw [N]; each where needed."""
    n_cols = x.shape[-1]
    n_rows = x.numel() // n_cols
    dx = dense_like(x) if need_dx else None
    if not n_rows:
        return dx, torch.zeros_like(weight) if need_dw else None
    rows, dy_rows = as_rows(x, n_rows), as_rows(dy, n_rows)
    ds_rows = None if ds is None else as_rows(ds, n_rows)
    p = plan.plan(BACKWARD, n_cols, x.dtype, unit_of(n_cols, rows, dy_rows, ds_rows))
    # a program that owes no share of dw takes one row: more of them run at once
    programs = p.programs(n_rows) if need_dw else n_rows
    partials = partials_like(x, programs, n_cols) if need_dw else None
    p.launch(
        kernels.rms_norm_backward,
        programs,
        rows,
        weight.contiguous(),
        dy_rows,
        ds_rows,
        dx,
        partials,
        p.scratch(x, n_rows, 2),
        rows.stride()[0],
        dy_rows.stride()[0],
        0 if ds_rows is None else ds_rows.stride()[0],
        n_rows,
        n_cols,
        EPS=eps,
        OFFSET=offset,
        ACC=acc(x),
        PIPELINE=p.pipeline,
    )
    return dx, None if partials is None else p.finish(partials, weight.dtype)
