"""A case: an operator, done by every contender, with its truth.

Every call returns what the truth returns, in the same order, so that it can be checked before it is timed.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from benchmarks.harness import contenders
from benchmarks.harness.contenders import NORMS, Norm
from benchmarks.harness.inputs import Inputs
from benchmarks.harness.truth import Truth

Call = Callable[[], Any]
Maker = Callable[[Inputs, ModuleType | None], Call]
OURS = (contenders.OURS, contenders.KERNELS_ALONE)
FIRST_ORDER = (contenders.EAGER, contenders.COMPILED, contenders.FUNCTIONAL, contenders.LIGER, *OURS)


@dataclass(frozen=True, eq=False)
class Case:
    """An operator at an order.

    Attributes:
        name: its title in the tables.
        operator: its name in `traffic.OPERATORS`.
        makers: the contenders; each makes the call to be timed, of the inputs and the backend's module of
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
    eager: str = contenders.EAGER
    draws: tuple[str, ...] = ()
    cancellation: float = 1.0


def named(name: str, text: str, names: Iterable[str]) -> bool:
    """Whether `text` chooses `name`: it is one of the names, or part of some."""
    return name == text if text in names else text in name


def alone(make: Callable[[Inputs, ModuleType], Call]) -> Maker:
    """A maker of calls of the kernels without autograd."""

    def maker(inputs: Inputs, kernels: ModuleType | None) -> Call:
        if kernels is None:
            raise contenders.UnavailableError("the backend is PyTorch's composition, which has no kernels")
        return make(inputs, kernels)

    return maker


def norm_makers(
    through: Callable[[Inputs, Norm], Call],
    kernels_alone: Callable[[Inputs, ModuleType], Call],
    labels: tuple[str, ...] = FIRST_ORDER,
) -> dict[str, Maker]:
    """The contenders of a case that any norm can do.

    Args:
        through: makes the call that goes through PyTorch's autograd, of the inputs and a norm.
        kernels_alone: makes the call of the kernels without autograd, of the inputs and a backend's module.
        labels: which contenders.
    """

    def through_norm(label: str) -> Maker:
        return lambda inputs, _: through(inputs, NORMS[label](inputs.gamma, inputs.dtype))

    makers = {label: through_norm(label) for label in labels if label != contenders.KERNELS_ALONE}
    return makers | {contenders.KERNELS_ALONE: alone(kernels_alone)}
