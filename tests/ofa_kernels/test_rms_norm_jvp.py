import pytest
import torch

import ofa_kernels as ok
from ofa_kernels import reference
from tests.conftest import WITH_CUDA

BACKENDS = WITH_CUDA

EPS = 1e-5


def problem(device, *shape, k=(3,), dtype=torch.float64):
    x, w, x_dot = (torch.randn(s, device=device) for s in (shape, shape[-1:], (*k, *shape)))
    return x.to(dtype), w.to(torch.promote_types(dtype, torch.float32)), x_dot.to(dtype)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("k", [(), (3,), (2, 2)])
def test_it_is_torch_func_jvp(backend, device, k, offset):
    x, w, x_dot = problem(device, 2, 5, 17, k=k)
    found = ok.rms_norm_jvp(x, w, x_dot, EPS, offset)
    assert found.shape == x_dot.shape
    for direction, value in zip(x_dot.reshape(-1, *x.shape), found.reshape(-1, *x.shape), strict=True):
        expected = torch.func.jvp(lambda x: ok.rms_norm(x, w, EPS, offset), (x,), (direction,))[1]
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-13)


def test_gradients_of_everything(backend, device):
    inputs = [t.requires_grad_() for t in problem(device, 2, 5, k=(2,))]
    assert torch.autograd.gradcheck(lambda *t: ok.rms_norm_jvp(*t, EPS), inputs)
    assert torch.autograd.gradgradcheck(lambda *t: ok.rms_norm_jvp(*t, EPS), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_types_and_strides(backend, device, dtype):
    x, w, x_dot = problem(device, 6, 40, k=(2,), dtype=dtype)
    x, x_dot = x[::2, ::1], x_dot[:, ::2]
    found = ok.rms_norm_jvp(x, w, x_dot, EPS)
    truth = reference.rms_norm_jvp(x.double(), w.double(), x_dot.double(), None, EPS)
    assert found.dtype == dtype
    # one rounding of each result, and a few in float32 of what it is the sum of
    largest = (w.abs() * x_dot.double().norm(dim=-1, keepdim=True)).max()
    assert (found - truth).abs().max() <= torch.finfo(dtype).eps * truth.abs().max() + 1e-5 * largest


def test_nothing_of_nothing(backend, device):
    shapes = (0, 8), (8,), (3, 0, 8)
    x, w, x_dot = (torch.zeros(shape, device=device) for shape in shapes)
    assert ok.rms_norm_jvp(x, w, x_dot).shape == (3, 0, 8)


def test_what_does_not_fit_is_refused(device):
    x, w, x_dot = problem(device, 4, 8)
    with pytest.raises(ValueError, match=r"x_dot must be \[\*K, \*\(4, 8\)\]"):
        ok.rms_norm_jvp(x, w, x_dot[..., :7])
    with pytest.raises(ValueError, match="x_dot must be"):
        ok.rms_norm_jvp(x, w, x_dot[0, 0])
    with pytest.raises(TypeError, match="must have x's type"):
        ok.rms_norm_jvp(x, w, x_dot.float())
    with pytest.raises(ValueError, match="weight must be"):
        ok.rms_norm_jvp(x, w[:3], x_dot)
