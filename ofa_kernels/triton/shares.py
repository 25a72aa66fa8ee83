"""Which rows each program takes where all of them add up to a gradient, and who adds up what they leave."""

from typing import NamedTuple

from torch import Tensor

from ofa_kernels.dtypes import accumulation_dtype
from ofa_kernels.segments import Segments, segments_of
from ofa_kernels.triton.plan import PARTIALS_PER_WARP, Plan, cdiv, common_unit, dense
from ofa_kernels.triton.segments import sum_segments

SEGMENTS_BLOCK = (16, 256)  # partial sums by columns, where an adapter has but a few of them


class Shares(NamedTuple):
    """How a launch shares rows.

    Args:
        programs: how many there are.
        slots: partial sums that they leave.
        length: rows of a program, but for the last; 0 where no order says which.
        index: [rows] int64, or None.
        segments: of the index, where there is something to add up by adapter.
        n_weights: the rows of the weight, 0 without an index.
    """

    programs: int
    slots: int
    length: int
    index: Tensor | None
    segments: Segments | None
    n_weights: int

    @property
    def pointers(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The index, the order of the rows and the ranks of their segments."""
        order, ranks, _ = self.segments or (None, None, None)
        return self.index, order, ranks

    def partials(self, x: Tensor, *sizes: int) -> Tensor:
        """Unwritten [slots, *sizes] in the accumulation type."""
        return x.new_empty((self.slots, *sizes), dtype=accumulation_dtype(x))

    def finish(self, p: Plan, partials: Tensor, out: Tensor) -> Tensor:
        """`out`, [*K, N] or [*K, A, N], into which the sums of partials [slots, *K, N] are written."""
        if self.segments is None:
            return p.finish(partials, out)
        n_cols = out.shape[-1]
        few = self.slots < SEGMENTS_BLOCK[0] * self.n_weights
        block_p, block_n = SEGMENTS_BLOCK if few else p.partials
        if out.numel():
            unit = common_unit(n_cols, partials.element_size())
            p.builds.launch(
                sum_segments,
                (out.numel() // n_cols, cdiv(n_cols, block_n)),
                (partials, self.segments.ranks, self.segments.starts, out),
                (self.length, self.n_weights, n_cols),
                (unit, block_p, block_n),
                lambda: {
                    "BLOCK_P": block_p,
                    "BLOCK_N": block_n,
                    "UNIT": unit,
                    "num_warps": max(block_p * block_n // PARTIALS_PER_WARP, 1),
                },
            )
        return out


def shares(p: Plan, n_rows: int, summed: bool, weight: Tensor, index: Tensor | None) -> Shares:
    """How n_rows are shared; where no sum over them is asked for, each has a program of its own."""
    programs = p.programs(n_rows) if summed else n_rows
    if index is None:
        return Shares(programs, programs, 0, None, None, 0)
    index, n_weights = dense(index), weight.shape[0]
    if not summed:
        return Shares(programs, 0, 0, index, None, n_weights)
    length = cdiv(n_rows, programs)
    programs = cdiv(n_rows, length)
    # at most one segment for each adapter, and one for all that are out of range
    slots = programs + min(n_weights + 1, n_rows) - 1
    return Shares(programs, slots, length, index, segments_of(index, n_weights), n_weights)
