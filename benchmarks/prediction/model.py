"""The time of a launch: its teams work on their rows in rounds, each as long as what holds it up longest.

A team is what works on a row: a block, or a cluster of blocks. As many run at once as registers, threads and
shared memory let. In a round each of them does one row, which takes as long as the longest of:

* memory: the rows' bytes at the rate of a copy;
* cache: the same and what comes from the L2 cache only, at its rate;
* instructions: those of the busiest multiprocessor;
* float64: its operations in float64;
* latency: what one team does one after the other, for each of the row's steps (a row has one, and one more
  for each tangent). It issues the step's instructions and adds up over the team. What it reads is on its way
  for LATENCY, and as long as it takes at the rate of the team's multiprocessors alone. A kernel that reads
  ahead waits only where that is longer than the steps meanwhile, which is Little's law; another waits for all
  of it.

The last round has the rows that are left: it costs as much latency as a full one. A launch itself costs
LAUNCH, and LATENCY until the first bytes are there; so does a copy.

Terms overlap perfectly here: where two are equal the truth is slower. Nothing was fitted to a measurement.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.prediction.cards import BLOCKS, REGISTERS, Card

LAUNCH = 1e-6  # seconds between two kernels of a CUDA graph
EARLY_LAUNCH = 0.5e-6  # the same, where the second has been launched when the first ends
LATENCY = 0.7e-6  # of memory under load
CACHE_LATENCY = 0.3e-6  # of the L2 cache
OF_PEAK = 0.92  # of the memory's peak, that a large copy reaches
ISSUED = 3.0  # instructions of warps that a multiprocessor issues in a clock, of 4 that it could
OWN_CLOCKS = 2.0  # between two instructions of the same warp
SUM_CLOCKS = 450  # to add up over a block: two rounds of shuffles in float64, a barrier, r
DELIVERY_CLOCKS = 300  # in which the blocks of a cluster have each other's sums
WARP = 32


@dataclass(frozen=True)
class Work:
    """What one row is to the kernel that works on it.

    Args:
        instructions: Of a thread.
        read: Bytes from memory.
        written: Bytes to memory.
        cached: Bytes that only the L2 cache gives or takes.
        once: Bytes from memory that all rows share.
        steps: One after the other.
        sums: Over the team, one after the other, a step.
        doubles: Operations in float64 of a thread.
    """

    instructions: float
    read: float
    written: float
    cached: float = 0
    once: float = 0
    steps: int = 1
    sums: int = 1
    doubles: float = 0


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel.

    Args:
        kernel: Its name.
        work: What a row is to it.
        rows: How many rows its teams share.
        teams: Among how many.
        threads: Of a block.
        registers: Of a thread.
        shared: Bytes of shared memory of a block.
        blocks: Of a team.
        ahead: Steps that are read ahead.
        finishes: Whether it only reads what a launch before it left in the cache.
        early: Whether it has been launched when the one before it ends.
    """

    kernel: str
    work: Work
    rows: int
    teams: int
    threads: int
    registers: int
    shared: int
    blocks: int = 1
    ahead: int = 0
    finishes: bool = False
    early: bool = False

    def resident(self, card: Card) -> int:
        """Teams that run at once."""
        warps = math.ceil(self.threads / WARP)
        of_warp = math.ceil(self.registers / 8) * 8 * WARP  # registers are given out in eights
        blocks = min(
            BLOCKS,
            card.threads // (warps * WARP),
            REGISTERS // (warps * of_warp),
            (card.shared + 1024) // (self.shared + 1024),
        )
        return max(1, blocks * card.multiprocessors // self.blocks)

    def round(self, card: Card, teams: int) -> tuple[float, str]:
        """Seconds in which that many teams do a row each, and what takes so long."""
        warps, work = math.ceil(self.threads / WARP), self.work
        busiest = math.ceil(teams * self.blocks / card.multiprocessors)
        moved = work.read + work.written
        clocks = max(warps / ISSUED, OWN_CLOCKS) * work.instructions / work.steps
        step = (clocks + work.sums * SUM_CLOCKS) / card.clock
        if self.blocks > 1:
            step += work.sums * DELIVERY_CLOCKS / card.clock
        of_team = copy_rate(card) * self.blocks / card.multiprocessors
        latency = CACHE_LATENCY if self.finishes else LATENCY + work.read / work.steps / of_team
        step = max(step, latency / self.ahead) if self.ahead else step + latency
        terms = {
            "memory": teams * moved / copy_rate(card),
            "cache": teams * (moved + work.cached) / card.cache_rate,
            "instructions": busiest * warps * work.instructions / ISSUED / card.clock,
            "float64": busiest * self.threads * work.doubles / card.float64 / card.clock,
            "latency": work.steps * step,
        }
        name = max(terms, key=lambda term: terms[term])
        return terms[name], name

    def times(self, card: Card) -> dict[str, float]:
        """Seconds by what they are spent on; "launches" are those before the first row."""
        gap = EARLY_LAUNCH if self.early else LAUNCH
        spent: dict[str, float] = defaultdict(float, launches=gap if self.finishes else gap + LATENCY)
        spent["memory"] += self.work.once / copy_rate(card)
        resident = self.resident(card)
        waves, left = divmod(self.teams, resident)
        each, more = divmod(self.rows, self.teams)
        for teams, times in ((resident, waves), (left, 1)):
            if not teams:
                continue
            for share, rounds in ((teams, each), (math.ceil(more * teams / self.teams), 1)):
                if share:
                    seconds, name = self.round(card, share)
                    spent[name] += seconds * rounds * times
        return spent


def copy_rate(card: Card) -> float:
    """Bytes a second, read and written, that a large copy moves."""
    return OF_PEAK * card.bandwidth


def copy_time(card: Card, moved: float) -> float:
    """Seconds for a copy that moves so many bytes, read and written."""
    return LAUNCH + LATENCY + moved / copy_rate(card)


def total(launches: Iterable[Launch], card: Card) -> dict[str, float]:
    """Seconds of launches one after the other, by what they are spent on, the longest first."""
    spent: dict[str, float] = defaultdict(float)
    for launch in launches:
        for name, seconds in launch.times(card).items():
            spent[name] += seconds
    return dict(sorted(spent.items(), key=lambda item: -item[1]))
