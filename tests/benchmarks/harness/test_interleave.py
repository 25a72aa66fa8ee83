from collections import Counter

import pytest

from benchmarks.harness.interleave import WARM_CALLS, Pace, cpu_clock, cuda_clock, host_clock, interleave


def test_every_contender_has_its_turn_in_every_round():
    order = []

    def clock(call, iterations):
        order.append(call())
        return {"a": 0.5, "b": 0.25}[order[-1]] * iterations

    calls = {"a": lambda: "a", "b": lambda: "b"}
    times = interleave(calls, Pace(0.0, (4, 9), clock=clock, before=lambda: order.append("|")))
    assert times == {"a": [0.5] * 4, "b": [0.25] * 4}
    turns = "".join(order).split("|", 1)[1].split("|")
    assert all(set(pair) == {"a", "b"} for pair in zip(turns[::2], turns[1::2], strict=True))
    assert turns[::2] != [turns[0]] * 4  # the order is not always the same


def test_rounds_end_at_the_most_when_there_is_time():
    times = interleave({"a": lambda: None}, Pace(1e9, (1, 3), clock=lambda call, iterations: 1.0))
    assert len(times["a"]) == 3


def test_short_calls_are_repeated_and_warm():
    calls = Counter()

    def clock(call, iterations):
        for _ in range(iterations):
            call()
        return 1e-4

    def count():
        calls["a"] += 1

    interleave({"a": count}, Pace(0.0, (2, 2), iterations=50, clock=clock))
    # three to see how long it takes, then 20 of 0.1 ms in each of two turns after the untimed ones
    assert calls["a"] == 3 + 2 * (WARM_CALLS + 20)


def test_cpu_clock_counts_calls():
    calls = []
    assert cpu_clock(lambda: calls.append(1), 7) > 0
    assert len(calls) == 7


class FakeDevice:
    """A queue of work with a clock of its own, in milliseconds."""

    def __init__(self):
        self.time, self.log = 0.0, []

    def work(self, name, milliseconds):
        self.log.append(name)
        self.time += milliseconds

    def event(self):
        return FakeEvent(self)


class FakeEvent:
    def __init__(self, device):
        self.device = device

    def record(self):
        self.at = self.device.time

    def elapsed_time(self, end):
        return end.at - self.at


def test_cuda_clock_times_the_call_and_not_the_flush():
    device = FakeDevice()
    clock = cuda_clock(
        lambda: device.work("flush", 100.0), lambda: device.log.append("synchronize"), device.event
    )
    assert clock(lambda: device.work("call", 3.0), 2) == pytest.approx(3e-3)
    assert device.log == ["flush", "call", "flush", "call", "synchronize"]


def test_host_clock_waits_for_the_device_on_both_sides():
    log = []
    assert host_clock(lambda: log.append("wait"))(lambda: log.append("call"), 2) > 0
    assert log == ["wait", "call", "call", "wait"]
