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
from ofa_kernels.reference import Seed

_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_UINT64 = (1 << 64) - 1


def _int64(value: Seed) -> Seed:
    """The lower 64 bits of a Python integer as the signed number that an int64 tensor would hold."""
    return value if isinstance(value, Tensor) else ((value + (1 << 63)) & _UINT64) - (1 << 63)


def _xor_shifted(z: Seed, bits: int) -> Seed:
    return z ^ ((z >> bits) & (_UINT64 >> bits))  # int64's own shift copies the sign


def mix(seed: Seed, step: Seed) -> Seed:
    """The 64-bit probe seed of a training step: output number `step` of SplitMix64 (Steele et al. 2014).

    Args:
        seed: the run's; an integer of any size, or an int64 tensor.
        step: counted from 0; likewise. In a CUDA graph, a tensor that is filled before each replay.

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


def _check_seed(seed: Seed, device: torch.device) -> None:
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64:
            raise TypeError(f"a probe seed that is a tensor must be int64, got {seed.dtype}; use seed.long()")
        if seed.numel() != 1:
            raise ValueError(f"a probe seed that is a tensor must be one number, got {tuple(seed.shape)}")
        if seed.device != device:
            raise ValueError(
                f"the probe seed is on {seed.device} and the tensors on {device}; move one of them"
            )
    elif isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(
            f"a probe seed is an int or an int64 tensor of one element, got {seed!r} of type "
            f"{type(seed).__name__}"
        )
    elif not 0 <= seed <= _UINT64:
        raise ValueError(f"a probe seed is a 64-bit unsigned integer, got {seed}; use seed % 2**64")


def _split(seed: Seed) -> tuple[Tensor | None, int | None]:
    """The seed where a Function takes tensors, and where it takes options."""
    return (seed, None) if isinstance(seed, Tensor) else (None, seed)


class _Signs(Composed):
    """(ids, layers, seed or None) -> ±1 [layers, n_probes, examples, n_cols].

    A transform of torch.func wraps whatever is made within it, and only a Function is handed real memory.
    """

    n_tensors = 3

    @staticmethod
    def formula(options):
        _, n_cols, n_probes, number, dtype = options

        def formula(ids, layers, seed):
            key = number if seed is None else seed
            return reference.rademacher_signs(n_cols, ids, n_probes, layers, key, dtype)

        return formula

    @staticmethod
    def forward(ids, layers, seed, kernels, n_cols, n_probes, number, dtype):
        return kernels.rademacher(n_cols, ids, n_probes, layers, number if seed is None else seed, dtype)

    @classmethod
    def setup_context(cls, ctx, inputs, output):
        super().setup_context(ctx, inputs, output)
        ctx.mark_non_differentiable(output)


def _signs(
    n_cols: int, example_ids: Tensor, n_probes: int, layers: Tensor, seed: Seed, dtype: torch.dtype
) -> Tensor:
    """±1 as [layers, n_probes, examples, n_cols], from the backend that serves the ids' device."""
    _check_seed(seed, example_ids.device)
    seed, number = _split(seed)
    kernels = kernels_for(torch.empty(0, dtype=dtype, device=example_ids.device))
    options = kernels, n_cols, n_probes, number, dtype
    if kernels is None:
        return _Signs.formula(options)(example_ids, layers, seed)
    return _Signs.apply(example_ids, layers, seed, *options)


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
        ValueError: more than four sizes, none, or a seed outside its range or on another device.
        TypeError: the seed is no integer.
    """
    if not 1 <= len(shape) <= 4:
        raise ValueError(f"rademacher: shape must have 1 to 4 sizes, got {tuple(shape)}; reshape the result")
    layers, probes, examples, columns = (1,) * (4 - len(shape)) + tuple(shape)
    if device is None:
        device = seed.device if isinstance(seed, Tensor) else "cpu"
    ids = torch.arange(examples, device=device)
    signs = _signs(columns, ids, probes, torch.arange(layers, device=ids.device), seed, dtype)
    return signs.reshape(shape)


def _checked(
    name: str, rows: tuple[int, ...], n_probes: int, seed: Seed, example_ids: Tensor | None, device
) -> Tensor:
    """The ids of the examples as [rows] int64 on the device, with everything a probe depends on checked."""
    if n_probes < 1:
        raise ValueError(f"{name}: n_probes must be at least 1, got {n_probes}")
    _check_seed(seed, device)
    if example_ids is None:
        return torch.arange(math.prod(rows), device=device)
    if tuple(example_ids.shape) != tuple(rows):
        raise ValueError(
            f"{name}: example_ids must be one id a row, {tuple(rows)}, got {tuple(example_ids.shape)}"
        )
    return example_ids.to(device, torch.int64).reshape(-1)


def probe_signs(
    z: Tensor, seed: Seed, n_probes: int, example_ids: Tensor | None = None, layer: int = 0
) -> Tensor:
    """ν [n_probes, *z.shape] for the rows of z [..., D], in z's type."""
    ids = _checked("probe_signs", z.shape[:-1], n_probes, seed, example_ids, z.device)
    layers = torch.full((1,), layer, device=z.device)
    return _signs(z.shape[-1], ids, n_probes, layers, seed, z.dtype).reshape(n_probes, *z.shape)


def _probe_signs_like(t: Tensor, ids: Tensor, seed: Seed, layer: int, n_probes: int) -> Tensor:
    """ν [n_probes, rows, D] in float32 (float64 for a float64 t), composed."""
    layers = torch.full((1,), layer, device=ids.device)
    dtype = reference.accumulation_dtype(t)
    return reference.rademacher_signs(t.shape[-1], ids, n_probes, layers, seed, dtype)[0]


class _PreconditionedProbes(Composed):
    """(z [rows, D], w, ids, seed or None) -> P ν [n_probes, rows, D]."""

    n_tensors = 4

    @staticmethod
    def formula(options):
        _, eps, offset, number, n_probes, layer = options

        def formula(z, weight, ids, seed):
            signs = _probe_signs_like(z, ids, number if seed is None else seed, layer, n_probes)
            return (reference.preconditioner(z, weight, eps, offset) * signs).to(z.dtype)

        return formula

    @staticmethod
    def forward(z, weight, ids, seed, kernels, eps, offset, number, n_probes, layer):
        seed = number if seed is None else seed
        return kernels.preconditioned_probes(z, weight, eps, offset, seed, n_probes, ids, layer)

    @classmethod
    def backward(cls, ctx, dp):
        if dp is None or not first_order():
            return super().backward(ctx, dp)
        (z, weight, ids, seed), (kernels, eps, offset, number, _, layer) = ctx.saved_tensors, ctx.options
        seed = number if seed is None else seed
        dz, dw = kernels.preconditioned_probes_backward(z, weight, dp, eps, offset, seed, ids, layer)
        return dz, dw, *(None,) * 8


class _ProbeDot(Composed):
    """(t [n_probes, rows, D], ids, seed or None) -> Σ_columns ν t [n_probes, rows]."""

    n_tensors = 3

    @staticmethod
    def formula(options):
        _, number, layer = options

        def formula(t, ids, seed):
            signs = _probe_signs_like(t, ids, number if seed is None else seed, layer, t.shape[0])
            return (signs * t.to(signs.dtype)).sum(-1)

        return formula

    @staticmethod
    def forward(t, ids, seed, kernels, number, layer):
        return kernels.probe_dot(t, number if seed is None else seed, ids, layer)

    @classmethod
    def backward(cls, ctx, ddot):
        if ddot is None or not first_order():
            return super().backward(ctx, ddot)
        (t, ids, seed), (kernels, number, layer) = ctx.saved_tensors, ctx.options
        seed = number if seed is None else seed
        return kernels.probe_scale(ddot, t.shape[-1], seed, ids, layer, t.dtype), *(None,) * 5


def probe_dot(t: Tensor, seed: int | Tensor, example_ids: Tensor | None = None, layer: int = 0) -> Tensor:
    """Σ_columns ν_k t_k: each row's product with its own probe, made again from the seed, never stored.

    With t_k = J P ν_k it is Hutchinson's estimate (1990) of tr(J P) of probe k. Differentiable in t.

    Args:
        t: [n_probes, ..., D].
        seed: 0 to 2^64 - 1, or an int64 tensor of one element on t's device that holds the 64 bits.
        example_ids: [...] integers, one a row, taken modulo 2^32; default 0, 1, 2, …
        layer: the layer's number in the counter.

    Returns:
        [n_probes, ...], float64 for a float64 t, else float32.

    Raises:
        ValueError: shapes or the seed don't fit.
        TypeError: the seed is no integer.
    """
    if t.dim() < 2:
        raise ValueError(f"probe_dot: t must be [n_probes, ..., D], got {tuple(t.shape)}")
    rows = t.shape[1:-1]
    ids = _checked("probe_dot", rows, t.shape[0], seed, example_ids, t.device)
    flat, kernels = t.reshape(t.shape[0], -1, t.shape[-1]), kernels_for(t)
    seed, number = _split(seed)
    options = kernels, number, layer
    if kernels is None:
        dots = _ProbeDot.formula(options)(flat, ids, seed)
    else:
        dots = _ProbeDot.apply(flat, ids, seed, *options)
    return dots.reshape(t.shape[:-1])


def preconditioned_probes(
    z: Tensor,
    weight: Tensor,
    eps: float,
    seed: int | Tensor,
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
        seed: 0 to 2^64 - 1, or an int64 tensor of one element on z's device that holds the 64 bits.
        n_probes: how many, at least 1.
        offset: added to the weight (1.0 for Gemma).
        example_ids: [...] integers, one a row, taken modulo 2^32; default 0, 1, 2, …
        layer: the layer's number in the counter.

    Returns:
        [n_probes, *z.shape] in z's type.

    Raises:
        ValueError: shapes, `n_probes` or the seed don't fit.
        TypeError: the seed is no integer.
    """
    if weight.shape != z.shape[-1:]:
        raise ValueError(f"weight must be [D] for z [..., D], got {tuple(weight.shape)} for {tuple(z.shape)}")
    ids = _checked("preconditioned_probes", z.shape[:-1], n_probes, seed, example_ids, z.device)
    flat, kernels = z.reshape(-1, z.shape[-1]), kernels_for(z, weight)
    seed, number = _split(seed)
    options = kernels, eps, offset, number, n_probes, layer
    if kernels is None:
        probes = _PreconditionedProbes.formula(options)(flat, weight, ids, seed)
    else:
        probes = _PreconditionedProbes.apply(flat, weight, ids, seed, *options)
    return probes.reshape(n_probes, *z.shape)
