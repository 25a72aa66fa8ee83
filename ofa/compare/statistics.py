"""Methods against each other on the cells that they share: paired differences, wins and ranks."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
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


def _values(rows: Sequence[dict], field: str = "accuracy") -> dict[tuple, float]:
    """By (task, seed), of the rows that have the field."""
    return {(row["task"], row["seed"]): row[field] for row in rows if field in row}


@dataclass(frozen=True)
class Paired:
    """One method against another on the cells that both have.

    Attributes:
        difference: mean over (task, seed) of the differences.
        by_seed: its standard error clustered by seed; NaN for one seed.
        by_task: its standard error clustered by task; NaN for one task.
        by_cell: its standard error if all cells were independent of each other; NaN for one cell.
        wins: cells where the first has more.
        losses: cells where it has less.
        n: cells.
    """

    difference: float
    by_seed: float
    by_task: float
    by_cell: float
    wins: int
    losses: int
    n: int


def paired(first: Sequence[dict], second: Sequence[dict], field: str = "accuracy") -> Paired | None:
    """Compare a field of two methods' rows of one protocol; None without a common (task, seed)."""
    of_first, of_second = _values(first, field), _values(second, field)
    common = sorted(of_first.keys() & of_second.keys())
    if not common:
        return None
    differences = {key: of_first[key] - of_second[key] for key in common}
    values = differences.values()
    return Paired(
        difference=statistics.mean(values),
        by_seed=_clustered(differences, lambda key: key[1]),
        by_task=_clustered(differences, lambda key: key[0]),
        by_cell=_clustered(differences, lambda key: key),
        wins=sum(d > 0 for d in values),
        losses=sum(d < 0 for d in values),
        n=len(values),
    )


def _clustered(differences: dict[tuple, float], cluster: Callable[[tuple], object]) -> float:
    """Standard error of the mean over cells, of which those of a cluster may depend on each other.

    sqrt(G/(G-1) Σ_g (Σ_{i in g} (d_i - d̄))²) / n for G clusters (Cameron and Miller 2015, section II). For
    clusters of one size it is the standard deviation of the clusters' means over sqrt(G).
    """
    mean = statistics.mean(differences.values())
    sums: dict[object, float] = {}
    for key, value in differences.items():
        sums[cluster(key)] = sums.get(cluster(key), 0.0) + value - mean
    if len(sums) == 1:
        return float("nan")
    scale = len(sums) / (len(sums) - 1)
    return math.sqrt(scale * sum(total**2 for total in sums.values())) / len(differences)


def mean_ranks(rows: Sequence[dict]) -> dict[str, float]:
    """Each method's mean rank over the (task, seed) that all methods have; 1 is best, ties share."""
    methods = values_of(rows, "method")
    accuracies = {method: _values(rows_of(rows, method=method)) for method in methods}
    common = set.intersection(*(set(of_method) for of_method in accuracies.values()))
    ranks: dict[str, list[float]] = {method: [] for method in methods}
    for key in common:
        values = [accuracies[method][key] for method in methods]
        for method in methods:
            own = accuracies[method][key]
            better, equal = sum(v > own for v in values), sum(v == own for v in values)
            ranks[method].append(better + (equal + 1) / 2)
    return {method: statistics.mean(of_method) for method, of_method in ranks.items() if of_method}
