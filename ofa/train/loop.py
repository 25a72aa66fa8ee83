"""The training loop: AdamW, warm-up and cosine, watched by a progress bar, stopped by what is not finite."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor, nn

from ofa.config import Schedule
from ofa.loss.objective import TERMS, Objective
from ofa.progress import progress_bar
from ofa.train.checkpoint import Checkpoint, deferred_interrupt

# the parts of a batch that are run one after the other: (share of the batch, its objective)
Passes = Callable[[int, list[int]], Iterable[tuple[float, Objective]]]


class NonFiniteError(FloatingPointError):
    """A loss term or the gradient became NaN or infinite; the weights were put back to the last good step."""


@dataclass
class FitResult:
    """What training did.

    Attributes:
        history: one dict a step: step, epoch, lr, loss and the loss's terms, unweighted; None where a term
            was not computed.
        seconds: wall-clock time of the training loop.
        n_truncated: examples that were cut to fit the context.
    """

    history: list[dict] = field(default_factory=list)
    seconds: float = 0.0
    n_truncated: int = 0


def _describe(row: dict) -> str:
    shown = [("loss", row["loss"]), *((term.symbol, row[name]) for name, term in TERMS.items())]
    return "  ".join(f"{symbol} {value:.4g}" for symbol, value in shown if value is not None)


def _check_finite(step: int, values: dict[str, float | None], gradients: Sequence[Tensor]) -> None:
    largest = torch.stack([gradient.abs().max() for gradient in gradients]).max().item()
    # the single terms first, so that the culprit is named and not the sum
    checked = {**{name: values[name] for name in TERMS}, "loss": values["loss"], "gradient": largest}
    for name, value in checked.items():
        if value is not None and not math.isfinite(value):
            raise NonFiniteError(
                f"step {step}: the term {name} is {value}; the weights were put back to the last good step. "
                "Lower lr or the term's weight, or use float32"
            )


def _gradients(
    passes: Iterable[tuple[float, Objective]], weights: Sequence[nn.Parameter]
) -> tuple[dict[str, float | None], list[Tensor]]:
    """The loss and its terms by name, and the gradients, summed over the passes by their shares."""
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


def _stopped(step: int, n_steps: int, checkpoint: Checkpoint | None) -> str:
    kept = f"; it is kept in {checkpoint.path}, and the same run goes on from there" if checkpoint else ""
    return f"stopped after {step + 1} of {n_steps} steps{kept}"


def train(
    weights: Sequence[nn.Parameter],
    passes: Passes,
    n_examples: int,
    schedule: Schedule,
    progress: bool = True,
    checkpoint: Checkpoint | None = None,
) -> FitResult:
    """Train the weights in place by AdamW.

    Args:
        weights: what is trained.
        passes: takes the step's number and its examples' indices; yields (share, objective) for each part
            of the batch that is run at once. The loss of the step is the sum of the parts' losses, each times
            its share; the shares add up to 1.
        n_examples: how many there are.
        schedule: optimiser and order.
        progress: show a bar with the loss terms and the time that remains.
        checkpoint: where the run is kept and, if it is there already, resumed with the same bits.

    Returns:
        The history, and the time since this call.

    Raises:
        NonFiniteError: the loss or the gradient is NaN or infinite; the weights are put back to the last good
            step.
        CheckpointError: the checkpoint is damaged or of another run.
        KeyboardInterrupt: Ctrl-C; the step was finished, and written to the checkpoint.
    """
    optimizer = torch.optim.AdamW(weights, lr=schedule.lr, weight_decay=schedule.weight_decay)
    factor, n_steps = schedule.factor(n_examples), schedule.n_steps(n_examples)
    if schedule.max_steps is not None:
        n_steps = min(n_steps, schedule.max_steps)
    result = FitResult(checkpoint.load(weights, optimizer) if checkpoint else [])
    steps = islice(enumerate(schedule.batches(n_examples)), len(result.history), n_steps)
    good = [weight.detach().clone() for weight in weights]
    begin = time.perf_counter()
    try:
        with progress_bar(progress) as bar, deferred_interrupt() as interrupted:
            if result.history and progress:
                bar.console.print(f"going on after {len(result.history)} of {n_steps} steps", highlight=False)
            line = bar.add_task("adapting", total=n_steps, completed=len(result.history), info="")
            for step, (epoch, rows) in steps:
                values, gradients = _gradients(passes(step, rows), weights)
                _check_finite(step, values, gradients)
                for saved, weight, gradient in zip(good, weights, gradients, strict=True):
                    saved.copy_(weight.detach())
                    weight.grad = gradient
                lr = schedule.lr * factor(step)
                optimizer.param_groups[0]["lr"] = lr
                optimizer.step()
                result.history.append({"step": step, "epoch": epoch, "lr": lr, **values})
                bar.update(line, advance=1, info=_describe(result.history[-1]))
                last = interrupted.is_set() or step == n_steps - 1
                if checkpoint and (last or (step + 1) % checkpoint.every == 0):
                    checkpoint.save(weights, optimizer, result.history)
                if interrupted.is_set():
                    raise KeyboardInterrupt(_stopped(step, n_steps, checkpoint))
    except NonFiniteError:
        with torch.no_grad():
            for saved, weight in zip(good, weights, strict=True):
                weight.copy_(saved)
        raise
    finally:
        optimizer.zero_grad()
    result.seconds = time.perf_counter() - begin
    return result
