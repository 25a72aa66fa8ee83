"""What is timed of RMSNorm at first order: a case is an operator, done by every contender, with its truth.

Every call returns what the truth returns, in the same order, so that it can be checked before it is timed.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import ModuleType

from torch.autograd import grad

from benchmarks import norms
from benchmarks.norms import EPS, NORMS, Norm
from benchmarks.problem import Problem
from benchmarks.truth import Truth
from ofa_kernels import reference

Call = Callable[[], object]
Maker = Callable[[Problem, ModuleType | None], Call]
OURS = (norms.OURS, norms.KERNELS_ALONE)
FIRST_ORDER = (norms.EAGER, norms.COMPILED, norms.FUNCTIONAL, norms.LIGER, *OURS)


@dataclass(frozen=True, eq=False)
class Case:
    """An operator at an order.

    Attributes:
        name: its title in the tables.
        operator: its name in `traffic.OPERATORS`.
        makers: the contenders; each makes the call to be timed, of a problem and the backend's module of
            kernels (None where PyTorch composes the operators), or raises `UnavailableError`.
        truth: see `truth.expected`.
        k: how many tangents, probes or states.
        recorded: whether autograd records the calls.
        eager: the contender that ratios are to.
        draws: contenders with random signs of their own; only their first result's size can be checked.
        cancellation: how many times larger the terms of a result can be than the result.
    """

    name: str
    operator: str
    makers: Mapping[str, Maker]
    truth: Truth
    k: int = 1
    recorded: bool = True
    eager: str = norms.EAGER
    draws: tuple[str, ...] = ()
    cancellation: float = 1.0


def named(name: str, text: str, names: Iterable[str]) -> bool:
    """Whether `text` chooses `name`: it is one of the names, or part of some."""
    return name == text if text in names else text in name


def alone(make: Callable[[Problem, ModuleType], Call]) -> Maker:
    """A maker of calls of the kernels without autograd."""

    def maker(problem: Problem, kernels: ModuleType | None) -> Call:
        if kernels is None:
            raise norms.UnavailableError("the backend is PyTorch's composition, which has no kernels")
        return make(problem, kernels)

    return maker


def norm_makers(
    through: Callable[[Problem, Norm], Call],
    kernels_alone: Callable[[Problem, ModuleType], Call],
    labels: tuple[str, ...] = FIRST_ORDER,
) -> dict[str, Maker]:
    """The contenders of a case that any norm can do.

    Args:
        through: makes the call that goes through PyTorch's autograd, of a problem and a norm.
        kernels_alone: makes the call of the kernels without autograd, of a problem and a backend's module.
        labels: which contenders.
    """

    def through_norm(label: str) -> Maker:
        return lambda problem, _: through(problem, NORMS[label](problem.gamma, problem.dtype))

    makers = {label: through_norm(label) for label in labels if label != norms.KERNELS_ALONE}
    return makers | {norms.KERNELS_ALONE: alone(kernels_alone)}


def _forward(p: Problem, n: Norm) -> Call:
    norm, x = n.ready(n.norm), p.x
    return lambda: norm(x)


def _forward_alone(p: Problem, kernels: ModuleType) -> Call:
    x, w = p.x.detach(), p.gamma
    return lambda: kernels.rms_norm_forward(x, w, EPS, 0.0, "hf")


def _forward_truth(t):
    return (reference.rms_norm(t.x, t.gamma, EPS),), ()


def _backward(p: Problem, n: Norm) -> Call:
    inputs, dy = (p.x, n.weight), p.dy
    y = n.ready(n.norm)(p.x)
    return lambda: grad(y, inputs, dy, retain_graph=True)


def _backward_alone(p: Problem, kernels: ModuleType) -> Call:
    x, w, dy = p.x.detach(), p.gamma, p.dy
    return lambda: kernels.rms_norm_backward(x, w, dy, None, EPS, 0.0, True, True)


def _backward_truth(t):
    dx, dw = reference.rms_norm_backward(t.x, t.gamma, t.dy, EPS)
    return (dx,), (dw,)


def _both(p: Problem, n: Norm) -> Call:
    norm, x, inputs, dy = n.ready(n.norm), p.x, (p.x, n.weight), p.dy

    def call():
        y = norm(x)
        return y, *grad(y, inputs, dy)

    return call


def _both_alone(p: Problem, kernels: ModuleType) -> Call:
    forward, backward = _forward_alone(p, kernels), _backward_alone(p, kernels)
    return lambda: (forward(), *backward())


def _both_truth(t):
    (dx,), sums = _backward_truth(t)
    return (reference.rms_norm(t.x, t.gamma, EPS), dx), sums


def _add(p: Problem, n: Norm) -> Call:
    add, x, residual = n.ready(n.add), p.x, p.residual
    inputs, cotangents = (x, residual, n.weight), (p.dy, p.ds)

    def call():
        outputs = add(x, residual)
        return *outputs, *grad(outputs, inputs, cotangents)

    return call


def _add_alone(p: Problem, kernels: ModuleType) -> Call:
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
