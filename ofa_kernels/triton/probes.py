"""Rademacher signs from Philox-4x32-10 (probes.py says which bit is whose)."""

import triton
import triton.language as tl


# specialised, a seed half of 1 would be a Python int without .to, and multiples of 16 a second compile
@triton.jit(do_not_specialize=["seed_low", "seed_high"])
def rademacher(
    out_ptr,  # [layers, n_probes, n_examples, n_cols], contiguous
    layers_ptr,  # [layers] int64
    ids_ptr,  # [n_examples] int64
    seed_low,
    seed_high,
    n_probes,
    n_examples,
    n_cols,
    BLOCK_G: tl.constexpr,
):
    """One program owns BLOCK_G groups of 128 columns of one (layer, probe, example)."""
    i_row = tl.program_id(0).to(tl.int64)
    i_block = tl.program_id(1)

    i_example = i_row % n_examples
    i_probe = (i_row // n_examples) % n_probes
    i_layer = i_row // (n_examples * n_probes)
    o_group = i_block * BLOCK_G + tl.arange(0, BLOCK_G)
    o_col = i_block * BLOCK_G * 128 + tl.arange(0, BLOCK_G * 128)

    m_col = o_col < n_cols

    example_id = tl.load(ids_ptr + i_example)
    layer = tl.load(layers_ptr + i_layer)

    zero = tl.zeros([BLOCK_G], dtype=tl.uint32)
    b_w0, b_w1, b_w2, b_w3 = tl.philox_impl(
        o_group.to(tl.uint32),
        zero + example_id.to(tl.uint32),
        zero + i_probe.to(tl.uint32),
        zero + layer.to(tl.uint32),
        zero + seed_low.to(tl.uint32),
        zero + seed_high.to(tl.uint32),
    )
    b_words = tl.join(tl.join(b_w0, b_w2), tl.join(b_w1, b_w3))  # [BLOCK_G, 2, 2], word = 2 i + j
    b_words = tl.reshape(b_words, [BLOCK_G, 4])
    b_bits = (b_words[:, :, None] >> tl.arange(0, 32).to(tl.uint32)[None, None, :]) & 1  # [BLOCK_G, 4, 32]
    b_sign = 1.0 - 2.0 * tl.reshape(b_bits, [BLOCK_G * 128]).to(tl.float32)

    tl.store(out_ptr + i_row * n_cols + o_col, b_sign.to(out_ptr.dtype.element_ty), mask=m_col)
