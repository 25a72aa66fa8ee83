"""Rows in the order of their adapters, and for how long that is remembered."""

import gc

import pytest
import torch

from ofa_kernels import segments
from ofa_kernels.segments import segments_of

INDICES = {
    "random": ([2, 0, 2, 1, 0, 2, 2], 3),
    "sorted": ([0, 0, 1, 1, 1, 2], 3),
    "constant": ([1, 1, 1], 3),
    "one weight": ([0, 0, 0, 0], 1),
    "weights without rows": ([700, 3, 700, 999], 1000),
    "one row": ([4], 5),
    "out of range": ([1, -1, 0, 3, 2**40, 1, -(2**62)], 3),
    "all out of range": ([-1, 5], 2),
}


@pytest.fixture(autouse=True)
def nothing_remembered():
    segments._remembered.clear()


@pytest.mark.parametrize("name", INDICES)
def test_an_adapters_rows_are_neighbours_and_keep_their_order(device, name):
    rows, n_weights = INDICES[name]
    order, ranks, starts = (t.tolist() for t in segments_of(torch.tensor(rows, device=device), n_weights))
    adapters = [row if 0 <= row < n_weights else n_weights for row in rows]
    assert order == sorted(range(len(rows)), key=lambda row: (adapters[row], row))
    in_order = [adapters[row] for row in order]
    assert ranks == [sorted(set(adapters)).index(adapter) for adapter in in_order]
    assert starts == [sum(adapter < a for adapter in adapters) for a in range(n_weights + 1)]


def test_the_device_makes_them_by_itself():
    if torch.cuda.is_available():
        pytest.skip("the fake GPU counts")
    from tests.fake_gpu import fake_gpu

    with fake_gpu() as traffic:
        index = torch.randint(5, (20,), device="cuda")
        assert all(t.is_cuda for t in segments_of(index, 5))
        assert traffic == []


def test_they_are_remembered_until_the_index_changes(device):
    index = torch.tensor([2, 0, 1, 0], device=device)
    first = segments_of(index, 3)
    assert segments_of(index, 3) is first
    equal = index.clone()
    assert segments_of(equal, 3) is not first
    index[0] = 0
    changed = segments_of(index, 3)
    assert changed.order.tolist() == [0, 1, 3, 2]
    assert segments_of(index, 3) is changed


def test_another_number_of_weights_is_another_question(device):
    index = torch.tensor([2, 0, 1], device=device)
    assert segments_of(index, 3).starts.tolist() == [0, 1, 2, 3]
    assert segments_of(index, 4).starts.tolist() == [0, 1, 2, 3, 3]
    assert segments_of(index, 2).ranks.tolist() == [0, 1, 2]


def test_they_go_with_the_index(device):
    index = torch.tensor([0, 1], device=device)
    segments_of(index, 2)
    assert len(segments._remembered) == 1
    del index
    gc.collect()
    assert len(segments._remembered) == 0


def test_nothing_is_remembered_while_a_graph_is_captured(device, monkeypatch):
    """A replay may find another index in memory, and what was made before is no part of the graph."""
    index = torch.tensor([0, 1, 0], device=device)
    before = segments_of(index, 2)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    captured = segments_of(index, 2)
    assert captured is not before and segments_of(index, 2) is not captured
    assert segments._remembered[index].segments is before


def test_another_stream_makes_its_own(device, monkeypatch):
    """Nobody would wait for the stream that made them."""
    streams = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(segments, "_stream_of", lambda device: streams[-1])
    index = torch.tensor([0, 1, 0], device=device)
    if not index.is_cuda:
        pytest.skip("there are no streams")
    streams.append(7)
    first = segments_of(index, 2)
    assert segments_of(index, 2) is first
    streams.append(8)
    assert segments_of(index, 2) is not first


@pytest.mark.host
def test_what_is_no_plain_tensor_is_not_remembered():
    index = torch.tensor([0, 1, 0])
    with torch.inference_mode():
        segments_of(torch.tensor([0, 1, 0]), 2)
        segments_of(index, 2)  # its own version is counted
    assert list(segments._remembered) == [index]
    segments._remembered.clear()
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        segments_of(mode.from_tensor(index), 2)
        segments_of(index, 2)
    torch.func.vmap(lambda index: segments_of(index, 2).order)(torch.zeros(2, 3, dtype=torch.int64))
    torch.func.functionalize(lambda index: segments_of(index, 2).order)(index)
    assert len(segments._remembered) == 0
