"""The calls that allocate and launch the kernels of the probes."""

import torch
from torch import Tensor

from ofa_kernels.dtypes import accumulation_dtype
from ofa_kernels.reference import Seed
from ofa_kernels.triton import plan
from ofa_kernels.triton import probes as kernels
from ofa_kernels.triton.plan import (
    PLAIN_BLOCK,
    PLAIN_WARPS,
    PROBES,
    PROBES_BACKWARD,
    acc,
    as_rows,
    cdiv,
    dense_like,
    on,
    partials_like,
    unit_of,
)


def signed_word(value: int) -> int:
    """The lower 32 bits as an int32: with an unsigned one, Triton would pass the larger half as int64."""
    return ((value + 0x80000000) & 0xFFFFFFFF) - 0x80000000


def words(seed: Seed) -> tuple[Tensor | None, int, int]:
    """(the seed where it is in memory, low word, high word)."""
    if isinstance(seed, Tensor):
        return seed, 0, 0
    return None, signed_word(seed), signed_word(seed >> 32)


def rademacher(
    n_cols: int, example_ids: Tensor, n_probes: int, layers: Tensor, seed: Seed, dtype: torch.dtype
) -> Tensor:
    """±1 as [layers, n_probes, examples, n_cols]."""
    n_layers, n_examples = layers.numel(), example_ids.numel()
    out = example_ids.new_empty((n_layers, n_probes, n_examples, n_cols), dtype=dtype)
    if out.numel():
        with on(out):
            kernels.rademacher[n_layers * n_probes * n_examples, cdiv(n_cols, PLAIN_BLOCK)](
                out,
                layers.contiguous(),
                example_ids.contiguous(),
                *words(seed),
                n_probes,
                n_examples,
                n_cols,
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
) -> Tensor:
    """(weight + offset) rstd(z) sign as [n_probes, rows, D] in z's type, for z [rows, D]."""
    n_rows, n_cols = z.shape
    out = z.new_empty((n_probes, n_rows, n_cols))
    if out.numel():
        z = as_rows(z, n_rows)
        p = plan.plan(PROBES, n_cols, z.dtype, unit_of(n_cols, z))
        p.launch(
            kernels.preconditioned_probes,
            n_rows,
            z,
            weight.contiguous(),
            example_ids.contiguous(),
            out,
            p.scratch(z, n_rows, 1),
            z.stride(0),
            *words(seed),
            signed_word(layer),
            n_rows,
            n_probes,
            n_cols,
            EPS=eps,
            OFFSET=offset,
            ACC=acc(z),
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
) -> tuple[Tensor, Tensor]:
    """dz [rows, D] and dw [D] of ⟨dp, `preconditioned_probes`⟩ for dp [n_probes, rows, D]."""
    n_probes, n_rows, n_cols = dp.shape
    dz = dense_like(z)
    if not n_rows:
        return dz, torch.zeros_like(weight)
    z, dp = as_rows(z, n_rows), as_rows(dp, n_probes, n_rows)
    p = plan.plan(PROBES_BACKWARD, n_cols, z.dtype, unit_of(n_cols, z, dp))
    partials = partials_like(z, p.programs(n_rows), n_cols)
    p.launch(
        kernels.preconditioned_probes_backward,
        partials.shape[0],
        z,
        weight.contiguous(),
        dp,
        example_ids.contiguous(),
        dz,
        partials,
        p.scratch(z, n_rows, 2),
        z.stride(0),
        dp.stride(0),
        dp.stride(1),
        *words(seed),
        signed_word(layer),
        n_rows,
        n_probes,
        n_cols,
        EPS=eps,
        OFFSET=offset,
        ACC=acc(z),
    )
    return dz, p.finish(partials, weight.dtype)


def probe_dot(t: Tensor, seed: Seed, example_ids: Tensor, layer: int) -> Tensor:
    """Σ_columns sign t as [n_probes, rows] in the accumulation type, for t [n_probes, rows, D]."""
    n_probes, n_rows, n_cols = t.shape
    out = t.new_empty((n_probes, n_rows), dtype=accumulation_dtype(t))
    if out.numel():
        t = as_rows(t, n_probes, n_rows)
        with on(t):
            kernels.probe_dot[(n_probes * n_rows,)](
                t,
                example_ids.contiguous(),
                out,
                t.stride(0),
                t.stride(1),
                *words(seed),
                signed_word(layer),
                n_rows,
                n_cols,
                ACC=acc(t),
                BLOCK_N=PLAIN_BLOCK,
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
        with on(out):
            kernels.probe_scale[n_probes * n_rows, cdiv(n_cols, PLAIN_BLOCK)](
                scale.contiguous(),
                example_ids.contiguous(),
                out,
                *words(seed),
                signed_word(layer),
                n_rows,
                n_cols,
                ACC=acc(out),
                BLOCK_N=PLAIN_BLOCK,
                UNIT=unit_of(n_cols, out),
                num_warps=PLAIN_WARPS,
            )
    return out
