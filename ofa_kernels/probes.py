"""Seed-defined Rademacher probes: the same ±1 on every backend, device and batch composition.

Philox-4x32-10 with key = the 64-bit seed and counter = (column // 128, example id, probe index, layer);
the sign of column c is bit c mod 32 of word (c // 32) mod 4. Nothing is stored: a probe is its seed.
"""

import math

import torch
from torch import Tensor

from ofa_kernels import reference
from ofa_kernels.composed import Composed, first_order
from ofa_kernels.dispatch import kernels_for

_GOLDEN = 0x9E3779B97F4A7C15
_UINT64 = (1 << 64) - 1


def mix(seed: int, step: int) -> int:
    """The 64-bit probe seed of a training step: output number `step` of SplitMix64 (Steele et al. 2014)."""
    z = (seed + (step + 1) * _GOLDEN) & _UINT64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _UINT64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _UINT64
    return z ^ (z >> 31)


def _check_seed(seed: int) -> None:
    if not 0 <= seed <= _UINT64:
        raise ValueError(f"a probe seed is a 64-bit unsigned integer, got {seed}")


def _signs(
    n_cols: int, example_ids: Tensor, n_probes: int, layers: Tensor, seed: int, dtype: torch.dtype
) -> Tensor:
    """±1 as [layers, n_probes, examples, n_cols], from the backend that serves the ids' device."""
    _check_seed(seed)
    kernels = kernels_for(torch.empty(0, dtype=dtype, device=example_ids.device))
    make = reference.rademacher_signs if kernels is None else kernels.rademacher
    return make(n_cols, example_ids, n_probes, layers, seed, dtype)


def rademacher(
    shape: tuple[int, ...] | torch.Size,
    seed: int,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Independent ±1 with equal odds, defined by the seed alone (Salmon et al. 2011, Philox-4x32-10).

    Args:
        shape: up to four sizes, read from the right as (layer, probe, example, column); [N, B, D] gives the
            ν of `preconditioned_probes` for layer 0 and examples 0 to B-1.
        seed: 0 to 2^64 - 1.
        device: where to make them; default: the CPU.
        dtype: float64, float32, bfloat16 or float16.

    Returns:
        ±1 in `dtype`, the same on every backend.

    Raises:
        ValueError: more than four sizes, none, or a seed outside its range.
    """
    if not 1 <= len(shape) <= 4:
        raise ValueError(f"rademacher: shape must have 1 to 4 sizes, got {tuple(shape)}; reshape the result")
    layers, probes, examples, columns = (1,) * (4 - len(shape)) + tuple(shape)
    ids = torch.arange(examples, device=device or "cpu")
    signs = _signs(columns, ids, probes, torch.arange(layers, device=ids.device), seed, dtype)
    return signs.reshape(shape)


def _checked(
    name: str, rows: tuple[int, ...], n_probes: int, seed: int, example_ids: Tensor | None, device
) -> Tensor:
    """The ids of the examples as [rows] int64 on the device, with everything a probe depends on checked."""
    if n_probes < 1:
        raise ValueError(f"{name}: n_probes must be at least 1, got {n_probes}")
    _check_seed(seed)
    if example_ids is None:
        return torch.arange(math.prod(rows), device=device)
    if tuple(example_ids.shape) != tuple(rows):
        raise ValueError(
            f"{name}: example_ids must be one id a row, {tuple(rows)}, got {tuple(example_ids.shape)}"
        )
    return example_ids.to(device, torch.int64).reshape(-1)


def probe_signs(
    z: Tensor, seed: int, n_probes: int, example_ids: Tensor | None = None, layer: int = 0
) -> Tensor:
    """ν [n_probes, *z.shape] for the rows of z [..., D], in z's type."""
    ids = _checked("probe_signs", z.shape[:-1], n_probes, seed, example_ids, z.device)
    layers = torch.tensor([layer], device=z.device)
    return _signs(z.shape[-1], ids, n_probes, layers, seed, z.dtype).reshape(n_probes, *z.shape)


def _probe_signs_like(t: Tensor, ids: Tensor, seed: int, layer: int, n_probes: int) -> Tensor:
    """ν [n_probes, rows, D] in float32 (float64 for a float64 t), composed."""
    layers = torch.tensor([layer], device=ids.device)
    dtype = reference.accumulation_dtype(t)
    return reference.rademacher_signs(t.shape[-1], ids, n_probes, layers, seed, dtype)[0]


class _PreconditionedProbes(Composed):
    """(z [rows, D], w, ids) -> P ν [n_probes, rows, D]."""

    n_tensors = 3

    @staticmethod
    def formula(options):
        _, eps, offset, seed, n_probes, layer = options

        def formula(z, weight, ids):
            signs = _probe_signs_like(z, ids, seed, layer, n_probes)
            return (reference.preconditioner(z, weight, eps, offset) * signs).to(z.dtype)

        return formula

    @staticmethod
    def forward(z, weight, ids, kernels, eps, offset, seed, n_probes, layer):
        return kernels.preconditioned_probes(z, weight, eps, offset, seed, n_probes, ids, layer)

    @classmethod
    def backward(cls, ctx, dp):
        if dp is None or not first_order():
            return super().backward(ctx, dp)
        (z, weight, ids), (kernels, eps, offset, seed, _, layer) = ctx.saved_tensors, ctx.options
        dz, dw = kernels.preconditioned_probes_backward(z, weight, dp, eps, offset, seed, ids, layer)
        return dz, dw, *(None,) * 7


class _ProbeDot(Composed):
    """(t [n_probes, rows, D], ids) -> Σ_columns ν t [n_probes, rows]."""

    n_tensors = 2

    @staticmethod
    def formula(options):
        _, seed, layer = options

        def formula(t, ids):
            signs = _probe_signs_like(t, ids, seed, layer, t.shape[0])
            return (signs * t.to(signs.dtype)).sum(-1)

        return formula

    @staticmethod
    def forward(t, ids, kernels, seed, layer):
        return kernels.probe_dot(t, seed, ids, layer)

    @classmethod
    def backward(cls, ctx, ddot):
        if ddot is None or not first_order():
            return super().backward(ctx, ddot)
        (t, ids), (kernels, seed, layer) = ctx.saved_tensors, ctx.options
        return kernels.probe_scale(ddot, t.shape[-1], seed, ids, layer, t.dtype), *(None,) * 4


def probe_dot(t: Tensor, seed: int, example_ids: Tensor | None = None, layer: int = 0) -> Tensor:
    """Σ_columns ν_k t_k: each row's product with its own probe, made again from the seed, never stored.

    With t_k = J P ν_k it is Hutchinson's estimate (1990) of tr(J P) of probe k. Differentiable in t.

    Args:
        t: [n_probes, ..., D].
        seed: 0 to 2^64 - 1.
        example_ids: [...] integers, one a row, taken modulo 2^32; default 0, 1, 2, …
        layer: the layer's number in the counter.

    Returns:
        [n_probes, ...], float64 for a float64 t, else float32.

    Raises:
        ValueError: shapes or the seed don't fit.
    """
    if t.dim() < 2:
        raise ValueError(f"probe_dot: t must be [n_probes, ..., D], got {tuple(t.shape)}")
    rows = t.shape[1:-1]
    ids = _checked("probe_dot", rows, t.shape[0], seed, example_ids, t.device)
    flat, kernels = t.reshape(t.shape[0], -1, t.shape[-1]), kernels_for(t)
    if kernels is None:
        dots = _ProbeDot.formula((None, seed, layer))(flat, ids)
    else:
        dots = _ProbeDot.apply(flat, ids, kernels, seed, layer)
    return dots.reshape(t.shape[:-1])


def preconditioned_probes(
    z: Tensor,
    weight: Tensor,
    eps: float,
    seed: int,
    n_probes: int,
    offset: float = 0.0,
    example_ids: Tensor | None = None,
    layer: int = 0,
) -> Tensor:
    """The probe directions P ν_k = (weight + offset) / σ(z) ⊙ ν_k (OFA, sharpness term).

    Differentiable in z and weight. The probes depend on (seed, layer, example id, probe index, column) only.

    Args:
        z: [..., D], one state a row.
        weight: [D], the norm's γ.
        eps: inside σ(z) = sqrt(mean(z²) + eps).
        seed: 0 to 2^64 - 1.
        n_probes: how many, at least 1.
        offset: added to the weight (1.0 for Gemma).
        example_ids: [...] integers, one a row, taken modulo 2^32; default 0, 1, 2, …
        layer: the layer's number in the counter.

    Returns:
        [n_probes, *z.shape] in z's type.

    Raises:
        ValueError: shapes, `n_probes` or the seed don't fit.
    """
    if weight.shape != z.shape[-1:]:
        raise ValueError(f"weight must be [D] for z [..., D], got {tuple(weight.shape)} for {tuple(z.shape)}")
    ids = _checked("preconditioned_probes", z.shape[:-1], n_probes, seed, example_ids, z.device)
    flat, kernels = z.reshape(-1, z.shape[-1]), kernels_for(z, weight)
    options = kernels, eps, offset, seed, n_probes, layer
    if kernels is None:
        probes = _PreconditionedProbes.formula(options)(flat, weight, ids)
    else:
        probes = _PreconditionedProbes.apply(flat, weight, ids, *options)
    return probes.reshape(n_probes, *z.shape)
