"""The calls that allocate and launch RMSNorm's derivatives along K tangents, which lead the sizes as *K."""

import math

import torch
from torch import Tensor

from ofa_kernels.triton import plan
from ofa_kernels.triton import rms_norm_tangent as kernels
from ofa_kernels.triton.plan import JVP, TANGENT, dense, dense_like, partials_like, strided, unit_of


def rms_norm_jvp(
    x: Tensor, weight: Tensor, x_dot: Tensor | None, weight_dot: Tensor | None, eps: float, offset: float
) -> Tensor:
    """y_dot [*K, *x.shape] for x_dot [*K, *x.shape] and weight_dot [*K, N], one of which may be None."""
    n_cols = x.shape[-1]
    n_rows = x.numel() // n_cols
    if x_dot is not None:
        y_dot = torch.empty_like(x_dot, dtype=x.dtype, memory_format=torch.contiguous_format)
        n_tangents = x_dot.numel() // x.numel() if n_rows else 0
    else:
        assert weight_dot is not None  # a call has a tangent of one of the two
        y_dot = x.new_empty((*weight_dot.shape[:-1], *x.shape))
        n_tangents = weight_dot.numel() // n_cols
    if y_dot.numel():
        x, stride = strided(x, n_rows)
        x_dot, x_dot_strides = strided(x_dot, n_tangents, n_rows)
        weight_dot, weight_dot_strides = strided(weight_dot, n_tangents)
        p = plan.plan(JVP, n_cols, x.dtype, unit_of(n_cols, x, x_dot, weight_dot))
        p.launch(
            kernels.rms_norm_jvp,
            n_rows,
            (x, dense(weight), x_dot, weight_dot, y_dot, p.scratch(x, n_rows, 1 + n_tangents)),
            (*stride, *x_dot_strides, *weight_dot_strides, n_rows, n_tangents, n_cols),
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
) -> tuple[Tensor, Tensor | None]:
    """dx_dot [*K, *x.shape] and, where needed, dw_dot [*K, N]; dy has x's shape, absent tangents are zero."""
    n_cols = x.shape[-1]
    n_rows = x.numel() // n_cols
    k_shape = next(
        t.shape[: t.dim() - dims]
        for t, dims in ((x_dot, x.dim()), (dy_dot, x.dim()), (weight_dot, 1))
        if t is not None
    )
    n_tangents = math.prod(k_shape)
    dx_dot = x.new_empty((*k_shape, *x.shape))
    if not dx_dot.numel():
        return dx_dot, weight.new_zeros(*k_shape, n_cols) if need_dw else None
    x, stride = strided(x, n_rows)
    dy, dy_stride = strided(dy, n_rows)
    x_dot, x_dot_strides = strided(x_dot, n_tangents, n_rows)
    weight_dot, weight_dot_strides = strided(weight_dot, n_tangents)
    dy_dot, dy_dot_strides = strided(dy_dot, n_tangents, n_rows)
    p = plan.plan(TANGENT, n_cols, x.dtype, unit_of(n_cols, x, dy, x_dot, weight_dot, dy_dot))
    programs = p.programs(n_rows) if need_dw else n_rows
    partials = partials_like(x, programs, *k_shape, n_cols) if need_dw else None
    sums = p.scratch(x, n_rows, 2 + 2 * n_tangents)
    strides = (*stride, *dy_stride, *x_dot_strides, *weight_dot_strides, *dy_dot_strides)
    p.launch(
        kernels.rms_norm_backward_tangent,
        programs,
        (x, dense(weight), dy, x_dot, weight_dot, dy_dot, dx_dot, partials, sums),
        (*strides, n_rows, n_tangents, n_cols),
        EPS=eps,
        OFFSET=offset,
    )
    if partials is None:
        return dx_dot, None
    return dx_dot, p.finish(partials, weight.new_empty((*k_shape, n_cols)))


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
    """Gradients of ⟨dy, `rms_norm_jvp`⟩: dx and dw [N] summed over K, dx_dot [*K, *x.shape], dw_dot [*K, N].

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
        return dx, dw, dx_dot, weight.new_zeros(*k_shape, n_cols) if need_dw_dot else None
    x, stride = strided(x, n_rows)
    dy, dy_strides = strided(dy, n_tangents, n_rows)
    x_dot, x_dot_strides = strided(x_dot, n_tangents, n_rows)
    weight_dot, weight_dot_strides = strided(weight_dot, n_tangents)
    p = plan.plan(TANGENT, n_cols, x.dtype, unit_of(n_cols, x, dy, x_dot, weight_dot))
    programs = p.programs(n_rows) if need_dw or need_dw_dot else n_rows
    dw_partials = partials_like(x, programs, n_cols) if need_dw else None
    dw_dot_partials = partials_like(x, programs, *k_shape, n_cols) if need_dw_dot else None
    outputs = (dx, dw_partials, dx_dot, dw_dot_partials, p.scratch(x, n_rows, 1 + 3 * n_tangents))
    p.launch(
        kernels.rms_norm_jvp_backward,
        programs,
        (x, dense(weight), dy, x_dot, weight_dot, *outputs),
        (*stride, *dy_strides, *x_dot_strides, *weight_dot_strides, n_rows, n_tangents, n_cols),
        EPS=eps,
        OFFSET=offset,
    )
    dw = dw_dot = None
    if dw_partials is not None:
        dw = p.finish(dw_partials, dense_like(weight))
    if dw_dot_partials is not None:
        dw_dot = p.finish(dw_dot_partials, weight.new_empty((*k_shape, n_cols)))
    return dx, dw, dx_dot, dw_dot
