"""Padded batches as packed rows, one a real token, the prediction tokens first; and back for attention."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from ofa.data.words import check_labels, label_places

# tensors by their names, `input_ids` and `attention_mask` at least, and under `packing` perhaps a `Packing`
Batch: TypeAlias = Mapping[str, Any]


class _Unpack(Function):
    """[R + tail, ...] -> padded [B, S, ...], own [B, ...], tail; what stands at padding gets no gradient."""

    @staticmethod
    def forward(ctx, rows, row_of, place_of):
        ctx.save_for_backward(place_of)
        padded = rows.index_select(0, row_of.flatten()).unflatten(0, row_of.shape)
        return padded, rows[: len(row_of)].clone(), rows[len(place_of) :].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, d_padded, d_own, d_tail):
        (place_of,) = ctx.saved_tensors
        n_rows, n_examples = len(place_of), len(d_own)
        gradient = d_tail.new_empty(n_rows + len(d_tail), *d_tail.shape[1:])
        torch.index_select(d_padded.flatten(0, 1), 0, place_of, out=gradient[:n_rows])
        gradient[:n_examples] += d_own
        gradient[n_rows:] = d_tail
        return gradient, None, None


class _Pack(Function):
    """padded [B, S, ...], tail -> [R + tail, ...]."""

    @staticmethod
    def forward(ctx, padded, tail, place_of):
        ctx.save_for_backward(place_of)
        ctx.places = padded.shape[:2]
        n_rows = len(place_of)
        rows = tail.new_empty(n_rows + len(tail), *tail.shape[1:])
        torch.index_select(padded.flatten(0, 1), 0, place_of, out=rows[:n_rows])
        rows[n_rows:] = tail
        return rows

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (place_of,) = ctx.saved_tensors
        padded = gradient.new_zeros(ctx.places.numel(), *gradient.shape[1:])
        padded.index_copy_(0, place_of, gradient[: len(place_of)])
        return padded.unflatten(0, ctx.places), gradient[len(place_of) :], None


@dataclass(frozen=True)
class Packing:
    """Where the real tokens of a batch stand.

    R is the number of real tokens, and S of those in the longest example. Row i < B is the prediction token
    of example i: its last real token, or where a label has several tokens, the one before them. The other
    rows follow example by example.

    Attributes:
        input_ids: [R].
        positions: [R], a token's place among the real ones of its example.
        lengths: [B], real tokens.
        real: [B, S] bool.
        seen: [B, S] bool, the places up to the prediction token.
        following: [B, L - 1], the rows that predict a label's tokens after its first; without a label of
            several tokens, [B, 0].
        row_of: [B, S], which row stands at a place; at padding, a row of the same example.
        place_of: [R], the inverse: the place of a row in [B * S]; of a shared row (see `SharedPacking`) the
            first.
    """

    input_ids: Tensor
    positions: Tensor
    lengths: Tensor
    real: Tensor
    seen: Tensor
    following: Tensor
    row_of: Tensor
    place_of: Tensor

    @property
    def n_examples(self) -> int:
        """B."""
        return self.lengths.shape[0]

    @property
    def example_of(self) -> Tensor:
        """[R], the example that a row belongs to."""
        return self.place_of // self.row_of.shape[1]

    @classmethod
    def of(cls, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> "Packing":
        """The packing of [B, T] token ids under a mask, padded on either side; `labels` as in `objective`.

        Raises:
            ValueError: shapes don't fit, an example has no real token, or no label's tokens at its end.
        """
        check_batch(input_ids, attention_mask, labels)
        mask = attention_mask.bool()
        lengths = mask.sum(-1)
        longest = int(lengths.max())
        example, _ = mask.nonzero(as_tuple=True)
        positions = (mask.cumsum(-1) - 1)[mask]
        places = label_places(mask, labels)
        is_prediction = positions == places[example, 0]
        order = torch.cat([is_prediction.nonzero()[:, 0], (~is_prediction).nonzero()[:, 0]])
        example, positions = example[order], positions[order]
        place_of = example * longest + positions
        row_of = torch.arange(len(lengths), device=mask.device).repeat_interleave(longest)
        row_of[place_of] = torch.arange(len(order), device=mask.device)
        row_of = row_of.view(-1, longest)
        columns = torch.arange(longest, device=mask.device)
        return cls(
            input_ids[mask][order],
            positions,
            lengths,
            real=columns < lengths[:, None],
            seen=columns <= places[:, :1],
            following=row_of.gather(1, places[:, 1:]),
            row_of=row_of,
            place_of=place_of,
        )

    def rounded(self, rows: int, places: int) -> "Packing":
        """The same batch in a shape that many batches share: R and S rounded up to multiples.

        The rows that are added copy the first one and stand at padding, where nothing real looks and from
        where no gradient comes. So all results stay what they were, but for the order of sums.

        Args:
            rows: R becomes a multiple of it.
            places: S becomes a multiple of it, one more than needed where all places of the batch are taken
                and rows are to be added.
        """
        (n_examples, before), n_rows = self.row_of.shape, len(self.place_of)
        n_added, longest = -n_rows % rows, before + -before % places
        if n_added and n_examples * longest == n_rows:
            longest += places
        n_places = longest - before
        place_of = self.place_of + self.place_of // before * n_places
        padding = F.pad(self.real, (0, n_places)).logical_not().flatten().nonzero()[:1, 0]  # one, if any
        prediction = torch.arange(n_examples, device=self.row_of.device)[:, None]
        return replace(
            self,
            input_ids=torch.cat([self.input_ids, self.input_ids[:1].expand(n_added)]),
            positions=torch.cat([self.positions, self.positions[:1].expand(n_added)]),
            real=F.pad(self.real, (0, n_places)),
            seen=F.pad(self.seen, (0, n_places)),
            row_of=torch.cat([self.row_of, prediction.expand(-1, n_places)], 1),
            place_of=torch.cat([place_of, padding.expand(n_added)]),
        )

    def unpack(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows at their places [B, S, ...], rows of prediction tokens [B, ...], and what follows the R rows.

        Nothing real may depend on what is put at padding.
        """
        return _Unpack.apply(rows, self.row_of, self.place_of)

    def pack(self, padded: Tensor, tail: Tensor) -> Tensor:
        """The R rows of [B, S, ...], followed by the tail."""
        return _Pack.apply(padded, tail, self.place_of)


def packed(batch: Batch) -> Batch:
    """The batch with its `packing`, whose sizes depend on the data, so that a GPU has to be waited for.

    Once a batch has a packing, a step on the batch waits for nothing and can be captured in a CUDA graph. The
    packing depends on `input_ids`, `attention_mask` and, where they hold several tokens each, `labels`:
    whoever changes these makes the packing again.

    Raises:
        ValueError: shapes don't fit, an example has no real token, or no label's tokens at its end.
    """
    if "packing" in batch:
        return batch
    packing = Packing.of(batch["input_ids"], batch["attention_mask"], batch.get("labels"))
    return {**batch, "packing": packing}


def check_batch(input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> None:
    """Refuse what is no batch.

    Raises:
        ValueError: shapes don't fit, an example has no real token, or no label's tokens at its end.
    """
    if input_ids.dim() != 2 or attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"input_ids and attention_mask must both be [B, T], got {tuple(input_ids.shape)} and "
            f"{tuple(attention_mask.shape)}"
        )
    empty = ~attention_mask.bool().any(-1)
    if empty.any():
        raise ValueError(f"example {int(empty.nonzero()[0])} of the batch has no real token")
    check_labels(input_ids, attention_mask.bool(), labels)
