"""RMSNorm's derivatives along K tangents that share one primal; every program reads the primal once.

`row.py` says what a stage is, `reference.py` states the mathematics. Sums are taken over x and scaled by
r = rstd afterwards, so that all of a row's sums come from one reading.
"""

import triton.language as tl

from ofa_kernels.triton.row import (
    kernel,
    multiple,
    row_total,
    rstd_of,
    sum_of_squares,
    sum_of_squares_and,
    three_sums,
    two_sums,
    weight_of,
)
from ofa_kernels.triton.segments import row_at, walk_of


@kernel
def rms_norm_jvp(
    x_ptr,  # [rows, n_cols], row stride stride_x
    w_ptr,  # [n_cols], or [n_weights, n_cols] where there is an index
    index_ptr,  # [rows] int64, or None: which row of w scales a row
    x_dot_ptr,  # [n_tangents, rows, n_cols], strides stride_x_dot_k, stride_x_dot, or None
    w_dot_ptr,  # [n_tangents, like w], stride stride_w_dot, or None
    y_dot_ptr,  # [n_tangents, rows, n_cols], contiguous
    sums_ptr,  # [rows, 1 + n_tangents, n_blocks] float64, or None
    stride_x,
    stride_x_dot_k,
    stride_x_dot,
    stride_w_dot,
    n_rows,
    n_tangents,
    n_cols,
    n_weights,
    EPS: tl.constexpr,
    OFFSET: tl.constexpr,
    ACC: tl.constexpr,
    STAGE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
    SUM_F64: tl.constexpr,
    UNIT: tl.constexpr,
):
    """One program owns one block of one row for all tangents."""
    i_row = tl.program_id(0).to(tl.int64)
    i_block = tl.program_id(1)
    n_cols = multiple(n_cols, UNIT)

    o_col = i_block * BLOCK_N + tl.arange(0, BLOCK_N)

    m_col = o_col < n_cols

    p_x = x_ptr + multiple(i_row * stride_x, UNIT) + o_col
    b_x = tl.load(p_x, mask=m_col, other=0.0).to(ACC)  # [BLOCK_N]
    b_w = weight_of(w_ptr, index_ptr, i_row, n_weights, o_col, n_cols, ACC) + OFFSET  # [BLOCK_N]

    i_sum = i_row * (1 + n_tangents)
    total_xx = row_total(sum_of_squares(b_x, SUM_F64), sums_ptr, i_sum, STAGE, BLOCK_S)
    rstd = rstd_of(total_xx, n_cols, EPS, ACC)
    b_x_hat = b_x * rstd
    for k in range(0, n_tangents):
        i_k = tl.cast(k, tl.int64)
        b_y_dot = tl.zeros([BLOCK_N], dtype=ACC)
        if x_dot_ptr is not None:
            p_x_dot = x_dot_ptr + multiple(i_k * stride_x_dot_k + i_row * stride_x_dot, UNIT) + o_col
            b_x_dot = tl.load(p_x_dot, mask=m_col, other=0.0).to(ACC)  # [BLOCK_N]
            total = row_total(tl.sum(b_x * b_x_dot), sums_ptr, i_sum + 1 + k, STAGE, BLOCK_S)
            b_y_dot = b_w * (rstd * (b_x_dot - b_x_hat * (rstd * total / n_cols)))
        if STAGE != "sums":
            if w_dot_ptr is not None:
                p_w_dot = w_dot_ptr + multiple(i_k * stride_w_dot, UNIT)
                b_y_dot += weight_of(p_w_dot, index_ptr, i_row, n_weights, o_col, n_cols, ACC) * b_x_hat

            p_y_dot = y_dot_ptr + (i_k * n_rows + i_row) * n_cols + o_col
            tl.store(p_y_dot, b_y_dot, mask=m_col)


@kernel
def rms_norm_backward_tangent(
    x_ptr,  # [rows, n_cols], row stride stride_x
    w_ptr,  # [n_cols], or [n_weights, n_cols] where there is an index
    index_ptr,  # [rows] int64, or None: which row of w scales a row
    order_ptr,  # [rows] int32, or None: rows in the order of their index (segments.py)
    ranks_ptr,  # [rows] int32, or None where order is: of the segments, in that order
    dy_ptr,  # [rows, n_cols], row stride stride_dy
    x_dot_ptr,  # [n_tangents, rows, n_cols], strides stride_x_dot_k, stride_x_dot, or None
    w_dot_ptr,  # [n_tangents, like w], stride stride_w_dot, or None
    dy_dot_ptr,  # [n_tangents, rows, n_cols], strides stride_dy_dot_k, stride_dy_dot, or None
    dx_dot_ptr,  # [n_tangents, rows, n_cols], contiguous
    dw_dot_ptr,  # [programs or slots, n_tangents, n_cols] in ACC: partial sums, or None
    sums_ptr,  # [rows, 2 + 2 n_tangents, n_blocks] float64, or None
    stride_x,
    stride_dy,
    stride_x_dot_k,
    stride_x_dot,
    stride_w_dot,
    stride_dy_dot_k,
    stride_dy_dot,
    n_rows,
    n_tangents,
    n_cols,
    n_weights,
    EPS: tl.constexpr,
    OFFSET: tl.constexpr,
    ACC: tl.constexpr,
    STAGE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
    SUM_F64: tl.constexpr,
    UNIT: tl.constexpr,
):
    """One program owns one block of the rows of its walk for all tangents, and their share of dw_dot."""
    first, end, step = walk_of(order_ptr, n_rows)
    i_block = tl.program_id(1)
    n_cols = multiple(n_cols, UNIT)

    o_col = i_block * BLOCK_N + tl.arange(0, BLOCK_N)

    m_col = o_col < n_cols

    i_row, slot = row_at(order_ptr, ranks_ptr, first)
    b_w = weight_of(w_ptr, index_ptr, i_row, n_weights, o_col, n_cols, ACC) + OFFSET  # [BLOCK_N]
    if order_ptr is not None:
        slot = tl.full([], -1, tl.int32)  # nothing has begun; asking for the first row, as below, would spill
    for i in range(first, end, step):
        i_row, i_slot = row_at(order_ptr, ranks_ptr, i)
        # columns whose sums over rows have begun
        n_begun = tl.where(i > first if order_ptr is None else i_slot == slot, n_cols, 0)
        if order_ptr is not None and i_slot != slot:
            b_w = weight_of(w_ptr, index_ptr, i_row, n_weights, o_col, n_cols, ACC) + OFFSET  # [BLOCK_N]
            slot = i_slot
        if dw_dot_ptr is not None:
            tl.debug_barrier()  # the threads that load a sum need not be those that stored it
        p_x = x_ptr + multiple(i_row * stride_x, UNIT) + o_col
        b_x = tl.load(p_x, mask=m_col, other=0.0).to(ACC)  # [BLOCK_N]
        p_dy = dy_ptr + multiple(i_row * stride_dy, UNIT) + o_col
        b_dy = tl.load(p_dy, mask=m_col, other=0.0).to(ACC)  # [BLOCK_N]

        i_sum = 2 * i_row * (1 + n_tangents)
        xx, gx = sum_of_squares_and(b_x, b_w * b_dy * b_x, SUM_F64)
        total_xx = row_total(xx, sums_ptr, i_sum, STAGE, BLOCK_S)
        total_gx = row_total(gx, sums_ptr, i_sum + 1, STAGE, BLOCK_S)
        rstd = rstd_of(total_xx, n_cols, EPS, ACC)
        b_x_hat = b_x * rstd
        c = rstd * total_gx / n_cols
        for k in range(0, n_tangents):
            i_k = tl.cast(k, tl.int64)
            b_x_dot = tl.zeros([BLOCK_N], dtype=ACC)
            b_g_dot = tl.zeros([BLOCK_N], dtype=ACC)
            b_dw_dot = tl.zeros([BLOCK_N], dtype=ACC)
            if dy_dot_ptr is not None:
                p_dy_dot = dy_dot_ptr + multiple(i_k * stride_dy_dot_k + i_row * stride_dy_dot, UNIT) + o_col
                b_dy_dot = tl.load(p_dy_dot, mask=m_col, other=0.0).to(ACC)  # [BLOCK_N]
                b_g_dot = b_w * b_dy_dot
                b_dw_dot = b_dy_dot * b_x_hat
            if w_dot_ptr is not None:
                p_w_dot = w_dot_ptr + multiple(i_k * stride_w_dot, UNIT)
                b_g_dot += weight_of(p_w_dot, index_ptr, i_row, n_weights, o_col, n_cols, ACC) * b_dy
            if x_dot_ptr is not None:
                p_x_dot = x_dot_ptr + multiple(i_k * stride_x_dot_k + i_row * stride_x_dot, UNIT) + o_col
                b_x_dot = tl.load(p_x_dot, mask=m_col, other=0.0).to(ACC)  # [BLOCK_N]

            xx_dot, terms = two_sums(b_x * b_x_dot, b_g_dot * b_x + b_w * b_dy * b_x_dot)
            m = rstd * row_total(xx_dot, sums_ptr, i_sum + 2 + 2 * k, STAGE, BLOCK_S) / n_cols
            total = row_total(terms, sums_ptr, i_sum + 3 + 2 * k, STAGE, BLOCK_S)
            if STAGE != "sums":
                b_x_hat_dot = rstd * (b_x_dot - b_x_hat * m)
                c_dot = rstd * (total / n_cols - m * c)
                b_dx_dot = rstd * (b_g_dot - b_x_hat_dot * c - b_x_hat * c_dot)
                b_dx_dot -= rstd * rstd * m * (b_w * b_dy - b_x_hat * c)

                p_dx_dot = dx_dot_ptr + (i_k * n_rows + i_row) * n_cols + o_col
                tl.store(p_dx_dot, b_dx_dot, mask=m_col)
                if dw_dot_ptr is not None:
                    p_dw_dot = dw_dot_ptr + (tl.cast(slot, tl.int64) * n_tangents + k) * n_cols + o_col
                    # n_tangents rows of sums do not fit registers: they grow in this program's own scratch
                    b_dw_dot += b_dy * b_x_hat_dot + tl.load(p_dw_dot, mask=o_col < n_begun, other=0.0)
                    tl.store(p_dw_dot, b_dw_dot, mask=m_col)


@kernel
def rms_norm_jvp_backward(
    x_ptr,  # [rows, n_cols], row stride stride_x
    w_ptr,  # [n_cols], or [n_weights, n_cols] where there is an index
    index_ptr,  # [rows] int64, or None: which row of w scales a row
    order_ptr,  # [rows] int32, or None: rows in the order of their index (segments.py)
    ranks_ptr,  # [rows] int32, or None where order is: of the segments, in that order
    dy_ptr,  # [n_tangents, rows, n_cols], strides stride_dy_k, stride_dy
    x_dot_ptr,  # [n_tangents, rows, n_cols], strides stride_x_dot_k, stride_x_dot, or None
    w_dot_ptr,  # [n_tangents, like w], stride stride_w_dot, or None
    dx_ptr,  # [rows, n_cols], contiguous
    dw_ptr,  # [programs or slots, n_cols] in ACC: partial sums, or None
    dx_dot_ptr,  # [n_tangents, rows, n_cols], contiguous
    dw_dot_ptr,  # [programs or slots, n_tangents, n_cols] in ACC: partial sums, or None
    sums_ptr,  # [rows, 1 + 3 n_tangents, n_blocks] float64, or None
    stride_x,
    stride_dy_k,
    stride_dy,
    stride_x_dot_k,
    stride_x_dot,
    stride_w_dot,
    n_rows,
    n_tangents,
    n_cols,
    n_weights,
    EPS: tl.constexpr,
    OFFSET: tl.constexpr,
    ACC: tl.constexpr,
    STAGE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
    SUM_F64: tl.constexpr,
    UNIT: tl.constexpr,
):
    """One program owns one block of the rows of its walk for all tangents, and their share of the sums."""
    first, end, step = walk_of(order_ptr, n_rows)
    i_block = tl.program_id(1)
    n_cols = multiple(n_cols, UNIT)

    o_col = i_block * BLOCK_N + tl.arange(0, BLOCK_N)

    m_col = o_col < n_cols

    i_row, slot = row_at(order_ptr, ranks_ptr, first)
    b_w = weight_of(w_ptr, index_ptr, i_row, n_weights, o_col, n_cols, ACC) + OFFSET  # [BLOCK_N]
    b_dw = tl.zeros([BLOCK_N], dtype=ACC)
    for i in range(first, end, step):
        i_row, i_slot = row_at(order_ptr, ranks_ptr, i)
        n_begun = tl.where(i > first, n_cols, 0)  # columns whose sums over rows have begun
        if order_ptr is not None and i_slot != slot:
            n_begun = tl.zeros_like(n_begun)
            if dw_ptr is not None and STAGE != "sums":
                tl.store(dw_ptr + tl.cast(slot, tl.int64) * n_cols + o_col, b_dw, mask=m_col)
                b_dw = tl.zeros([BLOCK_N], dtype=ACC)
            b_w = weight_of(w_ptr, index_ptr, i_row, n_weights, o_col, n_cols, ACC) + OFFSET  # [BLOCK_N]
            slot = i_slot
        if dw_dot_ptr is not None:
            tl.debug_barrier()  # the threads that load a sum need not be those that stored it
        p_x = x_ptr + multiple(i_row * stride_x, UNIT) + o_col
        b_x = tl.load(p_x, mask=m_col, other=0.0).to(ACC)  # [BLOCK_N]

        i_sum = i_row * (1 + 3 * n_tangents)
        total_xx = row_total(sum_of_squares(b_x, SUM_F64), sums_ptr, i_sum, STAGE, BLOCK_S)
        rstd = rstd_of(total_xx, n_cols, EPS, ACC)
        b_x_hat = b_x * rstd
        b_dx = tl.zeros([BLOCK_N], dtype=ACC)
        for k in range(0, n_tangents):
            i_k = tl.cast(k, tl.int64)
            i_c = i_sum + 1 + 3 * k
            p_dy = dy_ptr + multiple(i_k * stride_dy_k + i_row * stride_dy, UNIT) + o_col
            b_dy = tl.load(p_dy, mask=m_col, other=0.0).to(ACC)  # [BLOCK_N]
            b_g = b_w * b_dy
            b_x_dot = tl.zeros([BLOCK_N], dtype=ACC)
            b_g_dot = tl.zeros([BLOCK_N], dtype=ACC)
            if w_dot_ptr is not None:
                p_w_dot = w_dot_ptr + multiple(i_k * stride_w_dot, UNIT)
                b_g_dot = weight_of(p_w_dot, index_ptr, i_row, n_weights, o_col, n_cols, ACC) * b_dy
            if x_dot_ptr is not None:
                p_x_dot = x_dot_ptr + multiple(i_k * stride_x_dot_k + i_row * stride_x_dot, UNIT) + o_col
                b_x_dot = tl.load(p_x_dot, mask=m_col, other=0.0).to(ACC)  # [BLOCK_N]

            gx, xx_dot, terms = three_sums(b_g * b_x, b_x * b_x_dot, b_g_dot * b_x + b_g * b_x_dot)
            c = rstd * row_total(gx, sums_ptr, i_c, STAGE, BLOCK_S) / n_cols
            m = rstd * row_total(xx_dot, sums_ptr, i_c + 1, STAGE, BLOCK_S) / n_cols
            total = row_total(terms, sums_ptr, i_c + 2, STAGE, BLOCK_S)
            if STAGE != "sums":
                b_dx_dot = rstd * (b_g - b_x_hat * c)
                # the tangent of the backward with dẏ = 0
                b_x_hat_dot = rstd * (b_x_dot - b_x_hat * m)
                c_dot = rstd * (total / n_cols - m * c)
                b_dx += rstd * (b_g_dot - b_x_hat_dot * c - b_x_hat * c_dot) - rstd * m * b_dx_dot
                if dw_ptr is not None:
                    b_dw += b_dy * b_x_hat_dot

                p_dx_dot = dx_dot_ptr + (i_k * n_rows + i_row) * n_cols + o_col
                tl.store(p_dx_dot, b_dx_dot, mask=m_col)
                if dw_dot_ptr is not None:
                    p_dw_dot = dw_dot_ptr + (tl.cast(slot, tl.int64) * n_tangents + k) * n_cols + o_col
                    # n_tangents rows of sums do not fit registers: they grow in this program's own scratch
                    b_dw_dot = b_dy * b_x_hat + tl.load(p_dw_dot, mask=o_col < n_begun, other=0.0)
                    tl.store(p_dw_dot, b_dw_dot, mask=m_col)
        if STAGE != "sums":
            tl.store(dx_ptr + i_row * n_cols + o_col, b_dx, mask=m_col)
    if STAGE != "sums" and dw_ptr is not None:
        tl.store(dw_ptr + tl.cast(slot, tl.int64) * n_cols + o_col, b_dw, mask=m_col)
