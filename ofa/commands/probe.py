"""`ofa probe`: the layers of a model, raw and after each kind of tuning, as a table, plots and numbers."""

from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from ofa import models
from ofa.config import OFAConfig
from ofa.data import datasets
from ofa.data.draws import draw_shots
from ofa.layer_curves import Items, Measuring, analyse, summary, write
from ofa.progress import progress_bar, tracker


@dataclass(frozen=True)
class Probing:
    """The options of the command.

    Attributes:
        task: the name of a data set.
        data: folder of local data sets; None for the hub.
        shots: examples per class; None for the data set's number.
        test_items: measure on up to so many rows.
        n_probes: Hutchinson probes a layer and text.
        seed: of the draw, the order and the probes.
        model: a name, folder or hub id.
        dtype: the model's; None for what is fast.
    """

    task: str
    data: Path | None
    shots: int | None
    test_items: int
    n_probes: int
    seed: int
    model: str
    dtype: torch.dtype | None


def run(options: Probing, out: Path, console: Console) -> None:
    """Measure, print the table, and write it with the plots and every number.

    Raises:
        ValueError, OSError, SourceError: as what it calls.
    """
    task, pool, test = datasets.load(options.task, options.data)
    per_class = options.shots or datasets.find(options.task, options.data).shots
    shots, _ = draw_shots(pool, per_class, options.seed, task.label_words)
    items = Items(task, shots, test[: options.test_items])
    model, tokenizer = models.load(options.model, options.dtype)
    with progress_bar() as bar:
        measuring = Measuring(options.n_probes, options.seed, tracker(bar, "measuring"))
        curves = analyse(model, tokenizer, items, OFAConfig(seed=options.seed), measuring)
    title = (
        f"{options.task}, {per_class} shots per class, seed {options.seed}, {len(items.test)} texts, "
        f"{models.source_of(model).name}"
    )
    written = write(curves, title, out)
    console.print(summary(curves, title))
    console.print(f"written: {', '.join(map(str, written))}", highlight=False, soft_wrap=True)
