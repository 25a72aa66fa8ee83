"""RMSNorm: forward and backward, one row in registers."""

import triton
import triton.language as tl


@triton.jit
def rms_norm_forward(
    x_ptr,  # [rows, n_cols], row stride stride_x
    w_ptr,  # [n_cols]
    y_ptr,  # [rows, n_cols], contiguous
    stride_x,
    n_cols,
    EPS: tl.constexpr,
    OFFSET: tl.constexpr,
    ROUND_X_HAT: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program owns one row."""
    i_row = tl.program_id(0).to(tl.int64)

    o_col = tl.arange(0, BLOCK_N)

    m_col = o_col < n_cols

    b_x_in = tl.load(x_ptr + i_row * stride_x + o_col, mask=m_col, other=0.0)  # [BLOCK_N]
    b_w = tl.load(w_ptr + o_col, mask=m_col, other=0.0)  # [BLOCK_N]

    b_x = b_x_in.to(ACC)
    rstd = 1.0 / tl.sqrt(tl.sum(b_x * b_x) / n_cols + EPS)
    b_x_hat = b_x * rstd
    if ROUND_X_HAT:
        b_x_hat = b_x_hat.to(b_x_in.dtype).to(ACC)
        b_w = (b_w.to(ACC) + OFFSET).to(b_w.dtype).to(ACC)
    else:
        b_w = b_w.to(ACC) + OFFSET

    tl.store(y_ptr + i_row * n_cols + o_col, (b_w * b_x_hat).to(b_x_in.dtype), mask=m_col)


@triton.jit
def rms_norm_backward(
    x_ptr,  # [rows, n_cols], row stride stride_x
    w_ptr,  # [n_cols]
    dy_ptr,  # [rows, n_cols], row stride stride_dy
    dx_ptr,  # [rows, n_cols], contiguous
    dw_ptr,  # [programs, n_cols] in ACC: one partial sum a program
    stride_x,
    stride_dy,
    n_rows,
    n_cols,
    EPS: tl.constexpr,
    OFFSET: tl.constexpr,
    NEED_DW: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program owns every num_programs-th row, and their share of dw."""
    i_program = tl.program_id(0).to(tl.int64)
    n_programs = tl.num_programs(0)

    o_col = tl.arange(0, BLOCK_N)

    m_col = o_col < n_cols

    b_w = tl.load(w_ptr + o_col, mask=m_col, other=0.0).to(ACC) + OFFSET  # [BLOCK_N]
    b_dw = tl.zeros([BLOCK_N], dtype=ACC)
    for i in range(0, tl.cdiv(n_rows - i_program, n_programs)):
        i_row = i_program + i * n_programs
        b_x_in = tl.load(x_ptr + i_row * stride_x + o_col, mask=m_col, other=0.0)  # [BLOCK_N]
        b_dy = tl.load(dy_ptr + i_row * stride_dy + o_col, mask=m_col, other=0.0).to(ACC)  # [BLOCK_N]

        b_x = b_x_in.to(ACC)
        rstd = 1.0 / tl.sqrt(tl.sum(b_x * b_x) / n_cols + EPS)
        b_x_hat = b_x * rstd
        b_g = b_w * b_dy
        c = tl.sum(b_g * b_x_hat) / n_cols
        b_dx = rstd * (b_g - b_x_hat * c)
        if NEED_DW:
            b_dw += b_dy * b_x_hat

        tl.store(dx_ptr + i_row * n_cols + o_col, b_dx.to(b_x_in.dtype), mask=m_col)
    if NEED_DW:
        tl.store(dw_ptr + i_program * n_cols + o_col, b_dw, mask=m_col)
