"""Seed-defined Rademacher probes: the same ±1 on every backend, device and batch composition.

Philox-4x32-10 with key = the 64-bit seed and counter = (column // 128, example id, probe index, layer);
the sign of column c is bit c mod 32 of word (c // 32) mod 4. Nothing is stored: a probe is its seed.
"""

import torch
from torch import Tensor

from ofa_kernels import reference
from ofa_kernels.dispatch import backend_for

_GOLDEN = 0x9E3779B97F4A7C15
_UINT64 = (1 << 64) - 1


def mix(seed: int, step: int) -> int:
    """The 64-bit probe seed of a training step: output number `step` of SplitMix64 (Steele et al. 2014)."""
    z = (seed + (step + 1) * _GOLDEN) & _UINT64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _UINT64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _UINT64
    return z ^ (z >> 31)


def _signs(
    n_cols: int, example_ids: Tensor, n_probes: int, layers: Tensor, seed: int, dtype: torch.dtype
) -> Tensor:
    """±1 as [layers, n_probes, examples, n_cols], from the backend that serves the ids' device."""
    if not 0 <= seed <= _UINT64:
        raise ValueError(f"a probe seed is a 64-bit unsigned integer, got {seed}")
    if backend_for(torch.empty(1, 1, dtype=dtype, device=example_ids.device)) == "triton":
        from ofa_kernels.triton import launch

        return launch.rademacher(n_cols, example_ids, n_probes, layers, seed, dtype)
    return reference.rademacher_signs(n_cols, example_ids, n_probes, layers, seed, dtype)


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


def probe_signs(z: Tensor, seed: int, n_probes: int, example_ids: Tensor | None, layer: int) -> Tensor:
    """ν [n_probes, *z.shape] for the rows of z [..., D], in z's type."""
    if n_probes < 1:
        raise ValueError(f"n_probes must be at least 1, got {n_probes}")
    rows = z.shape[:-1]
    if example_ids is None:
        example_ids = torch.arange(rows.numel(), device=z.device)
    elif example_ids.shape != rows:
        raise ValueError(f"example_ids must be one id a row, {tuple(rows)}, got {tuple(example_ids.shape)}")
    ids = example_ids.to(z.device, torch.int64).reshape(-1)
    layers = torch.tensor([layer], device=z.device)
    return _signs(z.shape[-1], ids, n_probes, layers, seed, z.dtype).reshape(n_probes, *z.shape)


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
    signs = probe_signs(z, seed, n_probes, example_ids, layer)
    return (reference.preconditioner(z, weight, eps, offset) * signs).to(z.dtype)
