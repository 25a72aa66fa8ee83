"""`ofa compare`, from its options to its files."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ofa import models
from ofa.fewshot import catalog
from ofa.fewshot.compare import Cell, Pool, compare, plan, read_cells
from ofa.fewshot.methods import METHODS
from ofa.fewshot.plots import plot_comparison
from ofa.fewshot.protocol import SUFFIXES, draw_test, number_labels, read_rows
from ofa.fewshot.table import accuracy_table, sections, write_csv
from ofa.fewshot.tasks import Task

TEST_SEED = 42  # one test set for all methods and seeds


@dataclass(frozen=True)
class Comparison:
    """The command's options.

    Attributes:
        tasks: names of the catalog, or files of labelled rows.
        methods: names of methods; "all" is every one.
        protocols: "A", "B" or both.
        seeds: how many, from 0 on.
        out: folder of the cells, tables and plots.
        shots: examples per class; None for the catalog's number.
        test_items: test on up to so many rows.
        max_steps: cap on optimiser steps.
        model: a name, folder or hub id.
        data: folder of local data sets; None for the hub.
        template: of tasks that are files.
        dtype: the model's; None for what is fast.
        whole_words: score label words by all of their tokens.
    """

    tasks: Sequence[str]
    methods: Sequence[str]
    protocols: Sequence[str]
    seeds: int
    out: Path
    shots: int | None = None
    test_items: int = catalog.N_TEST
    max_steps: int | None = None
    model: str = models.SMOLLM2
    data: Path | None = None
    template: str = "Text: {text}\nLabel:"
    dtype: torch.dtype | None = None
    whole_words: bool = False

    def pools(self) -> list[Pool]:
        """The tasks' rows."""
        pools = [self._pool(name) for name in self.tasks]
        return [replace(pool, task=replace(pool.task, whole_words=self.whole_words)) for pool in pools]

    def _pool(self, name: str) -> Pool:
        if name in catalog.DATA_SETS or Path(name).suffix not in SUFFIXES:
            task, rows, test = catalog.load(name, self.data)
            return Pool(task, rows, test[: self.test_items], self.shots or catalog.DATA_SETS[name].shots)
        rows, words = number_labels(read_rows(name))
        task = Task(Path(name).stem, self.template, words)
        test = draw_test(rows, min(self.test_items, len(rows) // 2), TEST_SEED, len(words))
        tested = {row["text"] for row in test}
        pool, shots = [row for row in rows if row["text"] not in tested], self.shots or 5
        counts = Counter(row["label"] for row in pool)
        rarest = min(range(len(words)), key=counts.__getitem__)
        if counts[rarest] < shots:
            raise ValueError(
                f"{name}: {len(test)} of its {len(rows)} rows are set aside to test on, which leaves "
                f"{counts[rarest]} of class {words[rarest]!r} to learn from, and {shots} are asked for; have "
                f"at least {2 * shots} rows of each class, or give --shots"
            )
        return Pool(task, pool, test, shots)


def _processes() -> tuple[int, int]:
    """(this process, how many), as `accelerate launch` or `torchrun` started them."""
    share = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    return share


def _line(row: dict) -> str:
    return (
        f"{row['task']}, {row['method']}, protocol {row['protocol']}, seed {row['seed']}: "
        f"accuracy {row['accuracy']:.3f}, fit {row['seconds_fit']:.1f} s, eval {row['seconds_eval']:.1f} s"
    )


class _Display:
    """On a terminal a table that fills while a bar advances; elsewhere a line a cell."""

    def __init__(self, console: Console, n_cells: int):
        self.console, self.rows = console, []
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("to go"),
            TimeRemainingColumn(),
            console=console,
        )
        self.cells = self.progress.add_task("cells", total=n_cells)
        self.batches = self.progress.add_task("test batches", total=None)
        self.live = Live(self.progress, console=console, auto_refresh=console.is_terminal)

    def track(self, batches: Iterable) -> Iterable:
        batches = list(batches)
        self.progress.reset(self.batches, total=len(batches))
        for batch in batches:
            yield batch
            self.progress.advance(self.batches)

    def add(self, row: dict, is_new: bool) -> None:
        self.rows.append(row)
        self.progress.advance(self.cells)
        if self.console.is_terminal:
            tables = [accuracy_table(self.rows, p) for p in sorted({r["protocol"] for r in self.rows})]
            self.live.update(Group(*tables, self.progress))
        elif is_new:
            self.console.print(_line(row), highlight=False, soft_wrap=True)


def run(options: Comparison, console: Console | None = None) -> None:
    """Run what is missing, and when nothing is, print the tables and write them, the CSV and the plots.

    Raises:
        ValueError: an unknown task, method or protocol, or too few examples.
    """
    console = console or Console()
    methods = list(METHODS) if list(options.methods) == ["all"] else options.methods
    share = _processes()
    pools = options.pools()
    model, tokenizer = models.load(options.model, options.dtype)
    source, dtype = models.source_of(model), model.dtype
    planned = plan(pools, methods, options.protocols, range(options.seeds), source, dtype, options.max_steps)
    for pool in pools:
        pool.task.label_ids(tokenizer)  # colliding label words are refused before hours of work
    console.print(
        f"model: {source.name} ({source.origin}), {str(dtype).removeprefix('torch.')}; {len(planned)} cells, "
        f"results in {options.out}",
        highlight=False,
        soft_wrap=True,
    )
    mine = planned[share[0] :: share[1]]
    display, n_new = _Display(console, len(mine)), 0
    with display.live:
        for row, is_new in compare(model, tokenizer, planned, options.out, share, display.track):
            display.add(row, is_new)
            n_new += is_new
    console.print(f"{n_new} cells run, {len(mine) - n_new} were there already", highlight=False)
    report(planned, options.out, console)


def report(planned: Sequence[tuple[Pool, Cell]], folder: Path, console: Console) -> None:
    """Tables and plots of the planned cells, once all are there."""
    finished = {Cell.of(row): row for row in read_cells(folder)}
    rows = [finished.get(cell) for _, cell in planned]
    missing = rows.count(None)
    if missing:
        console.print(
            f"{missing} cells are still to come; tables follow when they are there", highlight=False
        )
        return
    show(rows, folder, console)


def show(rows: Sequence[dict], folder: Path, console: Console) -> None:
    """Print the cells' tables; write them as tables.md, the cells as cells.csv, and a plot a protocol."""
    found = sections(rows)
    for section in found:
        console.print(section)
    (folder / "tables.md").write_text("\n".join(section.markdown() for section in found), encoding="utf-8")
    write_csv(rows, folder / "cells.csv")
    written = [folder / "tables.md", folder / "cells.csv"]
    for protocol in sorted({row["protocol"] for row in rows}):
        written.append(folder / f"protocol-{protocol}.png")
        plot_comparison([row for row in rows if row["protocol"] == protocol], written[-1])
    console.print(f"written: {', '.join(map(str, written))}", highlight=False, soft_wrap=True)
