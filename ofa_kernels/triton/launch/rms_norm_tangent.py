"""The calls that allocate and launch RMSNorm's derivatives along K tangents, which lead the sizes as *K.

A weight is [N]; with an index [rows] int64 it is [A, N], and its row index[r] is that of row r. Tangents and
gradients of it are like it.
"""

import math

import torch
from torch import Tensor

from ofa_kernels.triton import plan
from ofa_kernels.triton import rms_norm_tangent as kernels
from ofa_kernels.triton.plan import JVP, TANGENT, dense, dense_like, strided, unit_of
from ofa_kernels.triton.shares import shares


def _weight_rows(
    weight_dot: Tensor | None, n_tangents: int, index: Tensor | None
) -> tuple[Tensor | None, tuple[int, ...]]:
    """What to read tangents of a weight from, and their stride."""
    if weight_dot is not None and index is not None:
        weight_dot = weight_dot.reshape(n_tangents, -1)
    return strided(weight_dot, n_tangents)


def rms_norm_jvp(
    x: Tensor,
    weight: Tensor,
    x_dot: Tensor | None,
    weight_dot: Tensor | None,
    eps: float,
    offset: float,
    index: Tensor | None = None,
) -> Tensor:
    """y_dot [*K, *x.shape] for x_dot [*K, *x.shape] and weight_dot, one of which may be None."""
    n_cols = x.shape[-1]
    n_rows = x.numel() // n_cols
    if x_dot is not None:
        y_dot = torch.empty_like(x_dot, dtype=x.dtype, memory_format=torch.contiguous_format)
        n_tangents = x_dot.numel() // x.numel() if n_rows else 0
    else:
        assert weight_dot is not None  # a call has a tangent of one of the two
        y_dot = x.new_empty((*weight_dot.shape[: -weight.dim()], *x.shape))
        n_tangents = weight_dot.numel() // weight.numel()
    if y_dot.numel():
        x, stride = strided(x, n_rows)
        x_dot, x_dot_strides = strided(x_dot, n_tangents, n_rows)
        weight_dot, weight_dot_strides = _weight_rows(weight_dot, n_tangents, index)
        p = plan.plan(JVP, n_cols, x.dtype, unit_of(n_cols, x, x_dot, weight_dot))
        share = shares(p, n_rows, False, weight, index)
        outputs = y_dot, p.scratch(x, n_rows, 1 + n_tangents)
        p.launch(
            kernels.rms_norm_jvp,
            n_rows,
            (x, dense(weight), share.index, x_dot, weight_dot, *outputs),
            (*stride, *x_dot_strides, *weight_dot_strides, n_rows, n_tangents, n_cols, share.n_weights),
            EPS=eps,
            OFFSET=offset,
        )
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
    index: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """dx_dot [*K, *x.shape] and, where needed, dw_dot [*K, …]; dy has x's shape, absent tangents are zero."""
    n_cols = x.shape[-1]
    n_rows = x.numel() // n_cols
    k_shape = next(
        t.shape[: t.dim() - dims]
        for t, dims in ((x_dot, x.dim()), (dy_dot, x.dim()), (weight_dot, weight.dim()))
        if t is not None
    )
    n_tangents = math.prod(k_shape)
    dx_dot = x.new_empty((*k_shape, *x.shape))
    if not dx_dot.numel():
        return dx_dot, weight.new_zeros(*k_shape, *weight.shape) if need_dw else None
    x, stride = strided(x, n_rows)
    dy, dy_stride = strided(dy, n_rows)
    x_dot, x_dot_strides = strided(x_dot, n_tangents, n_rows)
    weight_dot, weight_dot_strides = _weight_rows(weight_dot, n_tangents, index)
    dy_dot, dy_dot_strides = strided(dy_dot, n_tangents, n_rows)
    p = plan.plan(TANGENT, n_cols, x.dtype, unit_of(n_cols, x, dy, x_dot, weight_dot, dy_dot))
    share = shares(p, n_rows, need_dw, weight, index)
    partials = share.partials(x, *k_shape, n_cols) if need_dw else None
    sums = p.scratch(x, n_rows, 2 + 2 * n_tangents)
    strides = (*stride, *dy_stride, *x_dot_strides, *weight_dot_strides, *dy_dot_strides)
    p.launch(
        kernels.rms_norm_backward_tangent,
        share.programs,
        (x, dense(weight), *share.pointers, dy, x_dot, weight_dot, dy_dot, dx_dot, partials, sums),
        (*strides, n_rows, n_tangents, n_cols, share.n_weights),
        EPS=eps,
        OFFSET=offset,
    )
    if partials is None:
        return dx_dot, None
    return dx_dot, share.finish(p, partials, weight.new_empty((*k_shape, *weight.shape)))


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
    index: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """Gradients of ⟨dy, `rms_norm_jvp`⟩: dx and dw summed over K, dx_dot [*K, *x.shape], dw_dot [*K, …].

    dy is [*K, *x.shape], absent tangents are zero; dw and dw_dot are made where needed.
    """
    n_cols = x.shape[-1]
    n_rows = x.numel() // n_cols
    k_shape = dy.shape[: dy.dim() - x.dim()]
    n_tangents = math.prod(k_shape)
    dx = dense_like(x)
    dx_dot = x.new_empty((*k_shape, *x.shape))
    if not n_rows:
        dw = torch.zeros_like(weight) if need_dw else None
        return dx, dw, dx_dot, weight.new_zeros(*k_shape, *weight.shape) if need_dw_dot else None
    x, stride = strided(x, n_rows)
    dy, dy_strides = strided(dy, n_tangents, n_rows)
    x_dot, x_dot_strides = strided(x_dot, n_tangents, n_rows)
    weight_dot, weight_dot_strides = _weight_rows(weight_dot, n_tangents, index)
    p = plan.plan(TANGENT, n_cols, x.dtype, unit_of(n_cols, x, dy, x_dot, weight_dot))
    share = shares(p, n_rows, need_dw or need_dw_dot, weight, index)
    dw_partials = share.partials(x, n_cols) if need_dw else None
    dw_dot_partials = share.partials(x, *k_shape, n_cols) if need_dw_dot else None
    strides = (*stride, *dy_strides, *x_dot_strides, *weight_dot_strides)
    outputs = (dx, dw_partials, dx_dot, dw_dot_partials, p.scratch(x, n_rows, 1 + 3 * n_tangents))
    p.launch(
        kernels.rms_norm_jvp_backward,
        share.programs,
        (x, dense(weight), *share.pointers, dy, x_dot, weight_dot, *outputs),
        (*strides, n_rows, n_tangents, n_cols, share.n_weights),
        EPS=eps,
        OFFSET=offset,
    )
    dw = dw_dot = None
    if dw_partials is not None:
        dw = share.finish(p, dw_partials, dense_like(weight))
    if dw_dot_partials is not None:
        dw_dot = share.finish(p, dw_dot_partials, weight.new_empty((*k_shape, *weight.shape)))
    return dx, dw, dx_dot, dw_dot
