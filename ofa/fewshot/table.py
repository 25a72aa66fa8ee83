"""What the cells say together: accuracies, paired differences, wins and ranks, as tables, CSV and plots."""

import csv
import math
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

CSV_COLUMNS = (
    "task", "method", "protocol", "seed", "shots", "model", "dtype", "n_test", "max_steps", "accuracy",
    "macro_f1", "calibration_error", "seconds_fit", "seconds_eval", "n_trainable", "n_steps",
)  # fmt: skip


def folded(name: str, width: int) -> str:
    """A method's name in lines of up to `width` characters, broken before its options only."""
    lines = [""]
    for part in re.split(r"(?<=[:+])(?=\S)", name):
        if lines[-1] and len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


@dataclass(frozen=True)
class Section:
    """A titled table of text, for the screen and for Markdown."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """For the screen; where it is too narrow, columns go on below, beside the first one again."""
        # a space on both sides and a line
        widths = [3 + max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        # long names take several lines and leave room for numbers
        widths[0] = min(widths[0], options.max_width // 2, options.max_width - 1 - max(widths[1:]))
        blocks, room = [], 0
        for i, width in enumerate(widths[1:], 1):
            if not blocks or width > room:
                blocks.append([0])
                room = options.max_width - 1 - widths[0]
            blocks[-1].append(i)
            room -= width
        for block in blocks:
            table = Table(title=self.title if block is blocks[0] else None)
            for i in block:
                table.add_column(self.header[i], justify="right" if i else "left", overflow="fold")
            for name, *cells in self.rows:
                table.add_row(folded(name, widths[0] - 3), *(cells[i - 1] for i in block[1:]))
            yield table

    def markdown(self) -> str:
        """For a file."""
        lines = [f"**{self.title}**", "", "| " + " | ".join(self.header) + " |"]
        lines.append("| --- |" + " ---: |" * (len(self.header) - 1))
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        return "\n".join([*lines, ""])


def _ordered(rows: Iterable[dict], field: str) -> list:
    return list(dict.fromkeys(row[field] for row in rows))


def _mean_std(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def _of(rows: Iterable[dict], **fields) -> list[dict]:
    return [row for row in rows if all(row[name] == value for name, value in fields.items())]


def _accuracies(rows: Sequence[dict]) -> dict[tuple, float]:
    return {(row["task"], row["seed"]): row["accuracy"] for row in rows}


def accuracy_table(rows: Sequence[dict], protocol: str) -> Section:
    """Mean ± standard deviation over seeds, per method and task; the mean over tasks; seconds and sizes."""
    rows = _of(rows, protocol=protocol)
    tasks, body = _ordered(rows, "task"), []
    for method in _ordered(rows, "method"):
        own = _of(rows, method=method)
        by_task = [[row["accuracy"] for row in _of(own, task=task)] for task in tasks]
        complete = all(by_task)
        mean = f"{statistics.mean(map(statistics.mean, by_task)):.3f}" if complete else ""
        fit, evaluate = (
            statistics.mean(row[name] for row in own) for name in ("seconds_fit", "seconds_eval")
        )
        cells = (_mean_std(values) if values else "" for values in by_task)
        trained = f"{max(row['n_trainable'] for row in own):,}"
        body.append((method, *cells, mean, f"{fit:.1f}", f"{evaluate:.1f}", trained))
    seeds, sizes = len(_ordered(rows, "seed")), sorted({row["n_test"] for row in rows})
    title = (
        f"accuracy, protocol {protocol}: mean ± std over up to {seeds} seed{'s' * (seeds > 1)}, "
        f"{' or '.join(map(str, sizes))} test items"
    )
    return Section(title, ("method", *tasks, "mean", "fit s", "eval s", "trained"), body)


@dataclass(frozen=True)
class Paired:
    """One method against another on the cells that both have.

    Attributes:
        difference: mean over (task, seed) of the accuracies' difference.
        by_seed: its standard error from the seeds' means over tasks; NaN for one seed.
        by_task: its standard error from the tasks' means over seeds; NaN for one task.
        wins: cells where the first is better.
        losses: cells where it is worse.
        n: cells.
    """

    difference: float
    by_seed: float
    by_task: float
    wins: int
    losses: int
    n: int


def paired(first: Sequence[dict], second: Sequence[dict]) -> Paired | None:
    """Compare two methods' rows of one protocol; None without a common (task, seed)."""
    ours, theirs = _accuracies(first), _accuracies(second)
    common = sorted(ours.keys() & theirs.keys())
    if not common:
        return None
    differences = {key: ours[key] - theirs[key] for key in common}
    values = differences.values()
    wins, losses = sum(d > 0 for d in values), sum(d < 0 for d in values)
    errors = (_clustered(differences, by) for by in (1, 0))
    return Paired(statistics.mean(values), *errors, wins, losses, len(values))


def _clustered(differences: dict[tuple, float], by: int) -> float:
    """Standard error of the mean of the clusters' means; `by` is the cluster's place in the key."""
    clusters: dict = {}
    for key, value in differences.items():
        clusters.setdefault(key[by], []).append(value)
    means = [statistics.mean(values) for values in clusters.values()]
    return statistics.stdev(means) / math.sqrt(len(means)) if len(means) > 1 else float("nan")


def mean_ranks(rows: Sequence[dict]) -> dict[str, float]:
    """Each method's mean rank over the (task, seed) that all methods have; 1 is best, ties share."""
    methods = _ordered(rows, "method")
    accuracies = {method: _accuracies(_of(rows, method=method)) for method in methods}
    common = set.intersection(*(set(found) for found in accuracies.values()))
    ranks: dict[str, list[float]] = {method: [] for method in methods}
    for key in common:
        values = [accuracies[method][key] for method in methods]
        for method in methods:
            own = accuracies[method][key]
            better, equal = sum(v > own for v in values), sum(v == own for v in values)
            ranks[method].append(better + (equal + 1) / 2)
    return {method: statistics.mean(found) for method, found in ranks.items() if found}


def paired_table(rows: Sequence[dict], protocol: str, reference: str) -> Section | None:
    """Every method against the reference: difference, its standard errors, wins and losses, mean rank."""
    rows = _of(rows, protocol=protocol)
    ranks, own, body = mean_ranks(rows), _of(rows, method=reference), []
    for method in _ordered(rows, "method"):
        found = paired(_of(rows, method=method), own)
        if method == reference or found is None:
            continue
        errors = (
            "" if math.isnan(error) else f"± {100 * error:.2f}" for error in (found.by_seed, found.by_task)
        )
        rank = f"{ranks[method]:.1f}" if method in ranks else ""
        ties = found.n - found.wins - found.losses
        counts = f"{found.wins} / {ties} / {found.losses}"
        body.append((method, f"{100 * found.difference:+.2f}", *errors, counts, rank))
    if not body:
        return None
    rank = f" (mean rank {ranks[reference]:.1f})" if reference in ranks else ""
    title = f"against {reference}{rank}, protocol {protocol}: points of accuracy, paired by task and seed"
    return Section(
        title, ("method", "difference", "by seed", "by task", "won / tied / lost", "mean rank"), body
    )


def sections(rows: Sequence[dict], against: str | None = None) -> list[Section]:
    """All tables, protocol by protocol; never two in one.

    Args:
        rows: finished cells.
        against: the reference of the paired differences; a protocol without it has no table of them. None
            for LN-tuning, the real competitor, or where it was not run the first method.
    """
    found = []
    for protocol in sorted(_ordered(rows, "protocol")):
        own = _of(rows, protocol=protocol)
        methods = _ordered(own, "method")
        reference = against or ("ln-tuning" if "ln-tuning" in methods else methods[0])
        found += [accuracy_table(own, protocol), paired_table(own, protocol, reference)]
    return [section for section in found if section is not None]


def write_csv(rows: Sequence[dict], path: Path) -> None:
    """One line a cell."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, CSV_COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
