"""The training loop: AdamW, warm-up and cosine, watched by a progress bar, stopped by what is not finite."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor, nn

from ofa.config import Schedule
from ofa.progress import progress_bar
from ofa.train.checkpoint import Checkpoint, deferred_interrupt

SHORT_NAMES = {"loss": "loss", "cross_entropy": "CE", "step_ratio": "J", "sharpness": "H"}


class NonFiniteError(FloatingPointError):
    """A loss term or the gradient became NaN or infinite; the weights are those of the last good step."""


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
    shown = ((short, row.get(name)) for name, short in SHORT_NAMES.items())
    return "  ".join(f"{short} {value:.4g}" for short, value in shown if value is not None)


def _check_finite(step: int, terms: dict[str, float | None], gradients: Sequence[Tensor]) -> None:
    largest = torch.stack([gradient.abs().max() for gradient in gradients]).max().item()
    # the single terms first, so that the culprit is named and not the sum
    for name, value in (*reversed(terms.items()), ("gradient", largest)):
        if value is not None and not math.isfinite(value):
            raise NonFiniteError(
                f"step {step}: the term {name} is {value}; the weights were put back to the last good step. "
                "Lower lr or the term's weight, or use float32"
            )


def _gradients(
    passes: Iterable[tuple[float, dict[str, Tensor | None]]], weights: Sequence[nn.Parameter]
) -> tuple[dict[str, float | None], list[Tensor]]:
    """Terms and gradients, summed over the passes by their shares."""
    terms: dict[str, float | None] = {}
    gradients: list[Tensor] = []
    for share, found in passes:
        parts = torch.autograd.grad(found["loss"], weights)
        if share == 1:
            return {name: None if t is None else t.item() for name, t in found.items()}, list(parts)
        if not gradients:
            gradients = [torch.zeros_like(weight) for weight in weights]
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.add_(part, alpha=share)
        for name, value in found.items():
            terms[name] = None if value is None else (terms.get(name) or 0.0) + share * value.item()
    return terms, gradients


def _stopped(step: int, n_steps: int, checkpoint: Checkpoint | None) -> str:
    kept = f"; it is kept in {checkpoint.path}, and the same run goes on from there" if checkpoint else ""
    return f"stopped after {step + 1} of {n_steps} steps{kept}"


def train(
    weights: Sequence[nn.Parameter],
    passes: Callable[[int, list[int]], Iterable[tuple[float, dict[str, Tensor | None]]]],
    n_examples: int,
    schedule: Schedule,
    progress: bool = True,
    checkpoint: Checkpoint | None = None,
) -> FitResult:
    """Train the weights in place by AdamW.

    Args:
        weights: what is trained.
        passes: takes the step's number and its examples' indices; yields (share, terms) for each part of the
            batch that is run at once. Terms are scalars by name, "loss" among them; the step's loss is their
            sum by shares, which add up to 1.
        n_examples: how many there are.
        schedule: optimiser and order.
        progress: show a bar with the loss terms and the time that remains.
        checkpoint: where the run is kept and, if it is there already, resumed with the same bits.

    Returns:
        The history, and the time since this call.

    Raises:
        NonFiniteError: the loss or the gradient is NaN or infinite; the weights are those of the last good
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
                terms, gradients = _gradients(passes(step, rows), weights)
                _check_finite(step, terms, gradients)
                for saved, weight, gradient in zip(good, weights, gradients, strict=True):
                    saved.copy_(weight.detach())
                    weight.grad = gradient
                lr = schedule.lr * factor(step)
                optimizer.param_groups[0]["lr"] = lr
                optimizer.step()
                result.history.append({"step": step, "epoch": epoch, "lr": lr, **terms})
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
