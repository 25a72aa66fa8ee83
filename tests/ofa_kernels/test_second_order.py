"""Second order through the public operators: Hessian-vector products, tangents in a batch, none ever lost."""

import shutil

import pytest
import torch
from torch.autograd import forward_ad

from ofa_kernels import hutchinson_trace, native, reference, rms_norm
from ofa_kernels.probes import probe_signs
from tests.conftest import WITH_CUDA

BACKENDS = WITH_CUDA

EPS = 1e-6
F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16


def composed_norm(x, weight, eps=EPS):
    return reference.rms_norm(x, weight, eps)


def mlp(norm, x, w1, w2, mix, out):
    """A scalar of an MLP with two norms."""
    return (norm(torch.tanh(norm(x, w1) @ mix), w2) @ out).tanh().sum()


def problem(dtype, device, size=48):
    """x, w1, w2, mix and out, scaled so that no tanh saturates: its derivatives would be rounding errors."""
    shapes = (5, size), (size,), (size,), (size, size), (size,)
    x, w1, w2, mix, out = (torch.randn(shape, device=device, dtype=F64) for shape in shapes)
    return [t.to(dtype) for t in (x / size**0.5, w1, w2, mix / size**0.5, out / size**0.5)]


def hessian_vector_product(norm, arguments, direction, how):
    """∇² f · v in (x, w1, w2), in one of the three ways PyTorch has."""

    def f(*varied):
        return mlp(norm, *varied, *arguments[3:])

    varied = tuple(arguments[:3])
    if how == "forward over reverse":
        return torch.func.jvp(torch.func.grad(f, (0, 1, 2)), varied, direction)[1]
    if how == "reverse over forward":
        return torch.func.grad(lambda *v: torch.func.jvp(f, v, direction)[1], (0, 1, 2))(*varied)
    leaves = [t.clone().requires_grad_() for t in varied]
    gradients = torch.autograd.grad(f(*leaves), leaves, create_graph=True)
    inner = sum((g * v).sum() for g, v in zip(gradients, direction, strict=True))
    return torch.autograd.grad(inner, leaves)


def relative(got, truth):
    return max(((a.double() - b).norm() / b.norm()).item() for a, b in zip(got, truth, strict=True))


@pytest.mark.parametrize("how", ["forward over reverse", "reverse over forward", "reverse over reverse"])
@pytest.mark.parametrize("dtype", [F64, F32, BF16], ids=str)
def test_hessian_vector_products_of_an_mlp(backend, device, dtype, how):
    error = eager = 0.0
    for _ in range(4):  # rounding is luck in any one of them
        arguments = problem(dtype, device)
        direction = tuple(torch.randn_like(t) for t in arguments[:3])
        exact = [t.double() for t in arguments]
        truth = hessian_vector_product(composed_norm, exact, tuple(v.double() for v in direction), how)
        error += relative(hessian_vector_product(rms_norm, arguments, direction, how), truth)
        eager += relative(hessian_vector_product(composed_norm, arguments, direction, how), truth)
    assert error < 1e-12 if dtype == F64 else error <= 2 * eager


def test_batched_tangents_read_the_primal_once(monkeypatch, device):
    if native.missing():
        pytest.skip(native.missing())
    monkeypatch.setenv("OFA_BACKEND", "native")
    calls = []
    original = native.rms_norm_backward_tangent

    def noting(*given, **named):
        calls.append(given[3].shape)
        return original(*given, **named)

    monkeypatch.setattr(native, "rms_norm_backward_tangent", noting)
    x, weight, dy = torch.randn(3, 7, 40).unbind()[0], torch.randn(40), torch.randn(7, 40)
    directions = torch.randn(2, 8, 7, 40)

    def product(norm, v):
        gradient = torch.func.grad(lambda x: (norm(x, weight) * dy).sum())
        return torch.func.jvp(gradient, (x,), (v,))[1]

    twice = torch.func.vmap(torch.func.vmap(lambda v: product(rms_norm, v)))(directions)
    assert calls == [directions.shape]
    expected = torch.func.vmap(torch.func.vmap(lambda v: product(composed_norm, v)))(directions)
    torch.testing.assert_close(twice, expected)


def test_the_exact_trace_of_the_local_curvature(backend, device):
    x, weight, dy = (torch.randn(shape, device=device, dtype=F64) for shape in ((4, 9), (9,), (4, 9)))

    def gradient(x):
        return torch.func.grad(lambda x: (rms_norm(x, weight, EPS) * dy).sum())(x)

    ones = torch.ones_like(x)
    exact = reference.rms_norm_curvature_trace(x, weight, dy, EPS)
    torch.testing.assert_close(
        reference.jacobian_trace(gradient, x, ones), exact, rtol=1e-12, atol=1e-12 * exact.abs().max().item()
    )
    estimate = hutchinson_trace(gradient, x, ones, n_probes=100, seed=11)
    assert ((estimate.value - exact).abs() <= 4 * estimate.stderr).all()


def test_forward_ad_sees_a_backward_pass_that_is_not_recorded(backend, device):
    x, weight, dy, tangent = (
        torch.randn(s, device=device, dtype=F64) for s in ((3, 5), (5,), (3, 5), (3, 5))
    )
    found = []
    for norm in (rms_norm, composed_norm):
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x.clone().requires_grad_(), tangent)
            (dx,) = torch.autograd.grad(norm(dual, weight), dual, dy)
            found.append(forward_ad.unpack_dual(dx).tangent)
    assert found[0] is not None
    torch.testing.assert_close(*found)


def test_forward_ad_without_recording_keeps_the_tangent(backend, device):
    x, weight, tangent = (torch.randn(s, device=device, dtype=F64) for s in ((3, 5), (5,), (3, 5)))
    with torch.no_grad(), forward_ad.dual_level():
        got = forward_ad.unpack_dual(rms_norm(forward_ad.make_dual(x, tangent), weight)).tangent
    torch.testing.assert_close(got, reference.rms_norm_jvp(x, weight, tangent, None, EPS))


@pytest.mark.skipif(
    not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler"
)
def test_jvp_inside_a_compiled_function(backend, device):
    if backend == "cuda":
        pytest.skip("Inductor's programs are the same for every backend")
    x, weight, tangent = (torch.randn(s, device=device, dtype=F64) for s in ((3, 70), (70,), (3, 70)))

    def product(x, tangent):
        return torch.func.jvp(lambda x: rms_norm(x, weight, EPS).sin(), (x,), (tangent,))[1]

    torch._dynamo.reset()
    got = torch.compile(product, fullgraph=True)(x, tangent)
    assert got.abs().min() > 0
    torch.testing.assert_close(got, product(x, tangent), rtol=1e-12, atol=1e-12)


def test_derivatives_of_the_batched_jvp(backend, device):
    z, weight = (torch.randn(s, device=device, dtype=F64).requires_grad_() for s in ((3, 4), (4,)))
    signs = probe_signs(z.detach(), 5, 6)

    def loss(norm, z, weight):
        def product(v):
            return torch.func.jvp(lambda z, w: norm(z, w, EPS).tanh(), (z, weight), (v * weight, v[0]))[1]

        return (signs * torch.func.vmap(product)(signs)).sum()

    for transform in (
        lambda f: torch.autograd.grad(f(z, weight), (z, weight)),
        lambda f: torch.func.grad(f, (0, 1))(z, weight),
        lambda f: torch.func.hessian(f, (0, 1))(z, weight)[0],
        lambda f: torch.func.jvp(torch.func.grad(f, (0, 1)), (z, weight), (z.sin(), weight.sin()))[1],
    ):
        got, truth = (transform(lambda z, w, n=norm: loss(n, z, w)) for norm in (rms_norm, composed_norm))
        assert relative(got, [t.detach() for t in truth]) < 1e-10
