"""`ofa compare`, from its options to its files."""

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
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
from ofa.commands.locks import only_run
from ofa.compare.cells import PROTOCOLS, Cell, Common, Pool, cells_file, compare, plan, read_cells
from ofa.compare.methods import METHODS, missing
from ofa.compare.plots import plot_comparison
from ofa.compare.statistics import in_set
from ofa.compare.tables import accuracy_table, sections, write_csv
from ofa.compare.trainings import Watch
from ofa.compare.variants import method_of, one_of
from ofa.data import datasets
from ofa.data.draws import draw_test, number_labels
from ofa.data.languages import warn_of_unknown_language
from ofa.data.rows import Reading, is_file, read_rows
from ofa.data.task import Task


def draws(text: str) -> range:
    """The draws that `5` (the first five, 0 to 4) or `100-102` stands for.

    Raises:
        ValueError: it is neither, or there is none.
    """
    first, dash, last = text.strip().partition("-")
    if not first.isdecimal() or (dash and not last.isdecimal()):
        raise ValueError(f"seeds must be a number of draws or a range such as 100-102, got {text!r}")
    found = range(int(first), int(last) + 1) if dash else range(int(first))
    if not found:
        raise ValueError(f"seeds {text!r} are no draw at all; give at least 1, or a range such as 100-102")
    return found


@dataclass(frozen=True)
class Comparison:
    """The command's options.

    Attributes:
        tasks: names of the catalog, or files of labelled rows; "all" is every task that the folder's
            tasks.json defines, or without one every task of the paper's table.
        methods: names of methods, with options or without (`method_of`); "all" is every one without that
            can be run here, and "@FILE" what the lines of a text file name, of which blank ones and all
            from a # on are ignored.
        protocols: "A", "B" or both; "all" is both.
        seeds: of the draws.
        out: folder of the cells, tables and plots.
        shots: examples per class; None for the catalog's number.
        test_items: test on up to so many rows.
        max_steps: cap on optimiser steps.
        model: a name, folder or hub id.
        data: folder of local data sets and of a tasks.json that defines more; None for the hub.
        template: of tasks that are files.
        dtype: the model's; None for what is fast.
        whole_words: score label words by all of their tokens.
        reading: how tasks that are files are read.
        label_words: of tasks that are files, as `number_labels` takes them; none: the labels themselves.
    """

    tasks: Sequence[str]
    methods: Sequence[str]
    protocols: Sequence[str]
    seeds: range
    out: Path
    shots: int | None = None
    test_items: int = datasets.N_TEST
    max_steps: int | None = None
    model: str = models.SMOLLM2
    data: Path | None = None
    template: str = "Text: {text}\nLabel:"
    dtype: torch.dtype | None = None
    whole_words: bool = False
    reading: Reading = field(default_factory=Reading)
    label_words: Sequence[str] = ()

    def resolved(self) -> "Comparison":
        """The same with "all" spelled out, every method under its one name, and nothing twice.

        Raises:
            ValueError: every unknown task, method, option and protocol, and where none is given, a line each,
                with the file and line that it is from; a malformed tasks.json; or every named method that
                can't be run here.
        """
        known, wrong = datasets.data_sets(self.data), []
        for option, names, every in (
            ("--tasks", self.tasks, known),
            ("--methods", self.methods, METHODS),
            ("--protocol", self.protocols, PROTOCOLS),
        ):
            if not names:
                wrong.append(f"{option} names nothing; known are {', '.join(every)}, and all")
        own = [name for name, entry in known.items() if entry.repo is None]
        methods = _lines(self.methods, wrong)
        found = replace(
            self,
            tasks=_accepted(_typed(self.tasks), own or known, self._task, wrong),
            methods=_accepted(methods, METHODS, lambda text: method_of(text).name, wrong),
            protocols=_accepted(_typed(self.protocols), PROTOCOLS, _protocol, wrong),
        )
        if wrong:
            raise ValueError("\n".join(wrong))
        named = {method_of(text).name for text, _ in methods if text != "all"}
        return replace(found, methods=_runnable(found.methods, named))

    def _task(self, name: str) -> str:
        if not is_file(name):
            datasets.find(name, self.data)
        return name

    def pools(self) -> list[Pool]:
        """The tasks' rows."""
        pools = [self._pool(name) for name in self.tasks]
        return [replace(pool, task=replace(pool.task, whole_words=self.whole_words)) for pool in pools]

    def _pool(self, name: str) -> Pool:
        known = datasets.data_sets(self.data)
        if name in known:
            task, rows, test = datasets.load(name, self.data)
            return Pool(task, rows, test[: self.test_items], self.shots or known[name].shots)
        rows, words = number_labels(read_rows(name, self.reading), self.label_words or None)
        task = Task(Path(name).stem, self.template, words)
        test = draw_test(rows, min(self.test_items, len(rows) // 2), datasets.TEST_SEED, len(words))
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


def _runnable(methods: Sequence[str], named: Collection[str]) -> list[str]:
    """The methods that can be run here; those of "all" that can't, which nobody named, are left out."""
    lacking = {name: reason for name in methods if (reason := missing(method_of(name)))}
    wrong = [f"{name} can't be run: {reason}" for name, reason in lacking.items() if name in named]
    if wrong:
        raise ValueError("\n".join(wrong))
    for name, reason in lacking.items():
        models.say(f"all leaves out {name}: {reason}")
    return [name for name in methods if name not in lacking]


def _protocol(name: str) -> str:
    if name not in PROTOCOLS:
        raise ValueError(f"unknown protocol {name!r}; known are {', '.join(PROTOCOLS)}")
    return name


@contextmanager
def _noted(wrong: list[str], place: str = "") -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        wrong.append(f"{place}{error}")


def _typed(names: Iterable[str]) -> list[tuple[str, str]]:
    """The names with the place that complaints begin with: none."""
    return [(name, "") for name in names]


def _lines(names: Iterable[str], wrong: list[str]) -> list[tuple[str, str]]:
    """The same, where the lines of FILE with their places stand for @FILE; unreadable files are `wrong`."""
    found = []
    for name in names:
        if not name.startswith("@"):
            found += _typed([name])
            continue
        path = Path(name[1:])
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            wrong.append(f"{name} can't be read: {error}")
            continue
        texts = (line.partition("#")[0].strip() for line in lines)
        named = [(text, f"{path}, line {i}: ") for i, text in enumerate(texts, 1) if text]
        found += named
        if not named:
            wrong.append(f"{path} names nothing; have a method a line")
    return found


def _accepted(
    names: Iterable[tuple[str, str]], every: Iterable[str], check: Callable[[str], str], wrong: list[str]
) -> list[str]:
    """What `check` makes of the names, each once; its complaints are added to `wrong` with their places."""
    found = {}
    for text, place in names:
        for name in every if text == "all" else [text]:
            with _noted(wrong, place):
                found[check(name)] = None
    return list(found)


def _processes() -> tuple[int, int]:
    """(this process, how many), as `accelerate launch` or `torchrun` started them."""
    share = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    return share


def _line(row: dict) -> str:
    together = " in a set" * in_set(row)
    return (
        f"{row['task']}, {row['method']}, protocol {row['protocol']}, seed {row['seed']}: accuracy "
        f"{row['accuracy']:.3f}, fit {row['seconds_fit']:.1f} s{together}, eval {row['seconds_eval']:.1f} s"
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

    @contextmanager
    def training(self, n_trainings: int) -> Iterator[bool]:
        """Step aside while a set is trained, whose bar takes the place; it is for terminals."""
        counted = f"{n_trainings} training{'s' * (n_trainings > 1)}"
        self.console.print(f"{counted} in one set", highlight=False)
        self.live.transient = True  # what comes back is not to be there twice
        self.live.stop()
        try:
            yield self.console.is_terminal
        finally:
            self.live.transient = False
            self.live.start()

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
        ValueError: unknown tasks, methods, options or protocols, a malformed tasks.json, too few examples, or
            another run that writes the same file of cells.
    """
    options, share = options.resolved(), _processes()
    with only_run(options.out, Path(cells_file(share)).stem):
        _run(options, share, console or Console())


def _run(options: Comparison, share: tuple[int, int], console: Console) -> None:
    pools = options.pools()
    model, tokenizer = models.load(options.model, options.dtype)
    source, dtype = models.source_of(model), model.dtype
    common = Common.of(source, dtype, options.max_steps)
    planned = plan(pools, options.methods, options.protocols, options.seeds, common)
    for pool in pools:
        pool.task.target_ids(tokenizer)  # colliding label words are refused before hours of work
        warn_of_unknown_language(tokenizer, [row["text"] for row in pool.rows])
    console.print(
        f"model: {source.name} ({source.origin}), {str(dtype).removeprefix('torch.')}; {len(planned)} cells, "
        f"results in {options.out}",
        highlight=False,
        soft_wrap=True,
    )
    mine = planned[share[0] :: share[1]]
    display, n_new = _Display(console, len(mine)), 0
    watch = Watch(display.track, display.training)
    with display.live:
        for row, is_new in compare(model, tokenizer, planned, options.out, share, watch):
            display.add(row, is_new)
            n_new += is_new
    console.print(f"{n_new} cells run, {len(mine) - n_new} were there already", highlight=False)
    report(planned, options.out, console)


def report(planned: Sequence[tuple[Pool, Cell]], folder: Path, console: Console) -> None:
    """Tables and plots of the planned cells, once all are there."""
    finished = {Cell.of(row): row for row in read_cells(folder)}
    rows = [finished[cell] for _, cell in planned if cell in finished]
    missing = len(planned) - len(rows)
    if missing:
        console.print(
            f"{missing} cells are still to come; tables follow when they are there", highlight=False
        )
        return
    show(rows, folder, console)


def show(rows: Sequence[dict], folder: Path, console: Console, against: str | None = None) -> None:
    """Print the cells' tables; write them as tables.md, the cells as cells.csv, and a plot a protocol.

    Args:
        rows: finished cells.
        folder: where to write.
        console: where to print.
        against: the method that the others are paired with, as in the rows or as `method_of` reads it; None
            for LN-tuning.

    Raises:
        ValueError: no row is of this method.
    """
    if against is not None:
        against = one_of(sorted({row["method"] for row in rows}), against)
    found = sections(rows, against)
    for section in found:
        console.print(section)
    (folder / "tables.md").write_text("\n".join(section.markdown() for section in found), encoding="utf-8")
    write_csv(rows, folder / "cells.csv")
    written = [folder / "tables.md", folder / "cells.csv"]
    for protocol in sorted({row["protocol"] for row in rows}):
        written.append(folder / f"protocol-{protocol}.png")
        plot_comparison([row for row in rows if row["protocol"] == protocol], written[-1])
    console.print(f"written: {', '.join(map(str, written))}", highlight=False, soft_wrap=True)
