"""What the cells say together: accuracies, paired differences, wins and ranks, as tables, CSV and plots."""

import csv
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from ofa.compare.statistics import in_set, mean_ranks, paired, rows_of, values_of
from ofa.report import Section

CSV_COLUMNS = (
    "task", "method", "protocol", "seed", "shots", "model", "dtype", "n_test", "max_steps", "accuracy",
    "macro_f1", "calibration_error", "log_loss", "step_ratio", "sharpness", "seconds_fit", "seconds_eval",
    "n_trained_together", "n_trainable", "n_steps",
)  # fmt: skip


def _mean_std(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def seconds_fit(rows: Sequence[dict]) -> str:
    """The mean time of the trainings that ran alone, and apart from it the mean share of those in sets."""
    alone, in_sets = ([row["seconds_fit"] for row in rows if in_set(row) is kind] for kind in (False, True))
    found = [(alone, ""), (in_sets, " in a set")]
    return ", ".join(f"{statistics.mean(values):.1f}{where}" for values, where in found if values)


def mean_of(rows: Sequence[dict], field: str, digits: int = 3) -> str:
    """The mean over the rows that have the field, with their number where others have not; empty for none."""
    values = [row[field] for row in rows if field in row]
    if not values:
        return ""
    counted = f" ({len(values)} of {len(rows)} cells)" * (len(values) < len(rows))
    return f"{statistics.mean(values):.{digits}f}{counted}"


def accuracy_table(rows: Sequence[dict], protocol: str) -> Section:
    """Mean ± standard deviation over seeds, per method and task; the mean over tasks; seconds and sizes."""
    rows = rows_of(rows, protocol=protocol)
    tasks, body = values_of(rows, "task"), []
    for method in values_of(rows, "method"):
        own = rows_of(rows, method=method)
        by_task = [[row["accuracy"] for row in rows_of(own, task=task)] for task in tasks]
        complete = all(by_task)
        mean = f"{statistics.mean(map(statistics.mean, by_task)):.3f}" if complete else ""
        evaluate = statistics.mean(row["seconds_eval"] for row in own)
        cells = (_mean_std(values) if values else "" for values in by_task)
        trained = f"{max(row['n_trainable'] for row in own):,}"
        body.append((method, *cells, mean, seconds_fit(own), f"{evaluate:.1f}", trained))
    seeds, sizes = len(values_of(rows, "seed")), sorted({row["n_test"] for row in rows})
    title = (
        f"accuracy, protocol {protocol}: mean ± std over up to {seeds} seed{'s' * (seeds > 1)}, "
        f"{' or '.join(map(str, sizes))} test items"
    )
    return Section(title, ("method", *tasks, "mean", "fit s", "eval s", "trained"), body)


def probability_table(rows: Sequence[dict], protocol: str) -> Section | None:
    """How good the probabilities are: mean log-loss and calibration error over a method's cells.

    Cells of earlier versions lack the log-loss; a table without a number is None.
    """
    rows = rows_of(rows, protocol=protocol)
    fields = ("log_loss", "calibration_error")
    own = ((method, rows_of(rows, method=method)) for method in values_of(rows, "method"))
    body = [(method, f"{len(cells)}", *(mean_of(cells, field) for field in fields)) for method, cells in own]
    body = [line for line in body if any(line[2:])]
    if not body:
        return None
    title = f"probabilities, protocol {protocol}: means over a method's cells"
    return Section(title, ("method", "cells", "log-loss, nats", "calibration error"), body)


def paired_table(rows: Sequence[dict], protocol: str, reference: str) -> Section | None:
    """Every method against the reference: difference, its standard errors, wins and losses, mean rank."""
    rows = rows_of(rows, protocol=protocol)
    ranks, own, body = mean_ranks(rows), rows_of(rows, method=reference), []
    for method in values_of(rows, "method"):
        found = paired(rows_of(rows, method=method), own)
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
    for protocol in sorted(values_of(rows, "protocol")):
        own = rows_of(rows, protocol=protocol)
        methods = values_of(own, "method")
        reference = against or ("ln-tuning" if "ln-tuning" in methods else methods[0])
        found += [
            accuracy_table(own, protocol),
            probability_table(own, protocol),
            paired_table(own, protocol, reference),
        ]
    return [section for section in found if section is not None]


def write_csv(rows: Sequence[dict], path: Path) -> None:
    """One line a cell."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, CSV_COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
