"""Times several ways of doing the same thing in turns, so that all of them meet the same machine.

One after the other they don't: memory that the first frees is what the second is given, caches hold what ran
last, and a shared machine has slow and fast minutes.
"""

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from torch.cuda import Event

from benchmarks.harness import allocator

Label = TypeVar("Label")  # what a contender is known by
Clock = Callable[[Callable[[], object], int], float]
TURN_SECONDS = 2e-3  # a turn of a short call repeats it for about so long
# after so many calls the heap no longer asks for fresh pages: seen to take five, a fault costs 2 µs
WARM_CALLS = 8
LONG_SECONDS = 0.1


def cpu_clock(call: Callable[[], object], iterations: int) -> float:
    """Seconds a call; each result is freed within the time, as a caller would."""
    start = time.perf_counter()
    for _ in range(iterations):
        call()
    return (time.perf_counter() - start) / iterations


def cuda_clock(
    flush: Callable[[], object],
    synchronize: Callable[[], object],
    event: Callable[[], Event],
) -> Clock:
    """A clock of device time by CUDA events, with cold caches before every call.

    The flush has to keep the device busy for longer than the host needs to launch the call, or the gaps
    between its kernels are timed too.

    Args:
        flush: writes more than the L2 cache holds, without waiting for it.
        synchronize: waits for the device.
        event: makes an event that can be timed.
    """

    def clock(call: Callable[[], object], iterations: int) -> float:
        pairs = []
        for _ in range(iterations):
            start, end = event(), event()
            flush()
            start.record()
            call()
            end.record()
            pairs.append((start, end))
        synchronize()
        return sum(start.elapsed_time(end) for start, end in pairs) / iterations / 1e3

    return clock


def host_clock(synchronize: Callable[[], object]) -> Clock:
    """A clock of the time a call takes seen from the host, when it is called again and again.

    Args:
        synchronize: waits for the device.
    """

    def clock(call: Callable[[], object], iterations: int) -> float:
        synchronize()
        start = time.perf_counter()
        for _ in range(iterations):
            call()
        synchronize()
        return (time.perf_counter() - start) / iterations

    return clock


@dataclass(frozen=True)
class Pace:
    """How long and how often.

    Attributes:
        budget: seconds after which no more rounds are begun, once the fewest are done.
        rounds: how many turns every contender has, at least and at most.
        iterations: how often at most a turn repeats a short call.
        clock: takes a call and how often to repeat it, gives seconds a call.
        before: what each turn begins with, untimed.
        warm: how many untimed calls follow, where one is short.
    """

    budget: float
    rounds: tuple[int, int] = (7, 101)
    iterations: int = 1000
    clock: Clock = cpu_clock
    before: Callable[[], object] = allocator.trim
    warm: int = WARM_CALLS


def _seconds(call: Callable[[], object], clock: Clock) -> float:
    seconds = clock(call, 1)
    if seconds > LONG_SECONDS:
        return seconds
    return min(seconds, clock(call, 1), clock(call, 1))


def interleave(calls: Mapping[Label, Callable[[], object]], pace: Pace) -> dict[Label, list[float]]:
    """Seconds a call of every contender, one number a round.

    The order is drawn anew each round, so no contender always runs after the same other one. A turn begins
    with untimed calls, after which the heap and the caches are in the state that the contender itself
    leaves behind, as in a loop of it; a long call, whose tensors are fresh pages anyway, goes without.

    Args:
        calls: the contenders; each has already run once.
        pace: how long and how often.

    Returns:
        The times by contender; the numbers at one index are of the same round.
    """
    expected = {name: _seconds(call, pace.clock) for name, call in calls.items()}
    order, draw = list(calls), random.Random(0)
    times: dict[Label, list[float]] = {name: [] for name in calls}
    fewest, most = pace.rounds
    start = time.perf_counter()
    for done in range(most):
        if done >= fewest and time.perf_counter() - start > pace.budget:
            break
        draw.shuffle(order)
        for name in order:
            pace.before()
            if expected[name] < LONG_SECONDS:
                for _ in range(pace.warm):
                    calls[name]()
            repeat = min(pace.iterations, max(1, math.ceil(TURN_SECONDS / max(expected[name], 1e-9))))
            times[name].append(pace.clock(calls[name], repeat))
    return times
