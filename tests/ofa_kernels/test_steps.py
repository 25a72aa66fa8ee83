"""The step ratio on every backend: values and derivatives against the definition, written out."""

import shutil

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from ofa_kernels import step_ratio
from tests.conftest import WITH_CUDA

BACKENDS = WITH_CUDA

pytestmark = pytest.mark.usefixtures("nan_poisoned_empty")


def by_definition(states):
    """Σ_t ‖Z_t - Z_{t+1}‖ / ‖Z_t - Z_{t-1}‖, mean over examples, one number at a time."""
    total = 0.0
    for b in range(states.shape[1]):
        z = states[:, b]
        for t in range(1, len(z) - 1):
            total = total + ((z[t] - z[t + 1]) ** 2).sum().sqrt() / ((z[t] - z[t - 1]) ** 2).sum().sqrt()
    return total / states.shape[1]


@pytest.mark.parametrize("shape", [(3, 1, 1), (4, 2, 70), (7, 3, 129), (31, 2, 576)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_value_and_gradient(backend, device, dtype, shape):
    states = torch.randn(shape, device=device).to(dtype).requires_grad_()
    value = step_ratio(states)
    (gradient,) = torch.autograd.grad(value, states)
    exact = states.detach().double().requires_grad_()
    truth = by_definition(exact)
    (true_gradient,) = torch.autograd.grad(truth, exact)

    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert gradient.dtype == dtype
    acc = torch.finfo(value.dtype).eps * shape[2] ** 0.5
    assert abs(value.item() - truth.item()) <= 8 * acc * truth.item()
    # a state's gradient is a difference of two steps' unit vectors; on a CPU, Triton's interpreter truncates
    scale = true_gradient.abs().amax(0, keepdim=True)
    error = ((gradient.double() - true_gradient).abs() / scale).max().item()
    assert error <= torch.finfo(dtype).eps + 16 * acc


@pytest.mark.parametrize(
    "layout",
    [
        lambda z: z.transpose(0, 1).contiguous().transpose(0, 1),
        lambda z: z.transpose(1, 2).contiguous().transpose(1, 2),
        lambda z: torch.cat([z, z], -1)[..., : z.shape[-1]],
        lambda z: torch.cat([z, z], 1)[:, ::2],
    ],
    ids=["examples first", "columns not last", "columns of a wider tensor", "every second example"],
)
def test_any_strides(backend, device, layout):
    states = layout(torch.randn(4, 4, 70, device=device, dtype=torch.float64)).requires_grad_()
    (gradient,) = torch.autograd.grad(step_ratio(states), states)
    (truth,) = torch.autograd.grad(by_definition(states), states)
    torch.testing.assert_close(gradient, truth)


def test_gradcheck_at_first_and_second_order(backend, device):
    states = torch.randn(4, 2, 3, device=device, dtype=torch.float64, requires_grad=True)
    assert gradcheck(step_ratio, states, check_forward_ad=True)
    assert gradgradcheck(step_ratio, states)


def test_vmap_and_hessian(backend, device):
    states = torch.randn(2, 4, 2, 3, device=device, dtype=torch.float64)
    for transform in (lambda f: f, torch.func.grad, torch.func.hessian):
        got = torch.func.vmap(transform(step_ratio))(states)
        torch.testing.assert_close(got, torch.func.vmap(transform(by_definition))(states))


def test_per_step_ratios(backend, device):
    states = torch.randn(5, 3, 7, device=device)
    value, ratios = step_ratio(states, per_step=True)
    assert ratios.shape == (3, 3)
    torch.testing.assert_close(value, ratios.sum(0).mean())


def test_one_layer_has_no_ratio(backend, device):
    value, ratios = step_ratio(torch.randn(2, 3, 4, device=device), per_step=True)
    assert value == 0 and ratios.shape == (0, 3)


def test_a_step_of_nothing_is_named_on_the_host(monkeypatch):
    monkeypatch.delenv("OFA_BACKEND", raising=False)
    states = torch.randn(4, 2, 5)
    states[2, 1] = states[1, 1]
    with pytest.raises(ValueError, match="Z_2 equals Z_1 in example 1, so the ratio at t=2"):
        step_ratio(states)


def test_a_last_step_of_nothing_has_no_gradient(backend, device):
    states = torch.randn(4, 2, 5, device=device)
    states[3] = states[2]
    states.requires_grad_()
    (gradient,) = torch.autograd.grad(step_ratio(states), states)
    assert gradient.isfinite().all() and (gradient[3] == 0).all()


@pytest.mark.parametrize("shape", [(3, 4), (1, 2, 3), (3, 0, 4)], ids=str)
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"must be \[T\+1, B, D\] with T, B, D >= 1"):
        step_ratio(torch.ones(shape))


@pytest.mark.skipif(
    not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler"
)
def test_compiles_without_graph_breaks(device):
    states = torch.randn(4, 2, 5, device=device, dtype=torch.float64)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(step_ratio, fullgraph=True)(states), step_ratio(states))
