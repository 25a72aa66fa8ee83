"""The cells of a search, setting by setting, beside those of a reference."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from ofa.compare.statistics import Paired, paired, rows_of, values_of
from tools.ablation.variations import Variation

# what all cells of a mean must have in common, and what all of a task must
ALIKE = ("protocol", "model", "model_sha256", "dtype", "max_steps")
ALIKE_IN_TASK = ("shots", "n_test", "data_sha256")


@dataclass(frozen=True)
class Result:
    """A setting beside the reference.

    Attributes:
        variation: what the setting varies.
        rows: its cells whose (task, draw) the reference has too.
        reference: all cells of the reference.
        n_tasks: tasks of the folder.
    """

    variation: Variation
    rows: list[dict]
    reference: list[dict]
    n_tasks: int

    @property
    def draws(self) -> tuple[int, ...]:
        """The draws that the rows are of."""
        return tuple(sorted(values_of(self.rows, "seed")))

    @property
    def counted(self) -> str:
        """How many cells, and where its draws lack some on a task, of how many."""
        n, n_full = len(self.rows), self.n_tasks * len(self.draws)
        return f"{n}" if n == n_full else f"{n} of {n_full}"

    def at(self, draws: Collection[int]) -> "Result":
        """The same on some draws only."""
        return replace(self, rows=[row for row in self.rows if row["seed"] in draws])

    def against(self, field: str = "accuracy") -> Paired | None:
        """The field minus the reference's on the same cells; None where none has it."""
        return paired(self.rows, self.reference, field)


def check(rows: Sequence[dict]) -> None:
    """Refuse cells that can't be averaged or paired.

    Raises:
        ValueError: the cells differ in what a mean must have in common, or one is there twice; with what.
    """
    groups = [("", rows, ALIKE)]
    groups += [(f"{task}: ", rows_of(rows, task=task), ALIKE_IN_TASK) for task in values_of(rows, "task")]
    wrong = []
    for place, cells, names in groups:
        for name in names:
            counts = Counter(row.get(name) for row in cells)
            if len(counts) > 1:
                told = (f"{value} ({count} of {len(cells)} cells)" for value, count in counts.items())
                wrong.append(f"{place}{name} is {', '.join(told)}; have cells of one only")
    if not wrong:
        cells = Counter((row["task"], row["method"], row["seed"]) for row in rows)
        wrong = [f"{', '.join(map(str, key))}: is there {n} times" for key, n in cells.items() if n > 1]
    if wrong:
        raise ValueError("\n".join(wrong))


def results(rows: Sequence[dict], reference: str) -> list[Result]:
    """Every setting's cells in common with the reference's; the reference itself is the first."""
    own, n_tasks = rows_of(rows, method=reference), len(values_of(rows, "task"))
    common = {(row["task"], row["seed"]) for row in own}
    found = []
    for name in dict.fromkeys([reference, *values_of(rows, "method")]):
        cells = [row for row in rows_of(rows, method=name) if (row["task"], row["seed"]) in common]
        found.append(Result(Variation.of(name, reference), cells, own, n_tasks))
    return found
