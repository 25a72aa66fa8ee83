"""A training run's history as files: every step as JSON, and each term of the loss as a plot."""

import json
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ofa.loss.objective import TERMS

LABELS = {"loss": "loss", **{name: term.label for name, term in TERMS.items()}, "lr": "learning rate"}


def write_history(history: Sequence[dict], folder: Path) -> list[Path]:
    """Write `history.jsonl`, one step a line, and `history.png`, one panel for each term that was computed.

    Args:
        history: from `FitResult.history`.
        folder: where to; it must exist.
    """
    lines, plot = folder / "history.jsonl", folder / "history.png"
    lines.write_text("".join(json.dumps(row) + "\n" for row in history), encoding="utf-8")
    shown = [name for name in LABELS if any(row.get(name) is not None for row in history)]
    # a figure of its own, so that whoever draws elsewhere keeps the backend and the current figure
    figure = Figure(figsize=(8, 2 * len(shown)), layout="constrained")
    axes = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    for axis, name in zip(axes, shown, strict=True):
        points = [(row["step"], row[name]) for row in history if row.get(name) is not None]
        axis.plot(*zip(*points, strict=True))
        axis.set_ylabel(LABELS[name])
    axes[-1].set_xlabel("step")
    figure.savefig(plot, dpi=120)
    return [lines, plot]
