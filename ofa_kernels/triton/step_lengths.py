"""Lengths of the steps between consecutive states, ‖Z_t - Z_{t-1}‖, and their gradient."""

import triton.language as tl

from ofa_kernels.triton.row import kernel, multiple


@kernel
def step_lengths(
    z_ptr,  # [steps + 1, rows, n_cols], strides stride_z_t, stride_z
    out_ptr,  # [steps, rows] in ACC
    stride_z_t,
    stride_z,
    n_rows,
    n_cols,
    ACC: tl.constexpr,
    BLOCK_N: tl.constexpr,
    UNIT: tl.constexpr,
):
    """One program owns one (step, row)."""
    i_out = tl.program_id(0).to(tl.int64)
    n_cols = multiple(n_cols, UNIT)

    i_step = i_out // n_rows
    i_row = i_out % n_rows

    b = tl.zeros([BLOCK_N], dtype=tl.float64)  # float32 has no room for every square
    for i in range(0, tl.cdiv(n_cols, BLOCK_N)):
        o_col = i * BLOCK_N + tl.arange(0, BLOCK_N)
        m_col = o_col < n_cols
        p_before = z_ptr + multiple(i_step * stride_z_t + i_row * stride_z, UNIT) + o_col
        p_after = z_ptr + multiple((i_step + 1) * stride_z_t + i_row * stride_z, UNIT) + o_col
        b_before = tl.load(p_before, mask=m_col, other=0.0).to(ACC)  # [BLOCK_N]
        b_after = tl.load(p_after, mask=m_col, other=0.0).to(ACC)  # [BLOCK_N]
        b_step = (b_after - b_before).to(tl.float64)
        b += b_step * b_step

    tl.store(out_ptr + i_out, tl.sqrt(tl.sum(b)))


@kernel
def step_lengths_backward(
    z_ptr,  # [steps + 1, rows, n_cols], strides stride_z_t, stride_z
    lengths_ptr,  # [steps, rows] in ACC, contiguous
    dlengths_ptr,  # [steps, rows] in ACC, contiguous
    dz_ptr,  # [steps + 1, rows, n_cols], contiguous
    stride_z_t,
    stride_z,
    n_steps,
    n_rows,
    n_cols,
    ACC: tl.constexpr,
    BLOCK_N: tl.constexpr,
    UNIT: tl.constexpr,
):
    """One program owns one block of one row, and walks along its states: each is read once."""
    i_row = tl.program_id(0).to(tl.int64)
    i_block = tl.program_id(1)
    n_cols = multiple(n_cols, UNIT)

    o_col = i_block * BLOCK_N + tl.arange(0, BLOCK_N)

    m_col = o_col < n_cols

    p_z = z_ptr + multiple(i_row * stride_z, UNIT) + o_col
    b_here = tl.load(p_z, mask=m_col, other=0.0).to(ACC)  # [BLOCK_N]
    b_before = tl.zeros([BLOCK_N], dtype=ACC)
    for t in range(0, n_steps):
        i_t = tl.cast(t, tl.int64)
        length = tl.load(lengths_ptr + i_t * n_rows + i_row)
        dlength = tl.load(dlengths_ptr + i_t * n_rows + i_row)
        b_after = tl.load(p_z + multiple((i_t + 1) * stride_z_t, UNIT), mask=m_col, other=0.0).to(
            ACC
        )  # [BLOCK_N]

        # a step of length 0 has no direction: its gradient is 0, where the quotient would be NaN
        moved = length > 0
        b_scaled = (b_after - b_here) * tl.where(moved, dlength / tl.where(moved, length, 1.0), 0.0)
        b_dz = b_before - b_scaled
        b_here = b_after
        b_before = b_scaled

        tl.store(dz_ptr + (i_t * n_rows + i_row) * n_cols + o_col, b_dz, mask=m_col)
    p_last = dz_ptr + (tl.cast(n_steps, tl.int64) * n_rows + i_row) * n_cols + o_col
    tl.store(p_last, b_before, mask=m_col)
