"""Every method on every task and seed: cells that are run once, written at once, and never run again."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from ofa.compare.methods import Setting
from ofa.compare.methods.norm_tuning import NormTuning
from ofa.compare.metrics import metrics
from ofa.compare.trainings import UNWATCHED, Training, Trainings, Watch
from ofa.compare.variants import method_of
from ofa.data.draws import draw_shots
from ofa.data.task import Task
from ofa.models import Source
from ofa.train.checkpoint import digest
from ofa.train.job import Job

PROTOCOLS = ("A", "B")


@dataclass(frozen=True)
class Pool:
    """A task with its rows: what shots are drawn from, and the one test set of all methods.

    Attributes:
        task: template and label words.
        rows: {"text", "label"}, to draw shots from.
        test: {"text", "label"}.
        shots: examples per class.
    """

    task: Task
    rows: Sequence[dict]
    test: Sequence[dict]
    shots: int

    @property
    def digest(self) -> str:
        """SHA-256 of task and rows, shortened: a cell of other data is another cell."""
        content = json.dumps([asdict(self.task), self.rows, self.test], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Cell:
    """Everything that determines a number of the table; `method` is a name that `method_of` gave."""

    task: str
    method: str
    protocol: str
    seed: int
    shots: int
    model: str
    model_sha256: str | None
    dtype: str
    data_sha256: str
    n_test: int
    max_steps: int | None

    @classmethod
    def of(cls, row: dict) -> "Cell":
        """A finished row's cell."""
        values: dict[str, Any] = {item.name: row.get(item.name) for item in fields(cls)}
        return cls(**values)

    @property
    def scored(self) -> "Cell":
        """One cell for all that must have its number.

        Without demonstrations no shot bears on zero-shot; after them it is in-context learning, which the
        protocol does not change. Nor does it change what reads bare texts.
        """
        match self.method, self.protocol:
            case ("zero-shot", "A"):
                return replace(self, seed=0)
            case ("zero-shot", "B") | ("icl", _):
                return replace(self, method="icl", protocol="B")
            case ("embedding" | "setfit", "B"):
                return replace(self, protocol="A")
        return self

    @property
    def trained(self) -> str:
        """A key of the cell's training."""
        return digest(asdict(self))[:16]


@dataclass(frozen=True)
class Common:
    """What all cells of a run have in common; see `Cell`."""

    model: str
    model_sha256: str | None
    dtype: str
    max_steps: int | None = None

    @classmethod
    def of(cls, source: Source, dtype: torch.dtype, max_steps: int | None = None) -> "Common":
        """With a model's source and type, and a cap on optimiser steps."""
        return cls(source.name, source.sha256, str(dtype).removeprefix("torch."), max_steps)


def plan(
    pools: Sequence[Pool],
    methods: Sequence[str],
    protocols: Sequence[str],
    seeds: Sequence[int],
    common: Common,
) -> list[tuple[Pool, Cell]]:
    """All cells, seed by seed, so that a run that is cut short has whole seeds.

    Args:
        pools: the tasks.
        methods: names that `method_of` gave, so that equal settings are one cell.
        protocols: of `PROTOCOLS`.
        seeds: of the draws.
        common: what the cells share.
    """
    cells = []
    for seed, pool, protocol, method in product(seeds, pools, protocols, methods):
        cell = Cell(
            task=pool.task.name,
            method=method,
            protocol=protocol,
            seed=seed,
            shots=pool.shots,
            data_sha256=pool.digest,
            n_test=len(pool.test),
            **asdict(common),
        )
        cells.append((pool, cell))
    return cells


def read_cells(folder: Path) -> list[dict]:
    """The finished cells in all `cells*.jsonl` of a folder; a last line that a kill cut short is ignored.

    Raises:
        ValueError: another line is damaged.
    """
    rows = []
    for path in sorted(folder.glob("cells*.jsonl")):
        lines = path.read_text(encoding="utf-8").split("\n")
        for number, line in enumerate(lines, 1):
            if not line:
                continue
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                if number < len(lines):
                    raise ValueError(f"{path}, line {number} is damaged: {line[:60]!r}") from None
    return rows


def cells_file(share: tuple[int, int]) -> str:
    """The file of process i of n; no two processes write to the same."""
    part, parts = share
    return "cells.jsonl" if parts == 1 else f"cells-{part}.jsonl"


def _append(path: Path, row: dict) -> None:
    """One whole line, on the disk when this returns."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if text and not text.endswith("\n"):  # what a kill cut short
        path.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _setting(model: nn.Module, tokenizer: PreTrainedTokenizerBase, pool: Pool, cell: Cell) -> Setting:
    shots, _ = draw_shots(pool.rows, pool.shots, cell.seed, pool.task.label_words)
    return Setting(
        model, tokenizer, pool.task, shots, cell.protocol, cell.seed, cell.max_steps, progress=False
    )


def run_cell(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    pool: Pool,
    cell: Cell,
    track: Callable[[Iterable], Iterable] = iter,
    training: Training | None = None,
) -> dict:
    """Fit and score one cell.

    Args:
        model: unpatched; it is given back as it was.
        tokenizer: the model's.
        pool: the task's rows.
        cell: what to run.
        track: wraps the iteration over test batches.
        training: its training as one of a set; None to train now.

    Returns:
        The cell's fields with `accuracy`, `macro_f1`, `calibration_error`, `log_loss`, of trained norms
        `step_ratio` and `sharpness` (at the first 32 test texts), `seconds_fit`, `seconds_eval`,
        `n_trained_together` (the size of the set whose time `seconds_fit` is a share of; 1: trained alone),
        `n_trainable`, `n_steps`, `n_truncated` and the method's notes.
    """
    setting, method = _setting(model, tokenizer, pool, cell), method_of(cell.method)
    texts = [row["text"] for row in pool.test]
    begin = time.perf_counter()
    if training is None:
        fitting = method.fit(setting)
    else:
        assert isinstance(method, NormTuning)  # nothing else is trained in sets
        fitting = method.trained(setting, training.gammas, training.n_steps)
    with fitting as fitted:
        middle = time.perf_counter()
        scores = fitted.score(texts, track)
        end = time.perf_counter()
        measured = fitted.measure(texts)
    return {
        **asdict(cell),
        **metrics(scores, [row["label"] for row in pool.test]),
        **measured,
        "seconds_fit": training.seconds if training else middle - begin,
        "seconds_eval": end - middle,
        "n_trained_together": training.n_together if training else 1,
        "n_trainable": fitted.n_trainable,
        "n_steps": fitted.n_steps,
        "n_truncated": scores.n_truncated,
        "notes": {**fitted.notes, **(training.notes if training else {})},
    }


def _jobs(model: nn.Module, tokenizer: PreTrainedTokenizerBase, pool: Pool, cell: Cell) -> list[Job]:
    """A cell's training as some jobs of a set; none where it has to run alone."""
    method = method_of(cell.method)
    return method.jobs(_setting(model, tokenizer, pool, cell)) if isinstance(method, NormTuning) else []


def compare(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    planned: Sequence[tuple[Pool, Cell]],
    folder: Path,
    share: tuple[int, int] = (0, 1),
    watch: Watch = UNWATCHED,
) -> Iterator[tuple[dict, bool]]:
    """Run the planned cells that no file of the folder holds, one line each; yield all in turn.

    The first cell of LN-tuning or OFA of a task trains all such cells of the task as one set (`fit_many`);
    each is then scored in its turn. A training that fails raises when its cell's turn comes.

    Args:
        model: unpatched.
        tokenizer: the model's.
        planned: from `plan`.
        folder: where `cells*.jsonl` are, and `cells*-trained` while trained cells wait to be scored.
        share: (i, n): of n processes this one, the i-th, takes every n-th cell and writes a separate file.
        watch: shows the run.

    Yields:
        (row, whether it was added now).
    """
    folder.mkdir(parents=True, exist_ok=True)
    part, parts = share
    path = folder / cells_file(share)
    finished = {Cell.of(row): row for row in read_cells(folder)}
    trainings = Trainings(folder / f"{path.stem}-trained")
    # by the place in the plan, which is the same in all processes whenever they start
    own = planned[part::parts]

    def trained(pool: Pool, cell: Cell) -> Training | None:
        """A cell's training in a set, which runs unless it has; None for what trains alone or not at all."""
        if not _jobs(model, tokenizer, pool, cell):
            return None
        if cell.trained not in trainings:
            missing = [other for owner, other in own if owner is pool and other not in finished]
            waiting = [(other.trained, _jobs(model, tokenizer, pool, other)) for other in missing]
            jobs = {key: found for key, found in waiting if found and key not in trainings}
            if len(jobs) == 1:
                return None
            trainings.run(model, tokenizer, jobs, watch)
        return trainings[cell.trained]

    for pool, cell in own:
        if cell in finished:
            yield finished[cell], False
            continue
        twin = next((row for other, row in finished.items() if other.scored == cell.scored), None)
        training = None if twin else trained(pool, cell)
        row = (
            {**twin, **asdict(cell)}
            if twin
            else run_cell(model, tokenizer, pool, cell, watch.track, training)
        )
        _append(path, row)
        finished[cell] = row
        if training:
            trainings.drop(cell.trained)
        yield row, True
