"""Seed-defined Rademacher probes: the same ±1 on every backend, device and batch composition.

Philox-4x32-10 with key = the 64-bit seed and counter = (column // 128, example id, probe index, layer);
the sign of column c is bit c mod 32 of word (c // 32) mod 4. Nothing is stored: a probe is its seed.
"""

from typing import overload

import torch
from torch import Tensor

from ofa_kernels import formulas, reference
from ofa_kernels.arguments import (
    check_tensor,
    checked_ids,
    checked_seed,
    integer,
    norm_arguments,
)
from ofa_kernels.boundary import KERNEL_DTYPES, matching, ready
from ofa_kernels.composed import Composed, first_order, plain_call, recorded
from ofa_kernels.dispatch import kernels_for
from ofa_kernels.reference import Seed
from ofa_kernels.weight_index import indexed_kernels

_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_UINT64 = (1 << 64) - 1


@overload
def _int64(value: int) -> int: ...


@overload
def _int64(value: Tensor) -> Tensor: ...


def _int64(value: Seed) -> Seed:
    """The lower 64 bits of a Python integer as the signed number that an int64 tensor would hold."""
    return value if isinstance(value, Tensor) else ((value + (1 << 63)) & _UINT64) - (1 << 63)


def _xor_shifted(z: Seed, bits: int) -> Seed:
    return z ^ ((z >> bits) & (_UINT64 >> bits))  # int64's own shift copies the sign


def mix(seed: Seed, step: Seed) -> Seed:
    """The 64-bit probe seed of a training step: output number `step` of SplitMix64 (Steele et al. 2014).

    Args:
        seed: the seed of the run; an integer of any size, or an int64 tensor of one element.
        step: counted from 0; an integer or a tensor likewise. In a CUDA graph, a tensor that is filled before
            each replay.

    Returns:
        An integer from 0 to 2^64 - 1; the same bits as an int64 tensor where one of the two is a tensor.

    Raises:
        TypeError: a tensor is not int64.
    """
    if not (isinstance(seed, Tensor) or isinstance(step, Tensor)):
        z = (seed + (step + 1) * _GOLDEN) & _UINT64
        z = (_xor_shifted(z, 30) * _FIRST) & _UINT64
        return _xor_shifted((_xor_shifted(z, 27) * _SECOND) & _UINT64, 31)
    for value in (seed, step):
        if isinstance(value, Tensor) and value.dtype != torch.int64:
            raise TypeError(f"mix: a seed or step that is a tensor must be int64, got {value.dtype}")
    z = _int64(seed) + _int64((step + 1) * (_int64(_GOLDEN) if isinstance(step, Tensor) else _GOLDEN))
    z = _xor_shifted(z, 30) * _int64(_FIRST)
    return _xor_shifted(_xor_shifted(z, 27) * _int64(_SECOND), 31)


def _split(seed: Seed) -> tuple[Tensor | None, int | None]:
    """The seed where a Function takes tensors, and where it takes options."""
    return (seed, None) if isinstance(seed, Tensor) else (None, seed)


class _Signs(Composed):
    """(ids, layers, seed or None) -> ±1 [layers, n_probes, examples, n_cols].

    A transform of torch.func wraps whatever is made within it, and only a Function is handed real memory.
    """

    @staticmethod
    def formula(options):
        _, n_cols, n_probes, number, dtype = options

        def formula(ids, layers, seed):
            key = number if seed is None else seed
            return reference.rademacher_signs(n_cols, ids, n_probes, layers, key, dtype)

        return formula

    @staticmethod
    def forward(ids, layers, seed, options):
        kernels, n_cols, n_probes, number, dtype = options
        kernels = ready(kernels, ids, layers, seed)
        return kernels.rademacher(n_cols, ids, n_probes, layers, number if seed is None else seed, dtype)

    @classmethod
    def setup_context(cls, ctx, inputs, output):
        super().setup_context(ctx, inputs, output)
        ctx.mark_non_differentiable(output)


def _signs(
    n_cols: int, example_ids: Tensor, n_probes: int, layers: Tensor, seed: Seed, dtype: torch.dtype
) -> Tensor:
    """±1 as [layers, n_probes, examples, n_cols], from the backend that serves the ids' device."""
    key, number = _split(checked_seed(seed, example_ids.device))
    kernels = kernels_for(example_ids.new_empty(0, dtype=dtype), example_ids)
    options = kernels, n_cols, n_probes, number, dtype
    if kernels is None:
        return _Signs.formula(options)(example_ids, layers, key)
    return _Signs.apply(example_ids, layers, key, options)


def rademacher(
    shape: tuple[int, ...] | torch.Size,
    seed: int | Tensor,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Independent ±1 with equal odds, defined by the seed alone (Salmon et al. 2011, Philox-4x32-10).

    Args:
        shape: up to four sizes, read from the right as (layer, probe, example, column); [N, B, D] gives the
            ν of `preconditioned_probes` for layer 0 and examples 0 to B-1.
        seed: 0 to 2^64 - 1, or an int64 tensor of one element that holds the 64 bits.
        device: where to make them; default: where the seed is, the CPU for an integer.
        dtype: float64, float32, bfloat16 or float16.

    Returns:
        ±1 in `dtype`, the same on every backend.

    Raises:
        ValueError: more than four sizes, none, a negative one, or a seed outside its range or on another
            device.
        TypeError: the seed or a size is no integer, or dtype is another one.
    """
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    if not 1 <= len(shape) <= 4 or any(integer("rademacher", "a size", size) < 0 for size in shape):
        raise ValueError(f"rademacher: shape must have 1 to 4 sizes of 0 or more, got {shape}")
    if dtype not in KERNEL_DTYPES:
        raise TypeError(f"rademacher: dtype must be float64, float32, bfloat16 or float16, got {dtype}")
    layers, probes, examples, columns = (1,) * (4 - len(shape)) + shape
    if device is None:
        device = seed.device if isinstance(seed, Tensor) else "cpu"
    ids = torch.arange(examples, device=device)
    signs = _signs(columns, ids, probes, torch.arange(layers, device=ids.device), seed, dtype)
    return signs.reshape(shape)


def probe_signs(
    z: Tensor, seed: Seed, n_probes: int, example_ids: Tensor | None = None, layer: int = 0
) -> Tensor:
    """ν [n_probes, *z.shape] for the rows of z [..., D], in z's type."""
    ids = checked_ids("probe_signs", z.shape[:-1], example_ids, z.device)
    layers = torch.full((1,), _checked_layer("probe_signs", layer), device=z.device)
    n_probes = _checked_count("probe_signs", n_probes)
    return _signs(z.shape[-1], ids, n_probes, layers, seed, z.dtype).reshape(n_probes, *z.shape)


def _checked_count(name: str, n_probes: int) -> int:
    if integer(name, "n_probes", n_probes) < 1:
        raise ValueError(f"{name}: n_probes must be at least 1, got {n_probes}")
    return int(n_probes)


def _checked_layer(name: str, layer: int) -> int:
    """The layer's number as it stands in the counter."""
    return _int64(integer(name, "layer", layer))


class _PreconditionedProbes(Composed):
    """(z [rows, D], w, ids, seed or None, index or None) -> P ν [n_probes, rows, D]."""

    @staticmethod
    def formula(options):
        _, eps, offset, number, n_probes, layer = options

        def formula(z, weight, ids, seed, index):
            seed = number if seed is None else seed
            return formulas.preconditioned_probes(z, weight, eps, offset, seed, n_probes, ids, layer, index)

        return formula

    @staticmethod
    def forward(z, weight, ids, seed, index, options):
        kernels, eps, offset, number, n_probes, layer = options
        kernels = ready(kernels, z, weight, ids, seed, index)
        seed = number if seed is None else seed
        return kernels.preconditioned_probes(z, weight, eps, offset, seed, n_probes, ids, layer, index=index)

    @classmethod
    def backward(cls, ctx, dp):
        if dp is None or not first_order():
            return super().backward(ctx, dp)
        (z, weight, ids, seed, index), (kernels, eps, offset, number, _, layer) = (
            ctx.saved_tensors,
            ctx.options,
        )
        kernels = ready(kernels, z, weight, dp, ids, seed, index)
        dp, key = matching(kernels, dp, z), (number if seed is None else seed, ids, layer)
        dz, dw = kernels.preconditioned_probes_backward(z, weight, dp, eps, offset, *key, index=index)
        return dz, dw, None, None, None, None


class _ProbeDot(Composed):
    """(t [n_probes, rows, D], ids, seed or None) -> Σ_columns ν t [n_probes, rows]."""

    @staticmethod
    def formula(options):
        _, number, layer = options

        def formula(t, ids, seed):
            return formulas.probe_dot(t, number if seed is None else seed, ids, layer)

        return formula

    @staticmethod
    def forward(t, ids, seed, options):
        kernels, number, layer = options
        return ready(kernels, t, ids, seed).probe_dot(t, number if seed is None else seed, ids, layer)

    @classmethod
    def backward(cls, ctx, ddot):
        if ddot is None or not first_order():
            return super().backward(ctx, ddot)
        (t, ids, seed), (kernels, number, layer) = ctx.saved_tensors, ctx.options
        kernels = ready(kernels, ddot, ids, seed)
        seed = number if seed is None else seed
        return kernels.probe_scale(ddot, t.shape[-1], seed, ids, layer, t.dtype), None, None, None


def probe_dot(t: Tensor, seed: int | Tensor, example_ids: Tensor | None = None, layer: int = 0) -> Tensor:
    """Σ_columns ν_k t_k: each row's product with its own probe, made again from the seed, never stored.

    With t_k = J P ν_k it is Hutchinson's estimate (1990) of tr(J P) of probe k. Differentiable in t.

    Args:
        t: [n_probes, ..., D].
        seed: 0 to 2^64 - 1, or an int64 tensor on t's device that holds the 64 bits: of one element, or
            [...], one a row.
        example_ids: [...] integers, one a row, taken modulo 2^32; default 0, 1, 2, …
        layer: the layer's number in the counter.

    Returns:
        [n_probes, ...], float64 for a float64 t, else float32.

    Raises:
        ValueError: shapes or the seed don't fit.
        TypeError: a tensor has another type, or the seed, `n_probes` or the layer is no integer.
    """
    check_tensor("probe_dot", "t", t)
    if t.dim() < 2 or t.shape[0] == 0 or t.shape[-1] == 0:
        raise ValueError(f"probe_dot: t must be [n_probes, ..., D] with both >= 1, got {tuple(t.shape)}")
    ids = checked_ids("probe_dot", t.shape[1:-1], example_ids, t.device)
    key, number = _split(checked_seed(seed, t.device, t.shape[1:-1]))
    t = t.resolve_neg()  # PyTorch has no views of a negated dual number
    flat = t if t.dim() == 3 else t.reshape(t.shape[0], ids.numel(), t.shape[-1])
    kernels = kernels_for(t, ids)
    options = kernels, number, _checked_layer("probe_dot", layer)
    if kernels is None:
        dots = _ProbeDot.formula(options)(flat, ids, key)
    elif not plain_call():
        dots = _ProbeDot.apply(flat, ids, key, options)
    else:
        dots = (_ProbeDot.record if recorded(t) else _ProbeDot.forward)(flat, ids, key, options)
    return dots if t.dim() == 3 else dots.reshape(t.shape[:-1])


def preconditioned_probes(
    z: Tensor,
    weight: Tensor | None,
    eps: float,
    seed: int | Tensor,
    n_probes: int,
    offset: float = 0.0,
    example_ids: Tensor | None = None,
    layer: int = 0,
    weight_index: Tensor | None = None,
) -> Tensor:
    """The probe directions P ν_k = (weight + offset) / σ(z) ⊙ ν_k (OFA, sharpness term).

    Differentiable in z and weight. The probes depend on (seed, layer, example id, probe index, column) only.

    Args:
        z: [..., D], one state a row.
        weight: [D], the norm's γ; None for ones. With a `weight_index`, [A, D].
        eps: inside σ(z) = sqrt(mean(z²) + eps).
        seed: 0 to 2^64 - 1, or an int64 tensor on z's device that holds the 64 bits: of one element, or
            [...], one a row.
        n_probes: how many, at least 1.
        offset: added to the weight (1.0 for Gemma).
        example_ids: [...] integers, one a row, taken modulo 2^32; default 0, 1, 2, …
        layer: the layer's number in the counter.
        weight_index: [...] int64, for a weight [A, D], as in `rms_norm`.

    Returns:
        [n_probes, *z.shape] in z's type.

    Raises:
        ValueError: shapes, `n_probes` or the seed don't fit.
        IndexError: an index is not from 0 to A - 1, as in `rms_norm`.
        TypeError: a tensor has another type, or the seed, `n_probes` or the layer is no integer.
    """
    name = "preconditioned_probes"
    weight, eps, offset, index = norm_arguments(name, z, weight, eps, offset, weight_index)
    n_probes, layer = _checked_count(name, n_probes), _checked_layer(name, layer)
    ids = checked_ids(name, z.shape[:-1], example_ids, z.device)
    key, number = _split(checked_seed(seed, z.device, z.shape[:-1]))
    z = z.resolve_neg()  # PyTorch has no views of a negated dual number
    flat = z if z.dim() == 2 else z.reshape(ids.numel(), z.shape[-1])
    kernels = kernels_for(z, weight, ids) if index is None else indexed_kernels(name, weight, index, z, ids)
    options = kernels, eps, offset, number, n_probes, layer
    if kernels is None:
        probes = _PreconditionedProbes.formula(options)(flat, weight, ids, key, index)
    elif not plain_call():
        probes = _PreconditionedProbes.apply(flat, weight, ids, key, index, options)
    else:
        make = _PreconditionedProbes.record if recorded(z, weight) else _PreconditionedProbes.forward
        probes = make(flat, weight, ids, key, index, options)
    return probes if z.dim() == 2 else probes.reshape(n_probes, *z.shape)
