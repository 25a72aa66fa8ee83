"""A training run's history as files: every step as JSON, and each term of the loss as a plot."""

import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only; a display may be missing
import matplotlib.pyplot as plt

TERMS = {
    "loss": "loss",
    "cross_entropy": "cross-entropy, nats",
    "step_ratio": "step ratio J",
    "sharpness": "sharpness H",
    "lr": "learning rate",
}


def write_history(history: Sequence[dict], folder: Path) -> list[Path]:
    """Write `history.jsonl`, one step a line, and `history.png`, one panel for each term that was computed.

    Args:
        history: from `FitResult.history`.
        folder: where to; it must exist.
    """
    lines, plot = folder / "history.jsonl", folder / "history.png"
    lines.write_text("".join(json.dumps(row) + "\n" for row in history), encoding="utf-8")
    shown = [name for name in TERMS if any(row.get(name) is not None for row in history)]
    figure, axes = plt.subplots(len(shown), 1, figsize=(8, 2 * len(shown)), sharex=True, layout="constrained")
    for axis, name in zip(axes, shown, strict=True):
        points = [(row["step"], row[name]) for row in history if row.get(name) is not None]
        axis.plot(*zip(*points, strict=True))
        axis.set_ylabel(TERMS[name])
    axes[-1].set_xlabel("step")
    figure.savefig(plot, dpi=120)
    plt.close(figure)
    return [lines, plot]
