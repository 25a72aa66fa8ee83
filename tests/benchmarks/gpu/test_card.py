"""The card's own calls on a PyTorch whose CUDA functions are stand-ins with the real ones' signatures."""

import contextlib
import inspect
from unittest import mock

import pytest
import torch

from benchmarks.gpu.card import Card, Rehearsal
from benchmarks.harness.interleave import interleave


class Events:
    """What `torch.cuda.Event` makes, with a clock that each record moves on by 2 ms."""

    def __init__(self):
        self.now = 0.0

    def make(self, **options):
        inspect.signature(torch.cuda.Event.__new__).bind(torch.cuda.Event, **options)
        event = mock.Mock(spec=["record", "elapsed_time"])
        event.at = None

        def record():
            self.now += 2.0
            event.at = self.now

        event.record.side_effect = record
        event.elapsed_time.side_effect = lambda end: end.at - event.at
        return event


@pytest.fixture
def cuda(monkeypatch):
    """The functions of torch.cuda that a card calls, by name."""
    properties = mock.Mock(total_memory=80, L2_cache_size=2**20, multi_processor_count=132)
    properties.name = "Some Card"
    graph = mock.Mock(spec=["replay"])
    fakes = {
        "Stream": mock.Mock(return_value="stream"),
        "get_device_properties": mock.create_autospec(
            torch.cuda.get_device_properties, return_value=properties
        ),
        "synchronize": mock.create_autospec(torch.cuda.synchronize),
        "stream": mock.create_autospec(torch.cuda.stream, return_value=contextlib.nullcontext()),
        "Event": Events().make,
        "_sleep": mock.Mock(),
        "CUDAGraph": mock.Mock(return_value=graph),
        "graph": mock.create_autospec(torch.cuda.graph, return_value=contextlib.nullcontext()),
        "mem_get_info": mock.create_autospec(torch.cuda.mem_get_info, return_value=(7, 80)),
        "empty_cache": mock.create_autospec(torch.cuda.empty_cache),
        "reset_peak_memory_stats": mock.create_autospec(torch.cuda.reset_peak_memory_stats),
        "max_memory_allocated": mock.create_autospec(torch.cuda.max_memory_allocated, return_value=5),
        "memory_allocated": mock.create_autospec(torch.cuda.memory_allocated, return_value=3),
    }
    for name, fake in fakes.items():
        assert hasattr(torch.cuda, name)
        monkeypatch.setattr(torch.cuda, name, fake)
    return fakes


def test_a_graph_is_captured_on_the_cards_stream_after_the_device_was_waited_for(cuda):
    card, ran = Card(), []
    replay = card.graph(lambda: ran.append("once"))
    assert ran == ["once"]
    cuda["synchronize"].assert_called_once_with()
    cuda["graph"].assert_called_once_with(cuda["CUDAGraph"].return_value, stream="stream")
    replay()
    cuda["CUDAGraph"].return_value.replay.assert_called_once_with()
    assert ran == ["once"]


def test_the_clock_holds_the_device_before_it_starts(cuda):
    order = []
    cuda["_sleep"].side_effect = lambda cycles: order.append("hold")
    seconds = Card().clock(lambda: order.append("call"), 4)
    assert order == ["hold", *["call"] * 4]
    assert seconds == pytest.approx(2e-3 / 4)  # one event after the other, over four calls


def test_everything_else_of_a_card_can_be_called(cuda):
    card = Card()
    with card.on_stream():
        assert (card.free_memory(), card.peak(), card.allocated()) == (7, 5, 3)
    card.reset_peak()
    card.empty_cache()
    cuda["stream"].assert_called_once_with("stream")
    assert (card.name, card.memory, card.l2, card.multiprocessors) == ("Some Card", 80, 2**20, 132)


def test_rotated_inputs_are_larger_than_the_cache_but_not_too_many(cuda):
    card = Card()
    assert card.rotations(2**30) == 1
    assert card.rotations(2**19) == 4
    assert card.rotations(1) == 128


@pytest.mark.parametrize("make", [Card, Rehearsal])
def test_calls_are_timed_in_turns_by_the_cards_clock(cuda, make):
    card = make()
    times = interleave({"a": mock.Mock(), "b": mock.Mock()}, card.pace(0.01, (2, 3), 5))
    assert set(times) == {"a", "b"} and len(times["a"]) == len(times["b"]) >= 1


def test_a_rehearsal_has_all_that_a_card_has():
    names = {name for name in vars(Card) if not name.startswith("_")}
    inherited = {"clock"}  # the same code, on other events
    assert names - inherited <= set(vars(Rehearsal))


def test_a_rehearsals_graph_runs_again_at_every_replay():
    ran = []
    replay = Rehearsal().graph(lambda: ran.append(1))
    replay()
    assert ran == [1, 1]
