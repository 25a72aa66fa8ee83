"""Hands times that were measured in turns to pytest-benchmark, so that its statistics and files hold them.

By itself it times one thing after the other. Here its timer is a clock that stands still except that each
call it times moves the clock on by one of the measured times.
"""

from collections.abc import Sequence

from pytest_benchmark.fixture import BenchmarkFixture


class Replay:
    """A clock for `pytest.mark.benchmark(timer=replay.clock)`, and what moves it."""

    def __init__(self):
        self._now = 0.0

    def clock(self) -> float:
        """Seconds since the present round began."""
        return self._now

    def feed(self, benchmark: BenchmarkFixture, times: Sequence[float]) -> None:
        """Make the test's rounds take `times`."""
        remaining = iter(times)

        def begin() -> None:
            self._now = 0.0

        def advance() -> None:
            self._now += next(remaining)

        benchmark.pedantic(advance, setup=begin, rounds=len(times))
