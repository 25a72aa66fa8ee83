"""What the tests of the Triton launchers share: inputs, error bounds, and each kernel against float64."""

import dataclasses

import torch

from ofa_kernels import reference
from ofa_kernels.dtypes import accumulation_dtype
from ofa_kernels.triton import launch, plan
from tests.ofa_kernels.bounds import BF16, EPS


def cut(monkeypatch, block=128):
    """Make every row one of blocks, and two programs share the rows."""

    def blocks(residency, n_cols, *args, whole=plan.plan):
        return dataclasses.replace(
            whole(residency, n_cols, *args),
            block=block,
            n_blocks=-(-n_cols // block),
            stages=plan.BLOCKS,
            max_programs=2,
        )

    monkeypatch.setattr(plan, "plan", blocks)


def draw(device, dtype, *shape):
    return torch.randn(shape, device=device).to(dtype)


def unit(t):
    """The largest relative error of rounding to t's type once."""
    # Triton's interpreter truncates where it stores bfloat16: one ULP instead of half
    truncated = t.dtype == BF16 and not torch.cuda.is_available()
    return torch.finfo(t.dtype).eps * (1 if truncated else 0.5)


def check(got, truth, scale, like, factors=1, terms=0):
    """`got` is `truth` rounded once, but for the products of `factors` sums over x's columns.

    `scale` is what cancels in the result, `like` an x, and `terms` how many rows were added up.
    """
    assert got.shape == truth.shape
    eps = torch.finfo(accumulation_dtype(like)).eps
    sums = factors * (like.shape[-1] ** 0.5 + 8) + terms**0.5
    finfo = torch.finfo(got.dtype)
    subnormal = 8 * finfo.smallest_normal * finfo.eps  # an absolute step
    bound = ((1 + unit(got)) * (1 + sums * eps) - 1) * scale + subnormal
    assert ((got.double() - truth).abs() <= bound).all()


def rows_of(t):
    return t.numel() // t.shape[-1]


def double(*tensors):
    return tuple(None if t is None else t.double() for t in tensors)


class Scales:
    """What cancels in each result: its formula with every term's magnitude added."""

    def __init__(self, x, w, dy, x_dot, w_dot, dy_dot, offset):
        x, w, dy, x_dot, w_dot, dy_dot = double(x, w, dy, x_dot, w_dot, dy_dot)
        x_hat, r = (t.abs() for t in reference.normalise(x, EPS))
        mean = reference.mean
        w = (w + offset).abs()
        dy, x_dot, dy_dot = (0 * x_hat if t is None else t.abs() for t in (dy, x_dot, dy_dot))
        w_dot = reference.beside_rows(None if w_dot is None else w_dot.abs(), x_hat)
        m, c = mean(x_hat * x_dot), mean(w * dy * x_hat)
        x_hat_dot = r * (x_dot + x_hat * m)
        g_dot = w * dy_dot + w_dot * dy
        c_dot = mean(g_dot * x_hat + w * dy * x_hat_dot)
        self.y = w * x_hat
        self.dx = r * (w * dy + x_hat * c)
        self.dw = dy * x_hat
        self.y_dot = w * x_hat_dot + w_dot * x_hat
        self.dx_dot = r * m * self.dx + r * (g_dot + x_hat_dot * c + x_hat * c_dot)
        self.dw_dot = dy_dot * x_hat + dy * x_hat_dot


def over_rows(t, x):
    """The sum over x's rows, with any tangents before them kept."""
    return reference.sum_rows(t, x.dim() - 1)


def over_all(t):
    return reference.sum_rows(t)


def check_forward(x, w, offset, rounding, residual=None):
    if residual is None:
        y, s = launch.rms_norm_forward(x, w, EPS, offset, rounding), x
    else:
        y, s = launch.add_rms_norm_forward(x, residual, w, EPS, offset, rounding)
        assert (s.dtype, s.is_contiguous()) == (x.dtype, True)
        check(s, x.double() + residual.double(), s.double().abs() / (1 - unit(s)), x, factors=0)
    assert (y.dtype, y.is_contiguous()) == (x.dtype, True)
    scale = Scales(s, w, None, None, None, None, offset).y
    if rounding == "hf" and offset == 0:
        scale = scale * 2 * (1 + unit(y))  # x̂ is rounded too
    check(y, reference.rms_norm(*double(s, w), EPS, offset), scale, x)


def check_jvp(x, w, x_dot, w_dot, offset):
    got = launch.rms_norm_jvp(x, w, x_dot, w_dot, EPS, offset)
    truth = reference.rms_norm_jvp(*double(x, w, x_dot, w_dot), EPS, offset)
    assert got.dtype == x.dtype
    scale = Scales(x, w, None, x_dot, w_dot, None, offset).y_dot
    check(got, truth, scale, x, factors=4)


def check_backward_tangent(x, w, dy, x_dot, w_dot, dy_dot, offset, need_dw=True):
    args = (x, w, dy, x_dot, w_dot, dy_dot)
    dx_dot, dw_dot = launch.rms_norm_backward_tangent(*args, EPS, offset, need_dw)
    true_dx_dot, true_dw_dot = reference.rms_norm_backward_tangent(*double(*args), EPS, offset)
    scales = Scales(*args, offset)
    assert dx_dot.dtype == x.dtype
    check(dx_dot, true_dx_dot, scales.dx_dot, x, factors=6)
    assert (dw_dot is None) == (not need_dw)
    if need_dw:
        assert dw_dot.dtype == w.dtype
        shape = torch.broadcast_shapes(true_dw_dot.shape, true_dx_dot.shape[: -x.dim()] + w.shape)
        scale = over_rows(scales.dw_dot, x)
        check(dw_dot, true_dw_dot.expand(shape), scale, x, factors=3, terms=rows_of(x))


def check_jvp_backward(x, w, dy, x_dot, w_dot, offset, need_dw=True, need_dw_dot=True):
    args = (x, w, dy, x_dot, w_dot)
    needs = (need_dw, need_dw_dot)
    dx, dw, dx_dot, dw_dot = launch.rms_norm_jvp_backward(*args, EPS, offset, *needs)
    true_dx, true_dw, true_dx_dot, true_dw_dot = reference.rms_norm_jvp_backward(*double(*args), EPS, offset)
    scales = Scales(*args, None, offset)
    n_tangents = rows_of(dy) // max(rows_of(x), 1)
    k_dims = tuple(range(dy.dim() - x.dim()))
    assert (dx.dtype, dx_dot.dtype) == (x.dtype, x.dtype)
    check(dx, true_dx, scales.dx_dot.sum(k_dims) if k_dims else scales.dx_dot, x, 6, n_tangents)
    check(dx_dot, true_dx_dot, scales.dx, x, factors=4)
    assert ((dw is None), (dw_dot is None)) == (not need_dw, not need_dw_dot)
    if need_dw:
        assert dw.dtype == w.dtype
        check(dw, true_dw, over_all(scales.dw_dot), x, factors=3, terms=rows_of(dy))
    if need_dw_dot:
        assert dw_dot.dtype == w.dtype
        check(dw_dot, true_dw_dot, over_rows(scales.dw, x), x, factors=1, terms=rows_of(x))


def tangents(device, types, k_shape, *x_shape):
    """(ẋ, ẇ, dẏ) with leading sizes k_shape."""
    x_dot, dy_dot = (draw(device, types[0], *k_shape, *x_shape) for _ in range(2))
    return x_dot, draw(device, types[1], *k_shape, x_shape[-1]), dy_dot
