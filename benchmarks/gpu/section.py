"""What a section is: a part of the benchmark with its own process, its own time limit and its own rows."""

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType

Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]


@dataclass(frozen=True)
class Section:
    """One part of the benchmark.

    Its module has three functions. `rows(card, task)` measures and yields one plain dict at a time, each of
    which is on the disk before the next is begun. `tables(rows)` gives (title, header, cells) for reading,
    `finding(rows)` what the rows say in one line.

    Attributes:
        name: of the section and of its module.
        title: what it does, for the table of sections.
        seconds: how long it should take on a card, its process's start included.
        limit: after so many it is stopped; what it has yielded by then counts.
    """

    name: str
    title: str
    seconds: float
    limit: float

    @cached_property
    def module(self) -> ModuleType:
        """Where it is written."""
        return importlib.import_module(f"benchmarks.gpu.{self.name}")


# in order of value: what is cut off when the time is up is what matters least
SECTIONS = (
    Section("environment", "versions, compiled-ahead kernels, rate of a copy", 20, 40),
    Section("parity", "the kernels' tests on this card", 75, 110),
    Section("headline", "seven shapes, four operators, against the others", 75, 100),
    Section("cuda", "the CUDA C++ kernels beside Triton's", 50, 80),
    Section("step", "an OFA step of an 8B-shaped Llama", 80, 120),
    Section("adapters", "a weight for each row, jobs in lockstep, texts of many adapters", 30, 70),
    Section("sweep", "launch choices", 100, 120),
    Section("host", "what a call costs the host", 30, 50),
    Section("compiled", "torch.compile at three of the shapes", 40, 80),
    Section("tools", "Nsight Compute and compute-sanitizer", 40, 90),
    Section("demo", "the demo on this card, if its model is at hand", 30, 90),
)


@dataclass(frozen=True)
class Task:
    """What a section's process is told.

    Attributes:
        out: where files of its own go.
        wrong: kernels that a parity test found wrong: their speed is not reported.
        suite: what pytest is given in the parity section; empty for the kernels' tests.
        seconds: how long it may take.
    """

    out: str
    wrong: tuple[str, ...] = ()
    suite: tuple[str, ...] = ()
    seconds: float = 3600.0


def chosen(names: Sequence[str]) -> tuple[Section, ...]:
    """The sections of these names, in the benchmark's order; all if there are none.

    Raises:
        ValueError: an unknown name.
    """
    known = [section.name for section in SECTIONS]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"unknown section {unknown[0]!r}; known are {', '.join(known)}")
    return tuple(section for section in SECTIONS if not names or section.name in names)


def text(value: float | None, form: str) -> str:
    """A number for a table; empty where there is none."""
    return "" if value is None else format(value, form)


Rows = Iterator[dict]
