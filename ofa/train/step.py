"""An optimiser step: the loss, its gradient, a check that both are finite, AdamW's update."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from ofa.loss.objective import TERMS, Objective

# the parts of a batch that are run one after the other: (share of the batch, its objective)
Passes = Callable[[int, list[int]], Iterable[tuple[float, Objective]]]


class NonFiniteError(FloatingPointError):
    """A loss term or the gradient became NaN or infinite; the weights were put back to the last good step."""


def check_finite(step: int, values: dict[str, float | None], largest: float) -> None:
    """Refuse a step whose loss, terms or largest gradient is NaN or infinite.

    Raises:
        NonFiniteError: one is; it is named.
    """
    # the single terms first, so that the culprit is named and not the sum
    checked = {**{name: values[name] for name in TERMS}, "loss": values["loss"], "gradient": largest}
    for name, value in checked.items():
        if value is not None and not math.isfinite(value):
            raise NonFiniteError(
                f"step {step}: the term {name} is {value}; the weights were put back to the last good step. "
                "Lower lr or the term's weight, or use float32"
            )


def summed(
    passes: Iterable[tuple[float, Objective]], weights: Sequence[Tensor]
) -> tuple[dict[str, float | None], list[Tensor]]:
    """The loss and its terms by name, and the weights' gradients, summed over passes by their shares."""
    values: dict[str, float | None] = {}
    gradients: list[Tensor] = []
    for share, objective in passes:
        parts = torch.autograd.grad(objective.loss, weights)
        scalars = {"loss": objective.loss, **objective.terms()}
        if share == 1:
            return {name: None if t is None else t.item() for name, t in scalars.items()}, list(parts)
        if not gradients:
            gradients = [torch.zeros_like(weight) for weight in weights]
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.add_(part, alpha=share)
        for name, value in scalars.items():
            values[name] = None if value is None else (values.get(name) or 0.0) + share * value.item()
    return values, gradients


class Step(ABC):
    """How the weights are trained, one step after the other.

    Attributes:
        weights: what is trained, in place.
        optimizer: AdamW, which holds their moments.
        good: the weights before the last good step, once `begin` was called.
    """

    def __init__(self, weights: Sequence[nn.Parameter], weight_decay: float):
        self.weights = list(weights)
        # each step brings its learning rate
        self.optimizer = torch.optim.AdamW(self.weights, weight_decay=weight_decay)
        self.good: list[Tensor] = []

    def begin(self) -> None:
        """Go on from the weights and moments as they are now."""
        self.good = [weight.detach().clone() for weight in self.weights]

    @abstractmethod
    def take(
        self, step: int, rows: list[int], lr: float, upcoming: list[int] | None = None
    ) -> dict[str, float | None]:
        """Take a step.

        Args:
            step: its number.
            rows: the indices of its examples.
            lr: its learning rate.
            upcoming: the examples of the next step, which may be prepared meanwhile.

        Returns:
            The loss and its terms by name; None for a term that was not computed.

        Raises:
            NonFiniteError: one of these or the gradient is NaN or infinite; call `put_back`.
        """

    def put_back(self) -> None:
        """Give the weights the values from before the last good step."""
        with torch.no_grad():
            for saved, weight in zip(self.good, self.weights, strict=True):
                weight.copy_(saved)


class Uncaptured(Step):
    """Steps whose every operation is launched from Python.

    Args:
        weights: what is trained.
        passes: takes the step's number and its examples' indices; yields (share, objective) for each part
            of the batch that is run at once. The loss of the step is the sum of the parts' losses, each times
            its share; the shares add up to 1.
        weight_decay: AdamW's.
    """

    def __init__(self, weights: Sequence[nn.Parameter], passes: Passes, weight_decay: float):
        super().__init__(weights, weight_decay)
        self.passes = passes

    def take(
        self, step: int, rows: list[int], lr: float, upcoming: list[int] | None = None
    ) -> dict[str, float | None]:
        """As in `Step`; nothing is prepared."""
        values, gradients = summed(self.passes(step, rows), self.weights)
        largest = torch.stack([gradient.abs().max() for gradient in gradients]).max().item()
        check_finite(step, values, largest)
        for saved, weight, gradient in zip(self.good, self.weights, gradients, strict=True):
            saved.copy_(weight.detach())
            weight.grad = gradient
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()
        return values
