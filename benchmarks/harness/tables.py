"""What is said about a measurement, and how a table of measurements is written."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from rich.table import Table

from benchmarks.harness.contenders import COMPILED, FUNCTIONAL, KERNELS_ALONE, LIGER, OURS

UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
HEADER = ("", "median", "IQR", "GB/s", "% of copy", "copies", "time / eager")


def seconds(value: float) -> str:
    """Three digits and a unit."""
    scale, unit = next(((s, u) for s, u in UNITS if value >= s), UNITS[-1])
    return f"{value / scale:.3g} {unit}"


def _iqr(times: Sequence[float]) -> float:
    if len(times) < 2:
        return 0.0
    first, _, third = statistics.quantiles(times, n=4, method="inclusive")
    return third - first


@dataclass(frozen=True)
class Entry:
    """One contender's row.

    Attributes:
        label: the contender.
        median: seconds.
        iqr: seconds.
        bytes: what the operator has to move.
        gb_per_s: `bytes` over the median.
        percent_of_copy: the rate as a percentage of the copy's, by rounds, median.
        copies: the time in copies of x, by rounds, median.
        per_eager: the time over eager transformers' in the same round, median.
        note: why there are no numbers, where there are none; said below the table.
    """

    label: str
    median: float | None = None
    iqr: float | None = None
    bytes: int | None = None
    gb_per_s: float | None = None
    percent_of_copy: float | None = None
    copies: float | None = None
    per_eager: float | None = None
    note: str = ""

    def cells(self) -> tuple[str, ...]:
        """The row's texts under `HEADER`."""
        return (
            self.label,
            *("" if value is None else seconds(value) for value in (self.median, self.iqr)),
            *_texts(".1f", self.gb_per_s),
            *_texts(".0f", self.percent_of_copy),
            *_texts(".2f", self.copies, self.per_eager),
        )


def _texts(form: str, *values: float | None) -> list[str]:
    return ["" if value is None else format(value, form) for value in values]


def _ratio(times: Sequence[float], others: Sequence[float] | None) -> float | None:
    """The median of time / other time of the same round."""
    if others is None:
        return None
    return statistics.median(t / o for t, o in zip(times, others, strict=True))


def entries(
    times: Mapping[str, Sequence[float]],
    moved: Mapping[str, int],
    unit: str,
    copy: str,
    eager: str,
    notes: Mapping[str, str] | None = None,
) -> list[Entry]:
    """A row for each contender of one table.

    Args:
        times: seconds by contender; the numbers at one index are of the same round.
        moved: bytes by contender.
        unit: the contender that copies x, for "copies".
        copy: the one whose rate counts as 100 %.
        eager: the one that the ratio is to.
        notes: contenders without times, and why.
    """
    rows = []
    for label, own in times.items():
        median, slower = statistics.median(own), _ratio(own, times.get(copy))
        rows.append(
            Entry(
                label,
                median,
                _iqr(own),
                moved[label],
                moved[label] / median / 1e9,
                100 * moved[label] / moved[copy] / slower if slower else None,
                _ratio(own, times.get(unit)),
                _ratio(own, times.get(eager)),
            )
        )
    return rows + [Entry(label, note=note) for label, note in (notes or {}).items()]


def to_rich(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table for the terminal, its first column left, the others right."""
    table = Table(title=title, title_justify="left")
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def to_markdown(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The same as lines of Markdown, an empty one last."""
    lines = [f"**{title}**", "", f"| {' | '.join(header)} |", "| --- |" + " ---: |" * (len(header) - 1)]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows), ""]


@dataclass(frozen=True)
class Group:
    """One table: an operator at one size and type."""

    case: str
    rows: int
    columns: int
    dtype: str
    entries: tuple[Entry, ...]

    def __str__(self) -> str:
        """The table's heading."""
        return f"{self.case}, {self.size}"

    @property
    def size(self) -> str:
        """Shape and type."""
        return f"{self.rows} x {self.columns}, {self.dtype}"

    def table(self) -> Table:
        """The group for the terminal."""
        cells = [entry.cells() for entry in self.entries if entry.median is not None]
        table = to_rich(str(self), HEADER, cells)
        table.caption, table.caption_justify = "\n".join(self._notes()), "left"
        return table

    def markdown(self) -> list[str]:
        """The same as lines of Markdown."""
        cells = [entry.cells() for entry in self.entries if entry.median is not None]
        return to_markdown(str(self), HEADER, cells) + [line for note in self._notes() for line in (note, "")]

    def _notes(self) -> list[str]:
        return [f"{entry.label}: {entry.note}" for entry in self.entries if entry.note]

    def to_json(self) -> dict:
        """The group as plain data."""
        return asdict(self)


# a column of the summaries and the contenders it is the ratio to, the first that was timed
OTHERS = (
    ("/ F.rms_norm", (FUNCTIONAL,)),
    ("/ compiled", (COMPILED, "torch.compile(eager PyTorch)")),
    ("/ Liger", (LIGER,)),
)


def summaries(groups: Iterable[Group]) -> list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    """Title, header and rows of a table a case: what ours costs through autograd at each size.

    "alone" is the time of the kernels without autograd, in copies. Ratios are of medians, those to eager by
    rounds; a column that nothing fills is left out.
    """
    by_case: dict[str, list[Group]] = {}
    for group in groups:
        by_case.setdefault(group.case, []).append(group)
    tables = []
    for case, of_case in by_case.items():
        rows = [_in_short(group) for group in of_case]
        rows = [row for row in rows if row]
        header = ("ours", "median", "copies", "alone", "% of copy", "/ eager", *(name for name, _ in OTHERS))
        filled = [i for i in range(len(header)) if any(row[i] for row in rows)]
        if rows:
            tables.append(
                (case, tuple(header[i] for i in filled), [tuple(row[i] for i in filled) for row in rows])
            )
    return tables


def _in_short(group: Group) -> tuple[str, ...] | None:
    by_label = {entry.label: entry for entry in group.entries if entry.median is not None}
    own, alone = by_label.get(OURS), by_label.get(KERNELS_ALONE)
    if own is None or own.median is None:
        return None
    rivals = (next((by_label[label] for label in labels if label in by_label), None) for _, labels in OTHERS)
    medians = (rival.median if rival else None for rival in rivals)
    ratios = (own.median / median if median else None for median in medians)
    return (
        group.size,
        seconds(own.median),
        *_texts(".2f", own.copies, alone.copies if alone else None),
        *_texts(".0f", own.percent_of_copy),
        *_texts(".2f", own.per_eager, *ratios),
    )
