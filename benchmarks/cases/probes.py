"""What is timed of the probes and the step ratio."""

import torch
from torch import Tensor
from torch.autograd import grad

from benchmarks.harness import contenders
from benchmarks.harness.case import Call, Case, Maker, alone
from benchmarks.harness.contenders import EPS
from benchmarks.harness.inputs import SEED, Inputs
from ofa_kernels import preconditioned_probes, probe_dot, rademacher, reference, step_ratio

EAGER = "eager PyTorch"
COMPILED = "torch.compile(eager PyTorch)"


def _random_signs(like: Tensor, k: int) -> Tensor:
    """±1 as a user without seeds would draw them."""
    shape = k, *like.shape
    return torch.randint(0, 2, shape, device=like.device).mul_(2).sub_(1).to(like.dtype)


def _weight(p: Inputs) -> Tensor:
    return p.gamma.clone().requires_grad_()


def _rademacher_eager(p: Inputs, _) -> Call:
    x, k = p.x.detach(), p.k
    return lambda: _random_signs(x, k)


def _rademacher_ours(p: Inputs, _) -> Call:
    shape = p.k, p.rows, p.columns
    return lambda: rademacher(shape, SEED, p.device, p.dtype)


def _rademacher_alone(p: Inputs, kernels) -> Call:
    ids, layers = p.ids, torch.zeros(1, dtype=torch.int64, device=p.device)
    return lambda: kernels.rademacher(p.columns, ids, p.k, layers, SEED, p.dtype)[0]


def _probes(make) -> Maker:
    """The call of `make(z, weight) -> p` and the gradients of ⟨dp, p⟩."""

    def maker(p: Inputs, _) -> Call:
        z, weight, dp = p.x, _weight(p), p.dy_dot

        def call():
            probes = make(p, z, weight)
            dz, dw = grad(probes, (z, weight), dp)
            return probes, dz, dw

        return call

    return maker


def _probes_eager(p: Inputs, z: Tensor, weight: Tensor) -> Tensor:
    acc = reference.accumulation_dtype(z)
    sigma = (z.to(acc).pow(2).mean(-1, keepdim=True) + EPS).sqrt()
    return ((weight / sigma) * _random_signs(z, p.k)).to(z.dtype)


def _probes_ours(p: Inputs, z: Tensor, weight: Tensor) -> Tensor:
    return preconditioned_probes(z, weight, EPS, SEED, p.k)


def _probes_alone(p: Inputs, kernels) -> Call:
    z, w, ids, dp = p.x.detach(), p.gamma, p.ids, p.dy_dot

    def call():
        probes = kernels.preconditioned_probes(z, w, EPS, 0.0, SEED, p.k, ids, 0)
        return probes, *kernels.preconditioned_probes_backward(z, w, dp, EPS, 0.0, SEED, ids, 0)

    return call


def _probes_truth(t):
    probes = reference.preconditioner(t.x, t.gamma, EPS) * t.signs
    dz, dw = reference.preconditioned_probes_backward(t.x, t.gamma, t.signs, t.dy_dot, EPS)
    return (probes, dz), (dw,)


def _dots(make) -> Maker:
    """The call of `make(inputs, t) -> [k, rows]` and its gradient, for a cotangent of ones."""

    def maker(p: Inputs, _) -> Call:
        t, ones = p.x_dot, torch.ones(p.k, p.rows, device=p.device)

        def call():
            dots = make(p, t)
            return dots[..., None], *grad(dots, t, ones)

        return call

    return maker


def _dots_eager(p: Inputs, t: Tensor) -> Tensor:
    return (p.signs * t).sum(-1, dtype=torch.float32)


def _dots_ours(p: Inputs, t: Tensor) -> Tensor:
    return probe_dot(t, SEED)


def _dots_alone(p: Inputs, kernels) -> Call:
    t, ids, ones = p.x_dot.detach(), p.ids, torch.ones(p.k, p.rows, device=p.device)

    def call():
        dots = kernels.probe_dot(t, SEED, ids, 0)
        return dots[..., None], kernels.probe_scale(ones, p.columns, SEED, ids, 0, t.dtype)

    return call


def _dots_truth(t):
    return ((t.signs * t.x_dot).sum(-1, keepdim=True), t.signs), ()


def _step_ratio_eager(states: Tensor) -> Tensor:
    lengths = states.to(reference.accumulation_dtype(states)).diff(dim=0).norm(dim=-1)
    return (lengths[1:] / lengths[:-1]).sum(0).mean()


def _steps(make) -> Maker:
    def maker(p: Inputs, _) -> Call:
        states = p.x_dot
        ratio = make()

        def call():
            value = ratio(states)
            return *grad(value, states), value

        return call

    return maker


def _compiled_step_ratio():
    torch._dynamo.reset()
    return torch.compile(_step_ratio_eager, fullgraph=True, dynamic=False)


def _steps_alone(p: Inputs, kernels) -> Call:
    states, rows = p.x_dot.detach(), p.rows

    def call():
        lengths = kernels.step_lengths(states)
        inverse = 1 / (lengths[:-1] * rows)
        ratios = lengths[1:] / lengths[:-1]
        dlengths = torch.zeros_like(lengths)
        dlengths[1:] = inverse
        dlengths[:-1] -= ratios * inverse
        return kernels.step_lengths_backward(states, lengths, dlengths), ratios.sum(0).mean()

    return call


def _steps_truth(t):
    states = t.x_dot.requires_grad_()
    with torch.enable_grad():
        value = _step_ratio_eager(states) * states.shape[1] / t.all_rows
    return grad(value, states), (value.detach(),)


def rademacher_case(k: int) -> Case:
    """K probes a row."""
    makers = {
        EAGER: _rademacher_eager,
        contenders.OURS: _rademacher_ours,
        contenders.KERNELS_ALONE: alone(_rademacher_alone),
    }
    return Case(
        f"rademacher, K = {k}", "rademacher", makers, lambda t: ((t.signs,), ()), k, False, EAGER, (EAGER,)
    )


def probes_case(k: int) -> Case:
    """K preconditioned probes and the gradients through them."""
    makers = {
        EAGER: _probes(_probes_eager),
        contenders.OURS: _probes(_probes_ours),
        contenders.KERNELS_ALONE: alone(_probes_alone),
    }
    name = "preconditioned probes, forward + backward"
    return Case(f"{name}, K = {k}", name, makers, _probes_truth, k, True, EAGER, (EAGER,))


def dots_case(k: int) -> Case:
    """K products with probes and the gradients through them; eager code keeps the signs, ours makes them."""
    makers = {
        EAGER: _dots(_dots_eager),
        contenders.OURS: _dots(_dots_ours),
        contenders.KERNELS_ALONE: alone(_dots_alone),
    }
    name = "probe dot, forward + backward"
    return Case(f"{name}, K = {k}", name, makers, _dots_truth, k, True, EAGER)


def steps_case(states: int) -> Case:
    """The step ratio of so many successive states, and its gradient."""
    makers = {
        EAGER: _steps(lambda: _step_ratio_eager),
        COMPILED: _steps(_compiled_step_ratio),
        contenders.OURS: _steps(lambda: step_ratio),
        contenders.KERNELS_ALONE: alone(_steps_alone),
    }
    name = "step ratio, forward + backward"
    # a state's gradient is a difference of two nearly equal terms where successive steps are equally long
    return Case(
        f"{name}, {states} states", name, makers, _steps_truth, states, True, EAGER, cancellation=30.0
    )
