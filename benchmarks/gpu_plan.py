"""What `gpu.py` times, how long that should take, and what fits."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

from benchmarks import norms
from benchmarks.cases import BACKWARD, BOTH, FORWARD, Case, named
from benchmarks.measure import WrongError, first_line
from benchmarks.table import Group
from benchmarks.tangent_cases import JVP, tangents
from benchmarks.traffic import OPERATORS

K = 16
COLUMNS = (576, 2048, 4096, 8192, 16384, 32768, 65536)
ROWS = (16, 256, 2048, 16384)
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
CASES = (FORWARD, BACKWARD, BOTH, JVP, tangents(K, with_dy=True))
# x of this many elements makes K tangents as large as the largest x of the other cases
TANGENT_ELEMENTS = 2**26
# torch.compile takes seconds a shape: these only
COMPILED_CASES, COMPILED_ROWS, COMPILED_COLUMNS = (FORWARD, BOTH), 2048, (576, 4096, 16384, 65536)
# up to so many rows the host's time a call is measured too, which is what small batches wait for
HOST_ROWS, HOST_CASES = 256, (FORWARD, BOTH)

BUDGET = 480.0  # seconds for everything
RESERVE = 20.0  # of it, for the last table and for writing
TABLE_SECONDS = 0.25  # of timing a table, unless the fewest rounds take longer
FEWEST_ROUNDS = 5

# the estimate's assumptions, all on the high side
PARITY_SECONDS = 150.0
SET_UP_SECONDS = 0.1  # a table: tensors, float64 truth, checks
TRITON_SECONDS = 1.5  # a case at a new row length or type: its kernels are compiled
INDUCTOR_SECONDS = 5.0  # a shape
ASSUMED_RATE = 2e12  # bytes a second
EAGER_TRAFFIC = 10  # times the minimum that a composition of eager operators moves; for tangents twice that
CONTENDERS = 2.5  # what all contenders but the eager ones move, in minima


@dataclass(frozen=True)
class Item:
    """One table to make."""

    case: Case
    rows: int
    columns: int
    dtype: str
    compiled: bool = False
    host: bool = False

    def __str__(self) -> str:
        """Its title in messages."""
        how = ", with the host's time" if self.host else ""
        return f"{self.case.name}, {self.rows} x {self.columns}, {self.dtype}{how}"

    @property
    def skip(self) -> tuple[str, ...]:
        """Contenders that are left out."""
        if self.compiled:
            return (norms.COMPOSED,)
        return norms.COMPILED, norms.COMPOSED

    def bytes(self) -> int:
        """What the operator has to move."""
        return OPERATORS[self.case.operator].bytes(self.rows, self.columns, DTYPES[self.dtype], self.case.k)

    def memory(self) -> int:
        """About what is allocated at once: tensors, results twice, eager code's float32 temporaries."""
        elements = self.rows * self.columns
        results = 2 * elements * self.case.k * DTYPES[self.dtype].itemsize
        return self.bytes() + results + 16 * 4 * elements

    def seconds(self) -> float:
        """About how long it takes, Triton's compilation apart."""
        eager = EAGER_TRAFFIC * (2 if self.case.k > 1 else 1)
        a_round = (2 * eager + CONTENDERS) * self.bytes() / ASSUMED_RATE
        compiling = INDUCTOR_SECONDS if self.compiled else 0.0
        return SET_UP_SECONDS + compiling + max(TABLE_SECONDS, FEWEST_ROUNDS * a_round)


def plan(only: str = "") -> list[Item]:
    """Every table of the cases that `only` chooses, bfloat16 first, short rows first."""
    items, names = [], [case.name for case in CASES]
    for dtype in DTYPES:
        for columns in COLUMNS:
            for case in CASES:
                if not named(case.name, only, names):
                    continue
                for rows in ROWS:
                    if case.k > 1 and rows * columns > TANGENT_ELEMENTS:
                        continue
                    compiled = (
                        case in COMPILED_CASES and rows == COMPILED_ROWS and columns in COMPILED_COLUMNS
                    )
                    items.append(Item(case, rows, columns, dtype, compiled))
                    if rows <= HOST_ROWS and case in HOST_CASES:
                        items.append(Item(case, rows, columns, dtype, host=True))
    return items


def estimate(items: Iterable[Item], memory: float = 80e9) -> dict[str, float]:
    """Seconds by what they are spent on, for a card with so many bytes."""
    fitting = [item for item in items if item.memory() <= memory]
    variants = {(item.case.name, item.columns, item.dtype) for item in fitting}
    return {
        "parity suite": PARITY_SECONDS,
        "Triton compiles": TRITON_SECONDS * len(variants),
        "tables": sum(item.seconds() for item in fitting),
    }


@dataclass(frozen=True)
class Result:
    """What became of a plan.

    Attributes:
        tables: what was made.
        left_out: items that did not fit into the time or the memory, and why.
        failed: items at which something of ours raised an error.
    """

    tables: list[Group]
    left_out: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def run(
    items: Iterable[Item],
    make: Callable[[Item], Group],
    now: Callable[[], float],
    deadline: float,
    free: Callable[[], int],
) -> Result:
    """Make the tables that fit into the time and the memory.

    Args:
        items: the plan.
        make: makes one table.
        now: seconds.
        deadline: the moment by which all must be made.
        free: bytes of free device memory.

    Raises:
        WrongError: one of our own operators is wrong.
    """
    result = Result([])
    for item in items:
        if now() + item.seconds() > deadline:
            result.left_out[str(item)] = "the time was up"
        elif item.memory() > free():
            sizes = f"needs about {item.memory() / 1e9:.0f} GB, {free() / 1e9:.0f} GB are free"
            result.left_out[str(item)] = sizes
        else:
            try:
                result.tables.append(make(item))
            except WrongError:
                raise
            except torch.OutOfMemoryError:
                result.left_out[str(item)] = "out of memory"
            except Exception as error:  # what was measured before it must not be lost
                result.failed[str(item)] = first_line(error)
    return result
