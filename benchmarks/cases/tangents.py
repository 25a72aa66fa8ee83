"""What is timed of RMSNorm's tangents: JVPs, double backward, and K tangents of the backward at once."""

from functools import partial
from types import ModuleType

from torch import Tensor
from torch.autograd import grad
from torch.func import jvp, vjp, vmap

from benchmarks.harness import contenders
from benchmarks.harness.case import OURS, Call, Case, norm_makers
from benchmarks.harness.contenders import EPS, Norm
from benchmarks.harness.inputs import Inputs
from ofa_kernels import reference

# no PyTorch compiles a second derivative taken by autograd
SECOND_ORDER = (contenders.EAGER, contenders.FUNCTIONAL, contenders.LIGER, contenders.COMPOSED, *OURS)


def _jvp(p: Inputs, n: Norm) -> Call:
    x, x_dot = p.x.detach(), p.x_dot[0].detach()
    run = n.ready(lambda x, x_dot: jvp(n.norm, (x,), (x_dot,)))
    return lambda: run(x, x_dot)


def _norm_alone(p: Inputs, kernels: ModuleType) -> Call:
    x, w = p.x.detach(), p.gamma
    return lambda: kernels.rms_norm_forward(x, w, EPS, 0.0, "hf")


def _jvp_alone(p: Inputs, kernels: ModuleType) -> Call:
    forward, x, w, x_dot = _norm_alone(p, kernels), p.x.detach(), p.gamma, p.x_dot[0].detach()
    return lambda: (forward(), kernels.rms_norm_jvp(x, w, x_dot, None, EPS, 0.0))


def _jvp_truth(t):
    y_dot = reference.rms_norm_jvp(t.x, t.gamma, t.x_dot[0], None, EPS)
    return (reference.rms_norm(t.x, t.gamma, EPS), y_dot), ()


def _jvps_and_gradients(p: Inputs, n: Norm) -> Call:
    x, x_dot, dy_dot, inputs = p.x, p.x_dot, p.dy_dot, (p.x, p.x_dot, n.weight)

    def call():
        y_dot = vmap(lambda direction: jvp(n.norm, (x,), (direction,))[1])(x_dot)
        return y_dot, *grad(y_dot, inputs, dy_dot)

    return call


def _jvps_and_gradients_alone(p: Inputs, kernels: ModuleType) -> Call:
    x, w, x_dot, dy_dot = p.x.detach(), p.gamma, p.x_dot.detach(), p.dy_dot

    def call():
        y_dot = kernels.rms_norm_jvp(x, w, x_dot, None, EPS, 0.0)
        dx, dw, dx_dot, _ = kernels.rms_norm_jvp_backward(x, w, dy_dot, x_dot, None, EPS, 0.0, True, False)
        return y_dot, dx, dx_dot, dw

    return call


def _jvps_and_gradients_truth(t):
    y_dot = reference.rms_norm_jvp(t.x, t.gamma, t.x_dot, None, EPS)
    dx, dw, dx_dot, _ = reference.rms_norm_jvp_backward(t.x, t.gamma, t.dy_dot, t.x_dot, None, EPS)
    return (y_dot, dx, dx_dot), (dw,)


def _double_backward(p: Inputs, n: Norm) -> Call:
    x, inputs, dy, u = p.x, (p.x, n.weight), p.dy, p.x_dot[0].detach()

    def call():
        y = n.norm(x)
        (dx,) = grad(y, x, dy, create_graph=True)
        return y, dx, *grad(dx, inputs, u)

    return call


def _double_backward_alone(p: Inputs, kernels: ModuleType) -> Call:
    x, w, dy, u = p.x.detach(), p.gamma, p.dy, p.x_dot[0].detach()
    forward = _norm_alone(p, kernels)

    def call():
        y = forward()
        dx, _ = kernels.rms_norm_backward(x, w, dy, None, EPS, 0.0, True, False)
        return y, dx, *kernels.rms_norm_backward_tangent(x, w, dy, u, None, None, EPS, 0.0, True)

    return call


def _double_backward_truth(t):
    dx, _ = reference.rms_norm_backward(t.x, t.gamma, t.dy, EPS)
    hx, hw = reference.rms_norm_backward_tangent(t.x, t.gamma, t.dy, t.x_dot[0], None, None, EPS)
    return (reference.rms_norm(t.x, t.gamma, EPS), dx, hx), (hw,)


def _tangents(p: Inputs, n: Norm, with_dy: bool) -> Call:
    """K tangents of the backward: one vmap where the norm can, else K double-backward calls of one graph."""
    x, dy = p.x, p.dy
    x_dot, weight_dot = p.x_dot.detach(), p.weight_dot
    dy_dot = p.dy_dot if with_dy else None

    of = n.of
    if of is not None:
        weight, x = n.weight.detach(), x.detach()

        def backward(x: Tensor, weight: Tensor, dy: Tensor):
            return vjp(of, x, weight)[1](dy)

        def along(*direction: Tensor):
            primals = (x, weight, dy)[: len(direction)]
            rest = (dy,)[: 3 - len(direction)]
            return jvp(lambda *primals: backward(*primals, *rest), primals, direction)[1]

        directions = (x_dot, weight_dot) if dy_dot is None else (x_dot, weight_dot, dy_dot)
        batched = vmap(along)
        return lambda: batched(*directions)

    inputs, weight_dot = (x, n.weight), weight_dot.to(n.weight.dtype)

    def call():
        y = n.norm(x)
        gradients = grad(y, inputs, dy, create_graph=True)
        results = []
        for i in range(len(x_dot)):
            result = grad(gradients, inputs, (x_dot[i], weight_dot[i]), retain_graph=True)
            if dy_dot is not None:
                more = grad(y, inputs, dy_dot[i], retain_graph=True)
                result = tuple(a + b for a, b in zip(result, more, strict=True))
            results.append(result)
        return results

    return call


def _tangents_alone(p: Inputs, kernels: ModuleType, with_dy: bool) -> Call:
    x, w, dy = p.x.detach(), p.gamma, p.dy
    directions = p.x_dot.detach(), p.weight_dot, p.dy_dot if with_dy else None
    return lambda: kernels.rms_norm_backward_tangent(x, w, dy, *directions, EPS, 0.0, True)


def _tangents_truth(t, with_dy: bool):
    dy_dot = t.dy_dot if with_dy else None
    dx_dot, dw_dot = reference.rms_norm_backward_tangent(
        t.x, t.gamma, t.dy, t.x_dot, t.weight_dot, dy_dot, EPS
    )
    return (dx_dot,), (dw_dot,)


JVP = Case("JVP", "JVP", norm_makers(_jvp, _jvp_alone), _jvp_truth, recorded=False)
DOUBLE_BACKWARD = Case(
    "double backward",
    "double backward",
    norm_makers(_double_backward, _double_backward_alone, SECOND_ORDER),
    _double_backward_truth,
)


def jvps_and_gradients(k: int) -> Case:
    """K JVPs that share a primal, and the gradients through them: what a trace estimate trains with."""
    return Case(
        f"{k} JVPs, forward + backward",
        "JVP, forward + backward",
        norm_makers(_jvps_and_gradients, _jvps_and_gradients_alone, SECOND_ORDER),
        _jvps_and_gradients_truth,
        k,
    )


def tangents(k: int, with_dy: bool) -> Case:
    """K tangents of the backward, with or without tangents of dy."""
    operator = "tangent-backward with dẏ" if with_dy else "tangent-backward"
    through, without = partial(_tangents, with_dy=with_dy), partial(_tangents_alone, with_dy=with_dy)
    return Case(
        f"{operator}, K = {k}",
        operator,
        norm_makers(through, without, SECOND_ORDER),
        partial(_tangents_truth, with_dy=with_dy),
        k,
    )
