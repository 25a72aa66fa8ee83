"""Methods against each other on the cells that they share: paired differences, wins and ranks."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


def values_of(rows: Iterable[dict], field: str) -> list:
    """The different values of a field, in the order in which they first occur."""
    return list(dict.fromkeys(row[field] for row in rows))


def rows_of(rows: Iterable[dict], **fields: object) -> list[dict]:
    """The rows whose fields have these values."""
    return [row for row in rows if all(row[name] == value for name, value in fields.items())]


def in_set(row: dict) -> bool:
    """Whether `seconds_fit` is a share of a set's time, which can't be compared with a training's own."""
    return row.get("n_trained_together", 1) > 1


def _accuracies(rows: Sequence[dict]) -> dict[tuple, float]:
    return {(row["task"], row["seed"]): row["accuracy"] for row in rows}


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
    of_first, of_second = _accuracies(first), _accuracies(second)
    common = sorted(of_first.keys() & of_second.keys())
    if not common:
        return None
    differences = {key: of_first[key] - of_second[key] for key in common}
    values = differences.values()
    wins, losses = sum(d > 0 for d in values), sum(d < 0 for d in values)
    by_seed, by_task = _clustered(differences, 1), _clustered(differences, 0)
    return Paired(statistics.mean(values), by_seed, by_task, wins, losses, len(values))


def _clustered(differences: dict[tuple, float], by: int) -> float:
    """Standard error of the mean of the clusters' means; `by` is the cluster's place in the key."""
    clusters: dict = {}
    for key, value in differences.items():
        clusters.setdefault(key[by], []).append(value)
    means = [statistics.mean(values) for values in clusters.values()]
    return statistics.stdev(means) / math.sqrt(len(means)) if len(means) > 1 else float("nan")


def mean_ranks(rows: Sequence[dict]) -> dict[str, float]:
    """Each method's mean rank over the (task, seed) that all methods have; 1 is best, ties share."""
    methods = values_of(rows, "method")
    accuracies = {method: _accuracies(rows_of(rows, method=method)) for method in methods}
    common = set.intersection(*(set(of_method) for of_method in accuracies.values()))
    ranks: dict[str, list[float]] = {method: [] for method in methods}
    for key in common:
        values = [accuracies[method][key] for method in methods]
        for method in methods:
            own = accuracies[method][key]
            better, equal = sum(v > own for v in values), sum(v == own for v in values)
            ranks[method].append(better + (equal + 1) / 2)
    return {method: statistics.mean(of_method) for method, of_method in ranks.items() if of_method}
