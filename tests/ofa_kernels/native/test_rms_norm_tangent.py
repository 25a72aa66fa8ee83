"""The CPU kernels at second order against float64: every absence of a tangent, K tangents of one primal."""

import itertools

import pytest
import torch

from ofa_kernels import native, reference
from tests.ofa_kernels.bounds import (
    EPS,
    F32,
    LONG_SIZES,
    SIZES,
    TYPES,
    assert_within,
    doubles,
    magnitudes,
    type_names,
)

pytestmark = [
    pytest.mark.usefixtures("nan_poisoned_empty"),
    pytest.mark.skipif(native.missing() is not None, reason=f"CPU kernels: {native.missing()}"),
]

TANGENTS = [(), (3,), (2, 2)]
SHAPES = [(3, 33), (70,), (2, 1, 3, 31), (1, 5)]
types = pytest.mark.parametrize("types", TYPES, ids=type_names)
sizes = pytest.mark.parametrize("size", SIZES)
operators = pytest.mark.parametrize("check", ["jvp", "backward_tangent", "jvp_backward"])


def tensors(leading, shape, types):
    """x, weight, dy and the tangents x_dot, weight_dot, dy_dot; the rows differ in scale."""
    scales = torch.logspace(-2, 2, shape[-2] if shape[1:] else 1)[:, None]
    x = (torch.randn(shape) * (scales if shape[1:] else 1)).to(types[0])
    weight, dy = torch.randn(shape[-1]).to(types[1]), torch.randn(shape).to(types[0])
    x_dot, dy_dot = (torch.randn(*leading, *shape).to(types[0]) for _ in range(2))
    return x, weight, dy, x_dot, torch.randn(*leading, shape[-1]).to(types[1]), dy_dot


def absences(count):
    """Which of the tangents are there; at least one is."""
    return [there for there in itertools.product([True, False], repeat=count) if any(there)]


def keep(there, *tangents):
    return [t if is_there else None for t, is_there in zip(tangents, there, strict=True)]


def check_jvp(leading, shape, types, offset):
    x, weight, _, *tangents, _ = tensors(leading, shape, types)
    for there in absences(2):
        x_dot, weight_dot = keep(there, *tangents)
        got = native.rms_norm_jvp(x, weight, x_dot, weight_dot, EPS, offset)
        truth = reference.rms_norm_jvp(*doubles(x, weight, x_dot, weight_dot), EPS, offset)
        scale = magnitudes(x, weight, offset, x_dot=x_dot, weight_dot=weight_dot).y_dot
        assert got.dtype == x.dtype
        assert_within(got, truth, scale, x, x.dtype, sums=3)


def check_backward_tangent(leading, shape, types, offset):
    x, weight, dy, *tangents = tensors(leading, shape, types)
    rows = x.numel() // shape[-1]
    for there in absences(3):
        x_dot, weight_dot, dy_dot = keep(there, *tangents)
        call = x, weight, dy, x_dot, weight_dot, dy_dot
        dx_dot, dw_dot = native.rms_norm_backward_tangent(*call, EPS, offset, True)
        truth = reference.rms_norm_backward_tangent(*doubles(*call), EPS, offset)
        scale = magnitudes(x, weight, offset, dy, x_dot, weight_dot, dy_dot)
        dw_scale = reference.sum_rows(scale.dw_dot, x.dim() - 1)
        assert (dx_dot.dtype, dw_dot.dtype) == types
        assert_within(dx_dot, truth[0].expand(dx_dot.shape), scale.dx_dot, x, x.dtype, sums=6)
        assert_within(dw_dot, truth[1].expand(dw_dot.shape), dw_scale, x, types[1], sums=3, terms=rows)
        alone, none = native.rms_norm_backward_tangent(*call, EPS, offset, False)
        assert torch.equal(alone, dx_dot)
        assert none is None


def check_jvp_backward(leading, shape, types, offset):
    x, weight, _, x_dot, weight_dot, dy = tensors(leading, shape, types)
    over_k, terms = tuple(range(len(leading))), dy.numel() // shape[-1]
    for there in absences(2):
        directions = keep(there, x_dot, weight_dot)
        got = native.rms_norm_jvp_backward(x, weight, dy, *directions, EPS, offset, True, True)
        truth = reference.rms_norm_jvp_backward(*doubles(x, weight, dy, *directions), EPS, offset)
        scale = magnitudes(x, weight, offset, dy, *directions)
        per_tangent = (reference.sum_rows(t, x.dim() - 1) for t in (scale.dw_dot, scale.dw))
        dx_scale = scale.dx_dot.expand(dy.shape)
        dw_scale, dw_dot_scale = (t.expand(*leading, shape[-1]) for t in per_tangent)
        if over_k:
            dx_scale, dw_scale = dx_scale.sum(over_k), dw_scale.sum(over_k)
        scales, sums = (dx_scale, dw_scale, scale.dx, dw_dot_scale), (6, 3, 3, 2)
        assert [t.dtype for t in got] == [*types, *types]
        for *of, n_sums in zip(got, truth, scales, sums, strict=True):
            assert_within(*of, x, of[0].dtype, sums=n_sums, terms=terms)
        partly = native.rms_norm_jvp_backward(x, weight, dy, *directions, EPS, offset, False, False)
        assert torch.equal(partly[0], got[0])
        assert torch.equal(partly[2], got[2])
        assert partly[1::2] == (None, None)


CHECKS = {"jvp": check_jvp, "backward_tangent": check_backward_tangent, "jvp_backward": check_jvp_backward}


@operators
@sizes
@types
def test_parity(check, types, size):
    for leading, offset in itertools.product(TANGENTS, [0.0, 1.0]):
        CHECKS[check](leading, (3, size), types, offset)


@operators
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_parity_of_any_shape(check, shape):
    for leading in TANGENTS:
        CHECKS[check](leading, shape, (F32, F32), 1.0)


@operators
@pytest.mark.parametrize("size", LONG_SIZES)
def test_parity_of_long_rows(set_threads, check, size):
    set_threads(2)
    for types in TYPES:
        CHECKS[check]((2,), (2, size), types, 0.0)


def test_the_trace_of_the_curvature_is_exact():
    # with x_dot running through a basis, the sum of <x_dot, dx_dot> is the trace, which has a closed form
    x, weight, dy, *_ = tensors((), (3, 70), (torch.float64, torch.float64))
    basis = torch.eye(70, dtype=torch.float64)[:, None].expand(70, 3, 70)
    dx_dot, _ = native.rms_norm_backward_tangent(x, weight, dy, basis, None, None, EPS, 1.0, False)
    expected = reference.rms_norm_curvature_trace(x, weight, dy, EPS, 1.0)
    torch.testing.assert_close((dx_dot * basis).sum((0, 2)), expected, rtol=1e-11, atol=0)
