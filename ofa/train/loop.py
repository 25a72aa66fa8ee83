"""The training loop: warm-up and cosine, watched by a progress bar, stopped by what is not finite."""

import time
from dataclasses import dataclass, field

from ofa.config import Steps
from ofa.loss.objective import TERMS
from ofa.progress import progress_bar
from ofa.train.checkpoint import Checkpoint, deferred_interrupt
from ofa.train.step import NonFiniteError, Step


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


def stopped(n_taken: int, n_steps: int, checkpoint: Checkpoint | None) -> str:
    """What is said after Ctrl-C."""
    kept = f"; it is kept in {checkpoint.path}, and the same run goes on from there" if checkpoint else ""
    return f"stopped after {n_taken} of {n_steps} steps{kept}"


def train(
    step: Step,
    steps: Steps,
    progress: bool = True,
    checkpoint: Checkpoint | None = None,
) -> FitResult:
    """Train the weights of a `Step` in place.

    Args:
        step: what is trained, and how a step is taken.
        steps: which are taken; the weight decay is the `Step`'s.
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
    n_steps = len(steps)
    result = FitResult(checkpoint.load(step.weights, step.optimizer) if checkpoint else [])
    batches = list(enumerate(steps))[len(result.history) :]
    upcoming = [*(rows for _, (_, rows, _) in batches[1:]), None]
    step.begin()
    begin = time.perf_counter()
    try:
        with progress_bar(progress) as bar, deferred_interrupt() as interrupted:
            if result.history and progress:
                bar.console.print(f"going on after {len(result.history)} of {n_steps} steps", highlight=False)
            line = bar.add_task("adapting", total=n_steps, completed=len(result.history), info="")
            for (number, (epoch, rows, lr)), following in zip(batches, upcoming, strict=False):
                values = step.take(number, rows, lr, following)
                result.history.append({"step": number, "epoch": epoch, "lr": lr, **values})
                bar.update(line, advance=1, info=_describe(result.history[-1]))
                last = interrupted.is_set() or number == n_steps - 1
                if checkpoint and (last or (number + 1) % checkpoint.every == 0):
                    checkpoint.save(step.weights, step.optimizer, result.history)
                if interrupted.is_set():
                    raise KeyboardInterrupt(stopped(number + 1, n_steps, checkpoint))
    except NonFiniteError:
        step.put_back()
        raise
    finally:
        step.optimizer.zero_grad()
    result.seconds = time.perf_counter() - begin
    return result
