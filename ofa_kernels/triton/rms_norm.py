"""RMSNorm: forward and backward; `row.py` says what a stage is, `reference.py` states the mathematics."""

import triton.language as tl

from ofa_kernels.triton.row import (
    kernel,
    multiple,
    row_total,
    rstd_of,
    sum_of_rows,
    sum_of_squares,
    sum_of_squares_and,
    weight_of,
)
from ofa_kernels.triton.segments import row_at, walk_of


@kernel
def rms_norm_forward(
    x_ptr,  # [rows, n_cols], row stride stride_x
    residual_ptr,  # like x with stride_residual, or None
    w_ptr,  # [n_cols], or [n_weights, n_cols] where there is an index
    index_ptr,  # [rows] int64, or None: which row of w scales a row
    s_ptr,  # [rows, n_cols], contiguous: x + residual; None where residual is
    y_ptr,  # [rows, n_cols], contiguous
    rstd_ptr,  # [rows] in ACC, or None
    sums_ptr,  # [rows, n_blocks] float64, or None
    stride_x,
    stride_residual,
    n_cols,
    n_weights,
    EPS: tl.constexpr,
    OFFSET: tl.constexpr,
    ROUND_X_HAT: tl.constexpr,
    ACC: tl.constexpr,
    STAGE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
    SUM_F64: tl.constexpr,
    UNIT: tl.constexpr,
):
    """One program owns one block of one row."""
    i_row = tl.program_id(0).to(tl.int64)
    i_block = tl.program_id(1)
    n_cols = multiple(n_cols, UNIT)

    o_col = i_block * BLOCK_N + tl.arange(0, BLOCK_N)

    m_col = o_col < n_cols

    p_x = x_ptr + multiple(i_row * stride_x, UNIT) + o_col
    if residual_ptr is not None and STAGE == "apply":  # stage "sums" has added them
        p_x = s_ptr + i_row * n_cols + o_col
    b_x = tl.load(p_x, mask=m_col, other=0.0).to(ACC)  # [BLOCK_N]
    if residual_ptr is not None and STAGE != "apply":
        p_residual = residual_ptr + multiple(i_row * stride_residual, UNIT) + o_col
        b_residual = tl.load(p_residual, mask=m_col, other=0.0).to(ACC)  # [BLOCK_N]
        b_s = (b_x + b_residual).to(s_ptr.dtype.element_ty)
        b_x = b_s.to(ACC)
        tl.store(s_ptr + i_row * n_cols + o_col, b_s, mask=m_col)

    total = row_total(sum_of_squares(b_x, SUM_F64), sums_ptr, i_row, STAGE, BLOCK_S)
    if STAGE != "sums":
        b_w = weight_of(w_ptr, index_ptr, i_row, n_weights, o_col, n_cols, ACC) + OFFSET  # [BLOCK_N]
        rstd = rstd_of(total, n_cols, EPS, ACC)
        b_x_hat = b_x * rstd
        if ROUND_X_HAT:
            b_x_hat = b_x_hat.to(y_ptr.dtype.element_ty).to(ACC)

        tl.store(y_ptr + i_row * n_cols + o_col, b_w * b_x_hat, mask=m_col)
        if rstd_ptr is not None:
            tl.store(rstd_ptr + i_row, rstd, mask=i_block == 0)


@kernel
def rms_norm_backward(
    x_ptr,  # [rows, n_cols], row stride stride_x
    w_ptr,  # [n_cols], or [n_weights, n_cols] where there is an index
    index_ptr,  # [rows] int64, or None: which row of w scales a row
    order_ptr,  # [rows] int32, or None: rows in the order of their index (segments.py)
    ranks_ptr,  # [rows] int32, or None where order is: of the segments, in that order
    dy_ptr,  # [rows, n_cols], row stride stride_dy
    ds_ptr,  # [rows, n_cols], row stride stride_ds, or None: added to dx
    rstd_ptr,  # [rows] in ACC, or None: then it is computed from x
    dx_ptr,  # [rows, n_cols], contiguous, or None
    dw_ptr,  # [programs or slots, n_cols] in ACC: partial sums, or None
    sums_ptr,  # [rows, 1 where rstd is given, else 2, n_blocks] float64, or None
    stride_x,
    stride_dy,
    stride_ds,
    n_rows,
    n_cols,
    n_weights,
    EPS: tl.constexpr,
    OFFSET: tl.constexpr,
    ACC: tl.constexpr,
    STAGE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
    SUM_F64: tl.constexpr,
    PIPELINE: tl.constexpr,
    UNIT: tl.constexpr,
):
    """One program owns one block of the rows of its walk (segments.py), and their share of dw."""
    first, end, step = walk_of(order_ptr, n_rows)
    i_block = tl.program_id(1)
    n_cols = multiple(n_cols, UNIT)

    o_col = i_block * BLOCK_N + tl.arange(0, BLOCK_N)

    m_col = o_col < n_cols

    i_row, slot = row_at(order_ptr, ranks_ptr, first)
    b_w = weight_of(w_ptr, index_ptr, i_row, n_weights, o_col, n_cols, ACC) + OFFSET  # [BLOCK_N]
    b_dw = tl.zeros([BLOCK_N], dtype=ACC)
    # Python can't iterate over it, Triton's compiler does
    for i in tl.range(first, end, step, num_stages=PIPELINE):  # pyright: ignore[reportGeneralTypeIssues]
        i_row, i_slot = row_at(order_ptr, ranks_ptr, i)
        if order_ptr is not None and i_slot != slot:
            if STAGE != "sums":
                tl.store(dw_ptr + tl.cast(slot, tl.int64) * n_cols + o_col, b_dw, mask=m_col)
                b_dw = tl.zeros([BLOCK_N], dtype=ACC)
            b_w = weight_of(w_ptr, index_ptr, i_row, n_weights, o_col, n_cols, ACC) + OFFSET  # [BLOCK_N]
            slot = i_slot
        p_x = x_ptr + multiple(i_row * stride_x, UNIT) + o_col
        b_x = tl.load(p_x, mask=m_col, other=0.0).to(ACC)  # [BLOCK_N]
        p_dy = dy_ptr + multiple(i_row * stride_dy, UNIT) + o_col
        b_dy = tl.load(p_dy, mask=m_col, other=0.0).to(ACC)  # [BLOCK_N]

        b_g = b_w * b_dy
        if rstd_ptr is not None:
            rstd = tl.load(rstd_ptr + i_row)
            total_gx = row_total(tl.sum(b_g * b_x), sums_ptr, i_row, STAGE, BLOCK_S)
        else:
            xx, gx = sum_of_squares_and(b_x, b_g * b_x, SUM_F64)
            total_xx = row_total(xx, sums_ptr, 2 * i_row, STAGE, BLOCK_S)
            total_gx = row_total(gx, sums_ptr, 2 * i_row + 1, STAGE, BLOCK_S)
            rstd = rstd_of(total_xx, n_cols, EPS, ACC)
        if STAGE != "sums":
            b_x_hat = b_x * rstd
            if dw_ptr is not None:
                b_dw += b_dy * b_x_hat
            if dx_ptr is not None:
                b_dx = rstd * (b_g - b_x_hat * (rstd * total_gx / n_cols))
                if ds_ptr is not None:
                    p_ds = ds_ptr + multiple(i_row * stride_ds, UNIT) + o_col
                    b_dx += tl.load(p_ds, mask=m_col, other=0.0).to(ACC)

                tl.store(dx_ptr + i_row * n_cols + o_col, b_dx, mask=m_col)
    if STAGE != "sums" and dw_ptr is not None:
        tl.store(dw_ptr + tl.cast(slot, tl.int64) * n_cols + o_col, b_dw, mask=m_col)


@kernel
def sum_partials(
    partials_ptr,  # [n_partials, n_cols], contiguous
    out_ptr,  # [n_cols]
    n_partials,
    n_cols,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    UNIT: tl.constexpr,
):
    """One program owns BLOCK_N columns; the order of the additions is fixed."""
    i_block = tl.program_id(0).to(tl.int64)
    n_cols = multiple(n_cols, UNIT)

    o_col = i_block * BLOCK_N + tl.arange(0, BLOCK_N)

    m_col = o_col < n_cols

    b_out = sum_of_rows(partials_ptr + o_col[None, :], n_partials, n_cols, m_col, BLOCK_P, BLOCK_N)
    if out_ptr.dtype.element_ty == tl.bfloat16:
        b_out = b_out.to(tl.float32)  # from float64 the interpreter knows no cast to bfloat16
    tl.store(out_ptr + o_col, b_out, mask=m_col)
