"""Rademacher signs from Philox-4x32-10, made where they are used (ofa_kernels/probes.py says which is whose).

Columns are held as [groups, 4, 32]: a group of 128 columns is one Philox call, its four words of 32 bits.
`row.py` says what a stage is.
"""

import triton
import triton.language as tl

from ofa_kernels.triton.row import (
    kernel,
    multiple,
    row_total,
    rstd_of,
    sum_of_squares,
    sum_of_squares_and,
    weight_of,
)
from ofa_kernels.triton.segments import row_at, walk_of


@triton.jit
def columns_of(o_group):
    """The columns [BLOCK_G, 4, 32] of the groups [BLOCK_G]."""
    o_word = tl.arange(0, 4)
    o_bit = tl.arange(0, 32)
    return o_group[:, None, None] * 128 + o_word[None, :, None] * 32 + o_bit[None, None, :]


@triton.jit
def key_of(seed_ptr, i_row, seed_low, seed_high, SEED_PER_ROW):
    """Both words of the key, from memory where the seed is there: a CUDA graph would replay the words."""
    if seed_ptr is not None:
        seed = tl.load(seed_ptr + i_row if SEED_PER_ROW else seed_ptr)
        seed_low = seed.to(tl.int32)
        seed_high = (seed >> 32).to(tl.int32)
    return seed_low, seed_high


@triton.jit
def signs_of(o_group, example_id, i_probe, layer, seed_low, seed_high, BLOCK_G: tl.constexpr):
    """±1 [BLOCK_G, 4, 32] in float32."""
    zero = tl.zeros([BLOCK_G], dtype=tl.uint32)
    b_w0, b_w1, b_w2, b_w3 = tl.philox_impl(
        o_group.to(tl.uint32),
        zero + example_id.to(tl.uint32),
        zero + tl.cast(i_probe, tl.uint32),
        zero + layer.to(tl.uint32),
        zero + seed_low.to(tl.uint32),
        zero + seed_high.to(tl.uint32),
    )
    b_words = tl.join(tl.join(b_w0, b_w2), tl.join(b_w1, b_w3))  # [BLOCK_G, 2, 2], word = 2 i + j
    b_words = tl.reshape(b_words, [BLOCK_G, 4])
    b_bits = (b_words[:, :, None] >> tl.arange(0, 32).to(tl.uint32)[None, None, :]) & 1  # [BLOCK_G, 4, 32]
    return 1.0 - 2.0 * b_bits.to(tl.float32)


@kernel
def rademacher(
    out_ptr,  # [layers, n_probes, n_examples, n_cols], contiguous
    layers_ptr,  # [layers] int64
    ids_ptr,  # [n_examples] int64
    seed_ptr,  # one int64, or None: then it is in the words
    seed_low,
    seed_high,
    n_probes,
    n_examples,
    n_cols,
    BLOCK_N: tl.constexpr,
    UNIT: tl.constexpr,
):
    """One program owns BLOCK_N columns of one (layer, probe, example)."""
    BLOCK_G: tl.constexpr = BLOCK_N // 128
    i_row = tl.program_id(0).to(tl.int64)
    i_block = tl.program_id(1)
    n_cols = multiple(n_cols, UNIT)

    i_example = i_row % n_examples
    i_probe = (i_row // n_examples) % n_probes
    i_layer = i_row // n_examples // n_probes
    o_group = i_block * BLOCK_G + tl.arange(0, BLOCK_G)
    o_col = columns_of(o_group)

    m_col = o_col < n_cols

    example_id = tl.load(ids_ptr + i_example)
    layer = tl.load(layers_ptr + i_layer)
    seed_low, seed_high = key_of(seed_ptr, 0, seed_low, seed_high, False)

    b_sign = signs_of(o_group, example_id, i_probe, layer, seed_low, seed_high, BLOCK_G)

    tl.store(out_ptr + i_row * n_cols + o_col, b_sign, mask=m_col)


@kernel
def preconditioned_probes(
    z_ptr,  # [rows, n_cols], row stride stride_z
    w_ptr,  # [n_cols], or [n_weights, n_cols] where there is an index
    index_ptr,  # [rows] int64, or None: which row of w scales a row
    ids_ptr,  # [rows] int64
    p_ptr,  # [n_probes, rows, n_cols], contiguous
    sums_ptr,  # [rows, n_blocks] float64, or None
    seed_ptr,  # one int64 or [rows] of them, or None: then it is in the words
    stride_z,
    seed_low,
    seed_high,
    layer,
    n_rows,
    n_probes,
    n_cols,
    n_weights,
    EPS: tl.constexpr,
    OFFSET: tl.constexpr,
    ACC: tl.constexpr,
    STAGE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
    SUM_F64: tl.constexpr,
    SEED_PER_ROW: tl.constexpr,
    UNIT: tl.constexpr,
):
    """One program owns one block of one row for all probes."""
    BLOCK_G: tl.constexpr = BLOCK_N // 128
    i_row = tl.program_id(0).to(tl.int64)
    i_block = tl.program_id(1)
    n_cols = multiple(n_cols, UNIT)

    o_group = i_block * BLOCK_G + tl.arange(0, BLOCK_G)
    o_col = columns_of(o_group)

    m_col = o_col < n_cols

    p_z = z_ptr + multiple(i_row * stride_z, UNIT) + o_col
    b_z = tl.load(p_z, mask=m_col, other=0.0).to(ACC)  # [BLOCK_G, 4, 32]
    example_id = tl.load(ids_ptr + i_row)
    seed_low, seed_high = key_of(seed_ptr, i_row, seed_low, seed_high, SEED_PER_ROW)

    total = row_total(sum_of_squares(b_z, SUM_F64), sums_ptr, i_row, STAGE, BLOCK_S)
    if STAGE != "sums":
        b_w = weight_of(w_ptr, index_ptr, i_row, n_weights, o_col, n_cols, ACC) + OFFSET  # [BLOCK_G, 4, 32]
        b_p = b_w * rstd_of(total, n_cols, EPS, ACC)
        for k in range(0, n_probes):
            b_sign = signs_of(o_group, example_id, k, layer, seed_low, seed_high, BLOCK_G)

            p_p = p_ptr + (tl.cast(k, tl.int64) * n_rows + i_row) * n_cols + o_col
            tl.store(p_p, b_p * b_sign, mask=m_col)


@kernel
def preconditioned_probes_backward(
    z_ptr,  # [rows, n_cols], row stride stride_z
    w_ptr,  # [n_cols], or [n_weights, n_cols] where there is an index
    index_ptr,  # [rows] int64, or None: which row of w scales a row
    order_ptr,  # [rows] int32, or None: rows in the order of their index (segments.py)
    ranks_ptr,  # [rows] int32, or None where order is: of the segments, in that order
    dp_ptr,  # [n_probes, rows, n_cols], strides stride_dp_k, stride_dp
    ids_ptr,  # [rows] int64
    dz_ptr,  # [rows, n_cols], contiguous
    dw_ptr,  # [programs or slots, n_cols] in ACC: partial sums
    sums_ptr,  # [rows, 2, n_blocks] float64, or None
    seed_ptr,  # one int64 or [rows] of them, or None: then it is in the words
    stride_z,
    stride_dp_k,
    stride_dp,
    seed_low,
    seed_high,
    layer,
    n_rows,
    n_probes,
    n_cols,
    n_weights,
    EPS: tl.constexpr,
    OFFSET: tl.constexpr,
    ACC: tl.constexpr,
    STAGE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
    SUM_F64: tl.constexpr,
    SEED_PER_ROW: tl.constexpr,
    UNIT: tl.constexpr,
):
    """One program owns one block of the rows of its walk for all probes, and their share of dw."""
    BLOCK_G: tl.constexpr = BLOCK_N // 128
    first, end, step = walk_of(order_ptr, n_rows)
    i_block = tl.program_id(1)
    n_cols = multiple(n_cols, UNIT)

    o_group = i_block * BLOCK_G + tl.arange(0, BLOCK_G)
    o_col = columns_of(o_group)

    m_col = o_col < n_cols

    i_row, slot = row_at(order_ptr, ranks_ptr, first)
    b_w = weight_of(w_ptr, index_ptr, i_row, n_weights, o_col, n_cols, ACC) + OFFSET  # [BLOCK_G, 4, 32]
    seed_low, seed_high = key_of(seed_ptr, i_row, seed_low, seed_high, SEED_PER_ROW)
    b_dw = tl.zeros([BLOCK_G, 4, 32], dtype=ACC)
    for i in range(first, end, step):
        i_row, i_slot = row_at(order_ptr, ranks_ptr, i)
        if SEED_PER_ROW:
            seed_low, seed_high = key_of(seed_ptr, i_row, seed_low, seed_high, SEED_PER_ROW)
        if order_ptr is not None and i_slot != slot:
            if STAGE != "sums":
                tl.store(dw_ptr + tl.cast(slot, tl.int64) * n_cols + o_col, b_dw, mask=m_col)
                b_dw = tl.zeros([BLOCK_G, 4, 32], dtype=ACC)
            b_w = weight_of(w_ptr, index_ptr, i_row, n_weights, o_col, n_cols, ACC) + OFFSET
            slot = i_slot
        p_z = z_ptr + multiple(i_row * stride_z, UNIT) + o_col
        b_z = tl.load(p_z, mask=m_col, other=0.0).to(ACC)  # [BLOCK_G, 4, 32]
        example_id = tl.load(ids_ptr + i_row)

        b_q = tl.zeros([BLOCK_G, 4, 32], dtype=ACC)
        for k in range(0, n_probes):
            p_dp = dp_ptr + multiple(tl.cast(k, tl.int64) * stride_dp_k + i_row * stride_dp, UNIT) + o_col
            b_dp = tl.load(p_dp, mask=m_col, other=0.0).to(ACC)  # [BLOCK_G, 4, 32]
            b_q += b_dp * signs_of(o_group, example_id, k, layer, seed_low, seed_high, BLOCK_G)
        zz, wq = sum_of_squares_and(b_z, b_w * b_q, SUM_F64)
        total_zz = row_total(zz, sums_ptr, 2 * i_row, STAGE, BLOCK_S)
        total_wq = row_total(wq, sums_ptr, 2 * i_row + 1, STAGE, BLOCK_S)
        if STAGE != "sums":
            rstd = rstd_of(total_zz, n_cols, EPS, ACC)
            b_dw += b_q * rstd
            b_dz = b_z * rstd * (-rstd * (rstd * total_wq / n_cols))

            tl.store(dz_ptr + i_row * n_cols + o_col, b_dz, mask=m_col)
    if STAGE != "sums":
        tl.store(dw_ptr + tl.cast(slot, tl.int64) * n_cols + o_col, b_dw, mask=m_col)


@kernel
def probe_dot(
    t_ptr,  # [n_probes, rows, n_cols], strides stride_t_k, stride_t
    ids_ptr,  # [rows] int64
    out_ptr,  # [n_probes, rows] in ACC
    seed_ptr,  # one int64 or [rows] of them, or None: then it is in the words
    stride_t_k,
    stride_t,
    seed_low,
    seed_high,
    layer,
    n_rows,
    n_cols,
    ACC: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SEED_PER_ROW: tl.constexpr,
    UNIT: tl.constexpr,
):
    """One program owns one (probe, row)."""
    BLOCK_G: tl.constexpr = BLOCK_N // 128
    i_out = tl.program_id(0).to(tl.int64)
    n_cols = multiple(n_cols, UNIT)

    i_probe = i_out // n_rows
    i_row = i_out % n_rows

    example_id = tl.load(ids_ptr + i_row)
    seed_low, seed_high = key_of(seed_ptr, i_row, seed_low, seed_high, SEED_PER_ROW)

    b = tl.zeros([BLOCK_G, 4, 32], dtype=ACC)
    for i in range(0, tl.cdiv(n_cols, BLOCK_N)):
        o_group = i * BLOCK_G + tl.arange(0, BLOCK_G)
        o_col = columns_of(o_group)
        p_t = t_ptr + multiple(i_probe * stride_t_k + i_row * stride_t, UNIT) + o_col
        b_t = tl.load(p_t, mask=o_col < n_cols, other=0.0).to(ACC)  # [BLOCK_G, 4, 32]
        b += b_t * signs_of(o_group, example_id, i_probe, layer, seed_low, seed_high, BLOCK_G)

    tl.store(out_ptr + i_out, tl.sum(b))


@kernel
def probe_scale(
    scale_ptr,  # [n_probes, rows], contiguous
    ids_ptr,  # [rows] int64
    out_ptr,  # [n_probes, rows, n_cols], contiguous
    seed_ptr,  # one int64 or [rows] of them, or None: then it is in the words
    seed_low,
    seed_high,
    layer,
    n_rows,
    n_cols,
    ACC: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SEED_PER_ROW: tl.constexpr,
    UNIT: tl.constexpr,
):
    """One program owns BLOCK_N columns of one (probe, row)."""
    BLOCK_G: tl.constexpr = BLOCK_N // 128
    i_out = tl.program_id(0).to(tl.int64)
    i_block = tl.program_id(1)
    n_cols = multiple(n_cols, UNIT)

    i_probe = i_out // n_rows
    i_row = i_out % n_rows
    o_group = i_block * BLOCK_G + tl.arange(0, BLOCK_G)
    o_col = columns_of(o_group)

    m_col = o_col < n_cols

    scale = tl.load(scale_ptr + i_out).to(ACC)
    example_id = tl.load(ids_ptr + i_row)
    seed_low, seed_high = key_of(seed_ptr, i_row, seed_low, seed_high, SEED_PER_ROW)

    b = scale * signs_of(o_group, example_id, i_probe, layer, seed_low, seed_high, BLOCK_G)

    tl.store(out_ptr + i_out * n_cols + o_col, b, mask=m_col)
