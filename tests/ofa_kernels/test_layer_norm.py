"""`layer_norm` against the formula, at every order and under every transform."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.func import grad, hessian, jvp, vmap

import ofa_kernels as ok

EPS = 1e-5
SHAPES = [(1,), (3, 1), (5, 7), (2, 3, 24), (0, 4), (4, 129)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def formula(x, weight, bias):
    centred = x - x.mean(-1, keepdim=True)
    y = weight * centred / (centred.pow(2).mean(-1, keepdim=True) + EPS).sqrt()
    return y if bias is None else y + bias


def tensors(*shape, with_bias=True, dtype=torch.float64):
    n = shape[-1:]
    bias = torch.randn(n, dtype=dtype) if with_bias else None
    return torch.randn(shape, dtype=dtype), torch.randn(n, dtype=dtype), bias


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_formula(shape, with_bias):
    x, weight, bias = tensors(*shape, with_bias=with_bias)
    torch.testing.assert_close(ok.layer_norm(x, weight, bias, EPS), formula(x, weight, bias))


@pytest.mark.parametrize("parameters", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_types(dtype, parameters):
    """One rounding at the end, so that one type for all is `nn.LayerNorm` to the bit."""
    x, weight, bias = (t.to(d) for t, d in zip(tensors(9, 129), (dtype, parameters, parameters), strict=True))
    y = ok.layer_norm(x, weight, bias, EPS)
    assert y.dtype == dtype
    if dtype == parameters:
        assert torch.equal(y, F.layer_norm(x, (129,), weight, bias, EPS))
    truth = formula(x.double(), weight.double(), bias.double())
    ulp = torch.finfo(dtype).eps
    bound = 0.51 * ulp * truth.abs() + 1e-5 * (dtype != torch.float64) + 1e-12
    assert ((y.double() - truth).abs() <= bound).all()
    assert jvp(lambda x: ok.layer_norm(x, weight, bias, EPS), (x,), (x,))[1].dtype == dtype


def test_strides():
    x, weight, bias = tensors(6, 5)
    expected = formula(x.T, weight[:1].expand(6), bias[:1].expand(6))
    torch.testing.assert_close(ok.layer_norm(x.T, weight[:1].expand(6), bias[:1].expand(6), EPS), expected)


@pytest.mark.parametrize("with_bias", [True, False])
def test_gradcheck_and_gradgradcheck(with_bias):
    inputs = [t.requires_grad_() for t in tensors(3, 5, with_bias=with_bias) if t is not None]

    def fn(*given):
        return ok.layer_norm(*given, eps=EPS)

    assert torch.autograd.gradcheck(fn, inputs, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(fn, inputs, check_fwd_over_rev=True, check_rev_over_rev=True)


ORDERS = {
    "jvp": lambda f, x, v: jvp(f, (x,), (v,))[1],
    "vmap of jvp": lambda f, x, v: vmap(lambda u: jvp(f, (x,), (u,))[1])(torch.stack([v, v * v])),
    "gradient of a jvp": lambda f, x, v: grad(lambda x: jvp(f, (x,), (v,))[1].sin().sum())(x),
    "jvp of a jvp": lambda f, x, v: jvp(lambda x: jvp(f, (x,), (v,))[1].sin(), (x,), (v * v,))[1],
    "jvp of a gradient": lambda f, x, v: jvp(grad(lambda x: f(x).sin().sum()), (x,), (v,))[1],
    "hessian": lambda f, x, v: hessian(lambda x: f(x).sin().sum())(x),
    "gradient of a hessian": lambda f, x, v: grad(lambda x: hessian(lambda x: f(x).sin().sum())(x).sum())(x),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("wrt", ["x", "weight", "bias"])
def test_every_order(order, wrt):
    """PyTorch's own `layer_norm` fails here: its tangent has no derivative, and says nothing."""
    given = dict(zip(("x", "weight", "bias"), tensors(2, 5), strict=True))
    at, direction = given[wrt], torch.randn_like(given[wrt])

    def run(fn):
        return ORDERS[order](lambda t: fn(**{**given, wrt: t}), at, direction)

    found, expected = run(partial(ok.layer_norm, eps=EPS)), run(formula)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_it_compiles_and_a_jvp_inside_is_right():
    x, weight, bias = tensors(3, 5)

    def both(x):
        return jvp(lambda x: ok.layer_norm(x, weight, bias, EPS).sin(), (x,), (x,))

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    for found, expected in zip(compiled(x), both(x), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weight": torch.ones(4)}, ValueError, r"weight must be \[N\]"),
        ({"bias": torch.ones(2, 5)}, ValueError, r"got \(2, 5\) for \(3, 5\)"),
        ({"x": torch.ones(3, 5, dtype=torch.int64)}, TypeError, "must be floating point"),
    ],
)
def test_what_does_not_fit_is_refused(change, error, message):
    given = {"x": torch.ones(3, 5), "weight": torch.ones(5), "bias": torch.ones(5)}
    with pytest.raises(error, match=message):
        ok.layer_norm(**{**given, **change})
