"""The calls that allocate and launch the kernels of the probes.

A seed is an int, an int64 tensor of one element, or one with an element for each row, which `rademacher` does
not take.
"""

import torch
from torch import Tensor

from ofa_kernels.dtypes import accumulation_dtype
from ofa_kernels.reference import Seed
from ofa_kernels.triton import plan
from ofa_kernels.triton import probes as kernels
from ofa_kernels.triton.cached import launch
from ofa_kernels.triton.plan import (
    PLAIN_BLOCK,
    PLAIN_WARPS,
    PROBES,
    PROBES_BACKWARD,
    acc,
    cdiv,
    dense,
    dense_like,
    strided,
    unit_of,
)
from ofa_kernels.triton.shares import shares


def signed_word(value: int) -> int:
    """The lower 32 bits as an int32: with an unsigned one, Triton would pass the larger half as int64."""
    return ((value + 0x80000000) & 0xFFFFFFFF) - 0x80000000


def words(seed: Seed) -> tuple[Tensor | None, int, int]:
    """(the seed where it is in memory, low word, high word)."""
    if isinstance(seed, Tensor):
        return dense(seed), 0, 0
    return None, signed_word(seed), signed_word(seed >> 32)


def is_per_row(seed: Seed) -> bool:
    """Whether each row has a seed of its own."""
    return isinstance(seed, Tensor) and seed.numel() > 1


def rademacher(
    n_cols: int, example_ids: Tensor, n_probes: int, layers: Tensor, seed: Seed, dtype: torch.dtype
) -> Tensor:
    """±1 as [layers, n_probes, examples, n_cols]."""
    n_layers, n_examples = layers.numel(), example_ids.numel()
    out = example_ids.new_empty((n_layers, n_probes, n_examples, n_cols), dtype=dtype)
    if out.numel():
        seed_tensor, *key = words(seed)
        launch(
            kernels.rademacher,
            (n_layers * n_probes * n_examples, cdiv(n_cols, PLAIN_BLOCK)),
            (out, dense(layers), dense(example_ids), seed_tensor),
            (*key, n_probes, n_examples, n_cols),
            BLOCK_N=PLAIN_BLOCK,
            UNIT=unit_of(n_cols, out),
            num_warps=PLAIN_WARPS,
        )
    return out


def preconditioned_probes(
    z: Tensor,
    weight: Tensor,
    eps: float,
    offset: float,
    seed: Seed,
    n_probes: int,
    example_ids: Tensor,
    layer: int,
    index: Tensor | None = None,
) -> Tensor:
    """(weight + offset) rstd(z) sign as [n_probes, rows, D] in z's type, for z [rows, D].

    The weight is [D]; with an index [rows] int64 it is [A, D], and its row index[r] is that of row r.
    """
    n_rows, n_cols = z.shape
    out = z.new_empty((n_probes, n_rows, n_cols))
    if out.numel():
        z, stride = strided(z, n_rows)
        seed_tensor, *key = words(seed)
        p = plan.plan(PROBES, n_cols, z.dtype, unit_of(n_cols, z))
        share = shares(p, n_rows, False, weight, index)
        scratch = p.scratch(z, n_rows, 1)
        p.launch(
            kernels.preconditioned_probes,
            n_rows,
            (z, dense(weight), share.index, dense(example_ids), out, scratch, seed_tensor),
            (*stride, *key, signed_word(layer), n_rows, n_probes, n_cols, share.n_weights),
            EPS=eps,
            OFFSET=offset,
            SEED_PER_ROW=is_per_row(seed),
        )
    return out


def preconditioned_probes_backward(
    z: Tensor,
    weight: Tensor,
    dp: Tensor,
    eps: float,
    offset: float,
    seed: Seed,
    example_ids: Tensor,
    layer: int,
    index: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """dz [rows, D] and dw, like the weight, of ⟨dp, `preconditioned_probes`⟩ for dp [n_probes, rows, D]."""
    n_probes, n_rows, n_cols = dp.shape
    dz = dense_like(z)
    if not n_rows:
        return dz, torch.zeros_like(weight)
    z, stride = strided(z, n_rows)
    dp, dp_strides = strided(dp, n_probes, n_rows)
    seed_tensor, *key = words(seed)
    p = plan.plan(PROBES_BACKWARD, n_cols, z.dtype, unit_of(n_cols, z, dp))
    share = shares(p, n_rows, True, weight, index)
    partials = share.partials(z, n_cols)
    outputs = dz, partials, p.scratch(z, n_rows, 2)
    p.launch(
        kernels.preconditioned_probes_backward,
        share.programs,
        (z, dense(weight), *share.pointers, dp, dense(example_ids), *outputs, seed_tensor),
        (*stride, *dp_strides, *key, signed_word(layer), n_rows, n_probes, n_cols, share.n_weights),
        EPS=eps,
        OFFSET=offset,
        SEED_PER_ROW=is_per_row(seed),
    )
    return dz, share.finish(p, partials, dense_like(weight))


def probe_dot(t: Tensor, seed: Seed, example_ids: Tensor, layer: int) -> Tensor:
    """Σ_columns sign t as [n_probes, rows] in the accumulation type, for t [n_probes, rows, D]."""
    n_probes, n_rows, n_cols = t.shape
    out = t.new_empty((n_probes, n_rows), dtype=accumulation_dtype(t))
    if out.numel():
        t, strides = strided(t, n_probes, n_rows)
        seed_tensor, *key = words(seed)
        launch(
            kernels.probe_dot,
            (n_probes * n_rows, 1),
            (t, dense(example_ids), out, seed_tensor),
            (*strides, *key, signed_word(layer), n_rows, n_cols),
            ACC=acc(t),
            BLOCK_N=PLAIN_BLOCK,
            SEED_PER_ROW=is_per_row(seed),
            UNIT=unit_of(n_cols, t),
            num_warps=PLAIN_WARPS,
        )
    return out


def probe_scale(
    scale: Tensor, n_cols: int, seed: Seed, example_ids: Tensor, layer: int, dtype: torch.dtype
) -> Tensor:
    """scale sign as [n_probes, rows, n_cols] in dtype, for scale [n_probes, rows]: `probe_dot`'s backward."""
    n_probes, n_rows = scale.shape
    out = scale.new_empty((n_probes, n_rows, n_cols), dtype=dtype)
    if out.numel():
        seed_tensor, *key = words(seed)
        launch(
            kernels.probe_scale,
            (n_probes * n_rows, cdiv(n_cols, PLAIN_BLOCK)),
            (dense(scale), dense(example_ids), out, seed_tensor),
            (*key, signed_word(layer), n_rows, n_cols),
            ACC=acc(out),
            BLOCK_N=PLAIN_BLOCK,
            SEED_PER_ROW=is_per_row(seed),
            UNIT=unit_of(n_cols, out),
            num_warps=PLAIN_WARPS,
        )
    return out
