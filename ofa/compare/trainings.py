"""Trainings that run as one set, and are kept on the disk until the cells that wait for them are scored."""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ofa.members import mean_gamma
from ofa.train.checkpoint import digest
from ofa.train.fit_many import fit_many
from ofa.train.job import Job, JobResult
from ofa.train.step import NonFiniteError


@dataclass(frozen=True)
class Watch:
    """How a run is shown while it goes on; without arguments, not at all.

    Attributes:
        track: wraps the iteration over a cell's test batches.
        training: entered with the number of its trainings while a set runs; says whether the set shows a bar.
    """

    track: Callable[[Iterable], Iterable] = iter
    training: Callable[[int], AbstractContextManager[bool]] = lambda _: nullcontext(False)


UNWATCHED = Watch()


@dataclass(frozen=True)
class Training:
    """What the training of a cell gave, which may be several jobs of a set.

    Attributes:
        gammas: γ, a tensor a norm; the mean over the jobs.
        n_steps: optimiser steps that were taken, of all jobs.
        seconds: their share of the time that the set took, see `JobResult`.
        n_together: jobs in the set.
        notes: what a table should say besides.
    """

    gammas: list[Tensor]
    n_steps: int
    seconds: float
    n_together: int
    notes: dict = field(default_factory=dict)

    @classmethod
    def of(
        cls, results: Sequence[JobResult], n_together: int | None = None, notes: dict | None = None
    ) -> "Training":
        """What the results of a cell's jobs come to; raises the first error that one of them ended in."""
        for result in results:
            if result.error is not None:
                raise result.error
        gammas = mean_gamma(result.gammas for result in results)
        n_steps, seconds = sum(len(r.history) for r in results), sum(r.seconds for r in results)
        return cls(gammas, n_steps, seconds, n_together or len(results), notes or {})


class Trainings:
    """The trainings of a run, each by a key of its own.

    A set that was stopped goes on where it was, and one that is trained is trained once, although its cells
    are scored one after the other and the run may be killed between two of them.

    Args:
        folder: where they are kept; made where missing, and gone when nothing is left in it.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.errors: dict[str, Exception] = {}

    def __contains__(self, key: str) -> bool:
        return key in self.errors or self._file(key).exists()

    def __getitem__(self, key: str) -> Training:
        """A training that has ended; raises the error that it ended in."""
        if key in self.errors:
            raise self.errors[key]
        with safe_open(self._file(key), "pt") as file:
            record = json.loads(file.metadata()["training"])
            return Training([file.get_tensor(f"{i}") for i in range(len(file.keys()))], **record)

    def run(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        jobs: Mapping[str, Sequence[Job]],
        watch: Watch = UNWATCHED,
    ) -> None:
        """Train a set, and keep what it gives.

        Args:
            model: unpatched; it is given back as it was.
            tokenizer: the model's.
            jobs: of each cell, by its key.
            watch: shows it.

        Raises:
            ValueError: no job can be run, as in `fit_many`.
            KeyboardInterrupt: Ctrl-C; the set goes on where it was.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = self.folder / f"set-{digest(list(jobs))[:16]}.safetensors"
        for other in self.folder.glob("set-*"):  # of a run with other cells
            if other != unfinished:
                other.unlink()
        notes = {"seconds_fit": "without what ran before the set was stopped"} if unfinished.exists() else {}
        every = [job for of_cell in jobs.values() for job in of_cell]
        with watch.training(len(every)) as visible:
            results = iter(fit_many(model, tokenizer, every, visible, unfinished))
        for key, of_cell in jobs.items():
            own = list(islice(results, len(of_cell)))
            try:
                self._keep(key, Training.of(own, len(every), notes))
            except (NonFiniteError, ValueError) as error:
                self.errors[key] = error
        unfinished.unlink(missing_ok=True)

    def drop(self, key: str) -> None:
        """Forget a training that no cell waits for any more; harmless where there is none."""
        self._file(key).unlink(missing_ok=True)
        with suppress(OSError):  # it holds others, or never was
            self.folder.rmdir()

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _keep(self, key: str, training: Training) -> None:
        record = {name: value for name, value in vars(training).items() if name != "gammas"}
        tensors = {f"{i}": gamma.contiguous() for i, gamma in enumerate(training.gammas)}
        unfinished = self.folder / f"{key}.part"
        with unfinished.open("wb") as file:
            file.write(save(tensors, {"training": json.dumps(record)}))
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self._file(key))
