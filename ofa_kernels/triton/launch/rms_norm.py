"""The calls that allocate and launch RMSNorm at first order."""

import torch
from torch import Tensor

from ofa_kernels.triton import plan
from ofa_kernels.triton import rms_norm as kernels
from ofa_kernels.triton.plan import BACKWARD, FORWARD, dense, dense_like, strided, unit_of
from ofa_kernels.triton.shares import shares


def rms_norm_forward(
    x: Tensor,
    weight: Tensor,
    eps: float,
    offset: float,
    rounding: str,
    rstd: Tensor | None = None,
    index: Tensor | None = None,
) -> Tensor:
    """y of x's shape, contiguous; rstd [rows] in the accumulation type is written where it is given.

    The weight is [N]; with an index [rows] int64 it is [A, N], and its row index[r] is that of row r.
    """
    y = dense_like(x)
    _forward((x, None), (weight, index), (None, y, rstd), eps, offset, rounding)
    return y


def add_rms_norm_forward(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    eps: float,
    offset: float,
    rounding: str,
    rstd: Tensor | None = None,
    index: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(y, s) of x's shape, contiguous: s = x + residual in x's type, y its norm.

    rstd [rows] of s in the accumulation type is written where it is given; for the index see
    `rms_norm_forward`.
    """
    y, s = dense_like(x), dense_like(x)
    _forward((x, residual), (weight, index), (s, y, rstd), eps, offset, rounding)
    return y, s


def _forward(
    terms: tuple[Tensor, Tensor | None],
    weights: tuple[Tensor, Tensor | None],
    outputs: tuple[Tensor | None, Tensor, Tensor | None],
    eps: float,
    offset: float,
    rounding: str,
) -> None:
    (x, residual), (weight, index) = terms, weights
    n_cols = x.shape[-1]
    n_rows = x.numel() // n_cols
    if not n_rows:
        return
    index = None if index is None else dense(index)
    x, stride = strided(x, n_rows)
    residual, residual_stride = strided(residual, n_rows)
    p = plan.plan(FORWARD, n_cols, x.dtype, unit_of(n_cols, x, residual))
    p.launch(
        kernels.rms_norm_forward,
        n_rows,
        (x, residual, dense(weight), index, *outputs, p.scratch(x, n_rows, 1)),
        (*stride, *residual_stride, n_cols, 0 if index is None else weight.shape[0]),
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
    index: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """dx of x's shape with ds added before it is rounded, and dw like the weight; each where needed.

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
    share = shares(p, n_rows, need_dw, weight, index)
    partials = share.partials(x, n_cols) if need_dw else None
    # nothing is read ahead where a program has one row, or where an order and rstd's sum take the registers;
    # less is where ds is read as well
    ahead = share.programs < n_rows and (rstd is not None or share.segments is None)
    pipeline = max(p.pipeline - (ds is not None), 1) if ahead else 1
    outputs = dx, partials, p.scratch(x, n_rows, 2 if rstd is None else 1)
    p.launch(
        kernels.rms_norm_backward,
        share.programs,
        (x, dense(weight), *share.pointers, dy, ds, rstd, *outputs),
        (*stride, *dy_stride, *ds_stride, n_rows, n_cols, share.n_weights),
        EPS=eps,
        OFFSET=offset,
        PIPELINE=pipeline,
    )
    return dx, None if partials is None else share.finish(p, partials, dense_like(weight))
