"""The device that is measured: how to time, capture and count on it; and a stand-in where there is none."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch

from benchmarks.harness.interleave import Pace

HOLD_CYCLES = 1_000_000  # about half a millisecond
SHARE_OF_L2 = 2  # rotated inputs are so many times as large as the cache


class Moment(Protocol):
    """A moment on the device: a `torch.cuda.Event` or a `Timestamp`, never one of each."""

    def record(self) -> None:
        """Note the moment."""

    def elapsed_time(self, end: Any, /) -> float:
        """Milliseconds from this to the end."""
        ...


class Timestamp:
    """What a `torch.cuda.Event` is to a card, on a host."""

    def record(self) -> None:
        """Note the moment."""
        self.seconds = time.perf_counter()

    def elapsed_time(self, end: "Timestamp", /) -> float:
        """Milliseconds from this to the end."""
        return (end.seconds - self.seconds) * 1e3


class Card:
    """The first GPU.

    Everything runs on one stream, because a graph can only be captured from another than the default one,
    and autograd runs a backward pass where the forward one was.
    """

    device = "cuda"
    rehearsal = False

    def __init__(self):
        self.stream = torch.cuda.Stream()
        properties = torch.cuda.get_device_properties(0)
        self.name, self.memory, self.l2 = properties.name, properties.total_memory, properties.L2_cache_size
        self.multiprocessors = properties.multi_processor_count

    def on_stream(self) -> AbstractContextManager:
        """Where everything has to run."""
        return torch.cuda.stream(self.stream)

    def synchronize(self) -> None:
        """Wait for the device."""
        torch.cuda.synchronize()

    def event(self) -> Moment:
        """A moment on the device."""
        return torch.cuda.Event(enable_timing=True)

    def hold(self) -> None:
        """Keep the device busy while the host queues what is timed, so that the host's gaps aren't timed."""
        torch.cuda._sleep(HOLD_CYCLES)

    def graph(self, run: Callable[[], object]) -> Callable[[], object]:
        """Capture what `run` launches, and give the call that replays it.

        `run` has to have run before. What it returns is kept alive until the capture ends, so that results
        that are returned have memory of their own.
        """
        self.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            results = run()
        del results
        return graph.replay

    def clock(self, call: Callable[[], object], iterations: int) -> float:
        """Seconds of device time a call; `interleave.Pace` takes it as its clock."""
        start, end = self.event(), self.event()
        self.synchronize()
        self.hold()
        start.record()
        for _ in range(iterations):
            call()
        end.record()
        self.synchronize()
        return start.elapsed_time(end) / iterations / 1e3

    def pace(self, budget: float, rounds: tuple[int, int], iterations: int) -> Pace:
        """How long and how often to time replays, which allocate nothing to get used to."""
        return Pace(budget, rounds, iterations, self.clock, before=lambda: None, warm=1)

    def rotations(self, moved: int) -> int:
        """How many sets of tensors calls that move so many bytes take in turn, to find none in the cache."""
        return max(1, min(128, -(-SHARE_OF_L2 * self.l2 // moved)))

    def free_memory(self) -> int:
        """Bytes."""
        return torch.cuda.mem_get_info()[0]

    def reset_peak(self) -> None:
        """Forget what was allocated at most."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        """Bytes that were allocated at most."""
        return torch.cuda.max_memory_allocated()

    def allocated(self) -> int:
        """Bytes that are allocated now."""
        return torch.cuda.memory_allocated()

    def empty_cache(self) -> None:
        """Give back what is not in use."""
        torch.cuda.empty_cache()


class Rehearsal(Card):
    """A CPU that does what is asked of a card, so that nothing runs for the first time on the day.

    A graph is the function itself; kernels run in Triton's interpreter, on tiny shapes.
    """

    device = "cpu"
    rehearsal = True

    def __init__(self):
        self.name, self.memory, self.l2, self.multiprocessors = "no card (rehearsal)", 2**34, 2**10, 2

    def on_stream(self) -> AbstractContextManager:
        """Nothing to switch to."""
        return nullcontext()

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def event(self) -> Timestamp:
        """A moment on the host."""
        return Timestamp()

    def hold(self) -> None:
        """Nothing to keep busy."""

    def graph(self, run: Callable[[], object]) -> Callable[[], object]:
        """Run once, as a capture does, and again at every replay."""
        run()
        return run

    def pace(self, budget: float, rounds: tuple[int, int], iterations: int) -> Pace:
        """Once is enough."""
        return Pace(0.0, (1, 1), 1, self.clock, before=lambda: None, warm=0)

    def rotations(self, moved: int) -> int:
        """Two, so that the code for several is run."""
        return 2

    def free_memory(self) -> int:
        """As much as it has."""
        return self.memory

    def reset_peak(self) -> None:
        """Nothing is counted."""

    def peak(self) -> int:
        """Nothing is counted."""
        return 0

    def allocated(self) -> int:
        """Nothing is counted."""
        return 0

    def empty_cache(self) -> None:
        """Nothing is cached."""
