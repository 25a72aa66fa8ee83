"""Sums over the rows of each adapter, by programs that walk along the rows in the order of adapters.

A program takes one stretch of that order (`ofa_kernels/segments.py`) and leaves a partial sum for each of its
segments, in slot program + rank of the segment. Along the order either of the two grows by 1, or both do: no
two sums share a slot, and those of an adapter are neighbours.
"""

import triton
import triton.language as tl

from ofa_kernels.triton.row import kernel, multiple, sum_of_rows


@triton.jit
def walk_of(order_ptr, n_rows):
    """(first, end, step) of a program's loop: along the order if there is one, else every so many rows."""
    first = tl.program_id(0)
    end, step = n_rows, tl.num_programs(0)
    if order_ptr is not None:
        length = tl.cdiv(n_rows, step)
        first *= length
        end, step = tl.minimum(first + length, n_rows), 1
    return first, end, step


@triton.jit
def row_at(order_ptr, ranks_ptr, i):
    """(row, slot of its partial sum) at place i of a walk; without an order a program has one slot."""
    slot = tl.program_id(0)
    if order_ptr is not None:
        slot += tl.load(ranks_ptr + i)
        i = tl.load(order_ptr + i)
    return tl.cast(i, tl.int64), slot


@kernel
def sum_segments(
    partials_ptr,  # [slots, n_tangents, n_cols], contiguous
    ranks_ptr,  # [rows] int32
    starts_ptr,  # [n_weights + 1] int32
    out_ptr,  # [n_tangents, n_weights, n_cols], contiguous
    length,  # of a program's walk
    n_weights,
    n_cols,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    UNIT: tl.constexpr,
):
    """One program owns BLOCK_N columns of one row of the result; the order of the additions is fixed."""
    i_out = tl.program_id(0).to(tl.int64)
    n_tangents = tl.num_programs(0) // n_weights
    i_block = tl.program_id(1)
    n_cols = multiple(n_cols, UNIT)

    i_tangent = i_out // n_weights
    i_weight = i_out % n_weights
    o_col = i_block * BLOCK_N + tl.arange(0, BLOCK_N)

    m_col = o_col < n_cols

    start = tl.load(starts_ptr + i_weight)
    end = tl.load(starts_ptr + i_weight + 1)
    rank = tl.load(ranks_ptr + start, mask=start < end, other=0)
    first = start // length
    n_partials = tl.where(start < end, (end - 1) // length - first + 1, 0)

    i_slot = tl.cast(first + rank, tl.int64)
    p = partials_ptr + (i_slot * n_tangents + i_tangent) * n_cols + o_col[None, :]
    b_out = sum_of_rows(p, n_partials, n_tangents * n_cols, m_col, BLOCK_P, BLOCK_N)
    if out_ptr.dtype.element_ty == tl.bfloat16:
        b_out = b_out.to(tl.float32)  # from float64 the interpreter knows no cast to bfloat16
    tl.store(out_ptr + i_out * n_cols + o_col, b_out, mask=m_col)
