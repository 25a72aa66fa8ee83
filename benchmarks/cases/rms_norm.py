"""What is timed of RMSNorm at first order."""

from types import ModuleType

from torch.autograd import grad

from benchmarks.harness.case import Call, Case, norm_makers
from benchmarks.harness.contenders import EPS, Norm
from benchmarks.harness.inputs import Inputs
from ofa_kernels import reference


def _forward(p: Inputs, n: Norm) -> Call:
    norm, x = n.ready(n.norm), p.x
    return lambda: norm(x)


def _forward_alone(p: Inputs, kernels: ModuleType) -> Call:
    x, w = p.x.detach(), p.gamma
    return lambda: kernels.rms_norm_forward(x, w, EPS, 0.0, "hf")


def _forward_truth(t):
    return (reference.rms_norm(t.x, t.gamma, EPS),), ()


def _backward(p: Inputs, n: Norm) -> Call:
    inputs, dy = (p.x, n.weight), p.dy
    y = n.ready(n.norm)(p.x)
    return lambda: grad(y, inputs, dy, retain_graph=True)


def _backward_alone(p: Inputs, kernels: ModuleType) -> Call:
    x, w, dy = p.x.detach(), p.gamma, p.dy
    return lambda: kernels.rms_norm_backward(x, w, dy, None, EPS, 0.0, True, True)


def _backward_truth(t):
    dx, dw = reference.rms_norm_backward(t.x, t.gamma, t.dy, EPS)
    return (dx,), (dw,)


def _both(p: Inputs, n: Norm) -> Call:
    norm, x, inputs, dy = n.ready(n.norm), p.x, (p.x, n.weight), p.dy

    def call():
        y = norm(x)
        return y, *grad(y, inputs, dy)

    return call


def _both_alone(p: Inputs, kernels: ModuleType) -> Call:
    forward, backward = _forward_alone(p, kernels), _backward_alone(p, kernels)
    return lambda: (forward(), *backward())


def _both_truth(t):
    (dx,), sums = _backward_truth(t)
    return (reference.rms_norm(t.x, t.gamma, EPS), dx), sums


def _add(p: Inputs, n: Norm) -> Call:
    add, x, residual = n.ready(n.add), p.x, p.residual
    inputs, cotangents = (x, residual, n.weight), (p.dy, p.ds)

    def call():
        outputs = add(x, residual)
        return *outputs, *grad(outputs, inputs, cotangents)

    return call


def _add_alone(p: Inputs, kernels: ModuleType) -> Call:
    x, residual, w, dy, ds = p.x.detach(), p.residual.detach(), p.gamma, p.dy, p.ds

    def call():
        y, s = kernels.add_rms_norm_forward(x, residual, w, EPS, 0.0, "hf")
        dx, dw = kernels.rms_norm_backward(s, w, dy, ds, EPS, 0.0, True, True)
        return y, s, dx, dx, dw

    return call


def _add_truth(t):
    s = (t.x + t.residual).to(t.dtype).double()  # the sum is rounded before it is normalised
    dx, dw = reference.rms_norm_backward(s, t.gamma, t.dy, EPS)
    dx = dx + t.ds
    return (reference.rms_norm(s, t.gamma, EPS), s, dx, dx), (dw,)


FORWARD = Case("forward", "forward", norm_makers(_forward, _forward_alone), _forward_truth, recorded=False)
BACKWARD = Case("backward", "backward", norm_makers(_backward, _backward_alone), _backward_truth)
BOTH = Case("forward + backward", "forward + backward", norm_makers(_both, _both_alone), _both_truth)
ADD = Case(
    "add + norm, forward + backward",
    "add + norm, forward + backward",
    norm_makers(_add, _add_alone),
    _add_truth,
)
