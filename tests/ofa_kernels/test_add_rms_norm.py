"""The norm of a sum, in one pass: the same as the sum and then the norm."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from ofa_kernels import add_rms_norm, reference, rms_norm
from tests.conftest import WITH_CUDA
from tests.ofa_kernels.bounds import magnitudes

BACKENDS = WITH_CUDA

pytestmark = pytest.mark.usefixtures("nan_poisoned_empty")

EPS = 1e-6
F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(3, 70), (2, 3, 129), (5,), (0, 7)], ids=str)
@pytest.mark.parametrize("dtype", [F64, F32, BF16, F16], ids=str)
def test_is_the_norm_of_the_sum(backend, device, dtype, shape, offset):
    x, residual, dy, ds = (torch.randn(shape, device=device).to(dtype) for _ in range(4))
    weight = torch.randn(shape[-1], device=device)
    leaves = [t.clone().requires_grad_() for t in (x, residual, weight)]
    y, s = add_rms_norm(*leaves, EPS, offset)
    dx, dresidual, dw = torch.autograd.grad((y, s), leaves, (dy, ds))

    if dtype == BF16 and backend == "triton" and not torch.cuda.is_available():  # the interpreter truncates
        torch.testing.assert_close(s, x + residual, rtol=torch.finfo(BF16).eps, atol=0)
    else:
        assert torch.equal(s, x + residual)
    total, gamma = s.detach().clone().requires_grad_(), weight.clone().requires_grad_()
    separate = rms_norm(total, gamma, EPS, offset)
    assert torch.equal(y, separate)
    dtotal, dgamma = torch.autograd.grad(separate, (total, gamma), dy)
    assert torch.equal(dw, dgamma) and torch.equal(dx, dresidual)
    # the same terms, added in two orders; a kernel rounds once where the sum of two rounds twice
    scale = magnitudes(s.detach(), weight, offset, dy).dx + ds.double().abs()
    error = (dx.double() - (dtotal.double() + ds.double())).abs()
    assert (error <= 2 * torch.finfo(dtype).eps * scale).all()


def test_gradients_of_one_output_at_a_time(backend, device):
    leaves = [torch.randn(s, device=device, dtype=F64).requires_grad_() for s in ((2, 5), (2, 5), (5,))]
    for index in (0, 1):
        got = torch.autograd.grad(add_rms_norm(*leaves)[index].tanh().sum(), leaves, allow_unused=True)
        truth = reference.add_rms_norm(*leaves, EPS)[index].tanh().sum()
        for a, b in zip(got, torch.autograd.grad(truth, leaves, allow_unused=True), strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b)


def test_gradcheck_at_first_and_second_order(backend, device):
    arguments = [torch.randn(s, device=device, dtype=F64).requires_grad_() for s in ((2, 3), (2, 3), (3,))]

    def norm(*arguments):
        return add_rms_norm(*arguments, 1e-3, 1.0)

    assert gradcheck(norm, arguments, check_forward_ad=True)
    assert gradgradcheck(norm, arguments, check_fwd_over_rev=True)


@pytest.mark.parametrize("in_dims", [(0, 1, None), (0, None, None), (None, 0, 0)], ids=str)
def test_under_transforms(backend, device, in_dims):
    sizes = {None: (4, 6), 0: (3, 4, 6), 1: (4, 3, 6)}
    x, residual = (torch.randn(sizes[d], device=device, dtype=F64) for d in in_dims[:2])
    weight = torch.randn((6,) if in_dims[2] is None else (3, 6), device=device, dtype=F64)

    def scalar(norm):
        return lambda *a: sum(t.tanh().sum() for t in norm(*a, EPS))

    for transform in (torch.func.grad, torch.func.hessian, torch.func.jacfwd):
        got, truth = (
            torch.func.vmap(transform(scalar(norm), argnums=(0, 1, 2)), in_dims)(x, residual, weight)
            for norm in (add_rms_norm, reference.add_rms_norm)
        )
        torch.testing.assert_close(got, truth)


@pytest.mark.parametrize(
    ("error", "message", "residual"),
    [
        (TypeError, r"x's type torch.float32, got torch.bfloat16", torch.ones(2, 3, dtype=BF16)),
        (ValueError, r"like x, \(2, 3\) on cpu, got \(3,\)", torch.ones(3)),
        (ValueError, r"got \(2, 3\) on meta", torch.ones(2, 3, device="meta")),
    ],
    ids=["type", "shape", "device"],
)
def test_mistakes_are_named(error, message, residual):
    with pytest.raises(error, match=message):
        add_rms_norm(torch.ones(2, 3), residual, torch.ones(3))
