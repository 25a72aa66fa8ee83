"""Rows by adapter: the order in which a sum over the rows of each adapter is one pass over all rows.

An index [rows] says which of the rows of a weight [A, N] a row takes. What is made of it here depends on the
index alone, and a training step asks for it at every norm: it is remembered as long as the index lives.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.utils.weak import WeakTensorKeyDictionary

_stream_of = getattr(torch._C, "_cuda_getCurrentRawStream", None)


class Segments(NamedTuple):
    """The rows in the stable order of their adapters; those of one adapter are a segment.

    An index out of range counts as an adapter A, whose segment is the last.

    Args:
        order: [rows] int32, the row at each position.
        ranks: [rows] int32, how many segments end before each position.
        starts: [A + 1] int32: adapter a has the positions from starts[a] to before starts[a + 1].
    """

    order: Tensor
    ranks: Tensor
    starts: Tensor


class _Remembered(NamedTuple):
    asked: tuple[int, ...]
    segments: Segments


_remembered = WeakTensorKeyDictionary()


def segments_of(index: Tensor, n_weights: int) -> Segments:
    """The segments of an index [rows] int64 into A = n_weights rows, which the device makes by itself.

    They are made anew once the index has been changed in place (by PyTorch: a change past it, through
    `.data` or a replayed CUDA graph, goes unnoticed, as it does where autograd saves a tensor), on another
    stream, and always where a CUDA graph is being captured, whose replays may find another index in memory.
    """
    asked = _question(index, n_weights)
    if asked is None:
        return _segments(index, n_weights)
    found = _remembered.get(index)
    if found is not None and found.asked == asked:
        return found.segments
    segments = _segments(index, n_weights)
    if _is_plain(segments.order):
        _remembered[index] = _Remembered(asked, segments)
    return segments


def _question(index: Tensor, n_weights: int) -> tuple[int, ...] | None:
    """What the answer depends on besides the index object; None where it must not be remembered."""
    if not _is_plain(index) or index.is_inference():  # which has no version
        return None
    stream = 0
    if torch.cuda.is_initialized():
        if torch.cuda.is_current_stream_capturing():
            return None
        if index.is_cuda and _stream_of is not None:
            stream = _stream_of(index.get_device())
    return index._version, n_weights, stream


def _is_plain(t: Tensor) -> bool:
    return type(t) is Tensor and not is_functorch_wrapped_tensor(t)


def _segments(index: Tensor, n_weights: int) -> Segments:
    known = torch.where((index >= 0) & (index < n_weights), index, n_weights)
    adapters, order = known.sort(stable=True)
    ranks = adapters.diff(prepend=adapters[:1]).ne(0).cumsum(0, dtype=torch.int32)
    every = torch.arange(n_weights + 1, device=index.device)
    return Segments(order.int(), ranks, torch.searchsorted(adapters, every, out_int32=True))
