"""The model of the hardware: each term can be what a launch waits for."""

from dataclasses import replace

import pytest

from benchmarks.prediction import model
from benchmarks.prediction.cards import CARDS
from benchmarks.prediction.model import LATENCY, LAUNCH, Launch, Work, copy_rate, copy_time

H100 = next(card for card in CARDS if card.name == "H100")
ROW = 8192
WORK = Work(100, read=ROW, written=ROW)
PLAIN = Launch("kernel", WORK, 132 * 80, 132 * 2, 256, 64, 0, ahead=2)


def longest(launch, card=H100):
    spent = launch.times(card)
    return max(spent, key=spent.__getitem__)


@pytest.mark.parametrize(
    ("term", "work"),
    [
        ("memory", {"read": 100 * ROW}),
        ("cache", {"cached": 100 * ROW}),
        ("instructions", {"instructions": 1e5, "sums": 0}),
        ("float64", {"doubles": 1e5}),
        ("latency", {"steps": 10, "sums": 5}),
    ],
)
def test_each_term_can_be_the_longest_and_grows_with_its_cause(term, work):
    launch = replace(PLAIN, work=replace(WORK, **work))
    assert longest(launch) == term
    (cause,) = list(work)[:1]
    more = replace(launch, work=replace(launch.work, **{cause: 2 * getattr(launch.work, cause)}))
    assert more.times(H100)[term] > 1.5 * launch.times(H100)[term]


def test_what_moves_enough_bytes_is_a_copy():
    rows = 132 * 80
    launch = replace(PLAIN, teams=rows, ahead=0)
    moved = 2 * ROW * rows
    assert sum(launch.times(H100).values()) == pytest.approx(LAUNCH + LATENCY + moved / copy_rate(H100))
    assert copy_time(H100, moved) == pytest.approx(sum(launch.times(H100).values()))


def test_few_bytes_in_flight_are_latency_by_littles_law():
    """A team that has a row in flight and is as quick as can be: LATENCY, and the row's own time."""
    work = replace(WORK, instructions=0, sums=0)
    one_ahead = replace(PLAIN, work=work, rows=1000, teams=1, ahead=1)
    alone = LATENCY + ROW / (copy_rate(H100) / 132)
    assert one_ahead.times(H100)["latency"] == pytest.approx(1000 * alone)
    assert replace(one_ahead, ahead=2).times(H100)["latency"] == pytest.approx(500 * alone)
    assert replace(one_ahead, ahead=0).times(H100)["latency"] == pytest.approx(1000 * alone)


def test_a_wave_that_is_not_full_costs_the_latency_of_a_full_one():
    work = replace(WORK, written=0)
    full = replace(PLAIN, work=work, ahead=0, rows=264, teams=264, registers=128)
    assert full.resident(H100) == 264
    one_more = replace(full, rows=265, teams=265)
    assert one_more.times(H100)["latency"] == pytest.approx(2 * full.times(H100)["latency"])


def test_registers_threads_and_shared_memory_each_limit_what_runs_at_once():
    for launch, blocks in (
        (PLAIN, 4),
        (replace(PLAIN, registers=128), 2),
        (replace(PLAIN, registers=121), 2),
        (replace(PLAIN, registers=32), 8),
        (replace(PLAIN, registers=16, threads=32), 32),
        (replace(PLAIN, shared=100 * 1024), 2),
    ):
        assert launch.resident(H100) == 132 * blocks
    assert replace(PLAIN, blocks=4).resident(H100) == 132


def test_the_blocks_of_a_cluster_wait_for_each_other():
    launch = replace(PLAIN, work=replace(WORK, read=0))
    alone, cluster = launch.round(H100, 66), replace(launch, blocks=2).round(H100, 66)
    assert cluster[0] == pytest.approx(alone[0] + model.DELIVERY_CLOCKS / H100.clock)
    assert cluster[1] == "latency"


def test_launches_follow_each_other():
    early = replace(PLAIN, finishes=True, early=True)
    both = model.total([PLAIN, early], H100)
    assert both["launches"] == pytest.approx(LAUNCH + LATENCY + model.EARLY_LAUNCH)
    assert list(both.values()) == sorted(both.values(), reverse=True)
