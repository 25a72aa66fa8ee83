"""The mathematics in plain PyTorch: the truth that every backend is tested against.

Notation: r = (mean(x²) + eps)^(-1/2), x̂ = r x, w the weight plus offset, g = w dy, c = mean(g x̂);
v, u and h are the tangents ẋ, ẇ and dẏ in the accumulation type, 0 where they are absent.
float64 inputs are computed in float64, all others in float32. Every function is an ordinary
differentiable composition, so derivatives of any order are right.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ofa_kernels.dtypes import accumulation_dtype

Seed = int | Tensor  # 64 bits: an int from 0, or one int64 element, whose sign is the highest of them

PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
PHILOX_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
PHILOX_ROUNDS = 10
WORD = 0xFFFFFFFF
WORDS_PER_CALL = 4
SIGNS_PER_CALL = 32 * WORDS_PER_CALL


def normalise(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x̂ and r [..., 1] in the accumulation type."""
    x = x.to(accumulation_dtype(x))
    r = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    return x * r, r


def mean(t: Tensor) -> Tensor:
    """The mean over the last dimension, which stays as one of size 1."""
    return t.mean(-1, keepdim=True)


def sum_rows(t: Tensor, row_dims: int | None = None) -> Tensor:
    """Sum over the `row_dims` dimensions before the last; default: all of them."""
    dims = tuple(range(-1 - (t.dim() - 1 if row_dims is None else row_dims), -1))
    return t.sum(dims) if dims else t


def _to_acc(t: Tensor | None, like: Tensor) -> Tensor | float:
    """t in the accumulation type; an absent tangent is zero."""
    return 0.0 if t is None else t.to(like.dtype)


def beside_rows(weight_dot: Tensor | None, x_hat: Tensor, index: Tensor | None = None) -> Tensor | float:
    """Tangents of a weight, [*K, N], as [*K, 1, ..., N], so that they broadcast along the rows of x_hat.

    With an index: of weights, [*K, A, N], each row's as [*K, *x_hat.shape].
    """
    if weight_dot is None:
        return 0.0
    if index is not None:
        return weight_of_rows(weight_dot, index, x_hat).to(x_hat.dtype)
    return weight_dot.to(x_hat.dtype)[(..., *(None,) * (x_hat.dim() - 1), slice(None))]


def _inside(index: Tensor, n_weights: int) -> Tensor:
    return (index >= 0) & (index < n_weights)


def weight_of_rows(weight: Tensor, index: Tensor | None, x: Tensor) -> Tensor:
    """The weight of each row of x, [*K, *x.shape], of weights [*K, A, N]; NaN where an index is out of range.

    Without an index the weight itself, which all rows have.
    """
    if index is None:
        return weight
    rows, n_weights = index.reshape(-1), weight.shape[-2]
    found = weight[..., rows.clamp(0, n_weights - 1), :]
    found = torch.where(_inside(rows, n_weights)[:, None], found, float("nan"))
    return found.reshape(weight.shape[:-2] + x.shape)


def _weight_sums(t: Tensor, x: Tensor, weight: Tensor, index: Tensor | None) -> Tensor:
    """[*K, *weight.shape]: the sum over x's rows of t [*K, *x.shape], for each weight over its own rows.

    A row whose index is out of range is left out.
    """
    if index is None:
        return sum_rows(t, x.dim() - 1).to(weight.dtype)
    rows, (n_weights, n_cols) = index.reshape(-1), weight.shape
    t = t.reshape(*t.shape[: t.dim() - x.dim()], -1, n_cols)
    t = torch.where(_inside(rows, n_weights)[:, None], t, 0).movedim(-2, 0)  # [rows, *K, N]
    # on a GPU too, this adds up in a fixed order, which index_add does not
    sums = t.new_zeros(n_weights, *t.shape[1:]).index_put((rows.clamp(0, n_weights - 1),), t, accumulate=True)
    return sums.movedim(0, -2).to(weight.dtype)


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    offset: float = 0.0,
    rounding: str = "hf",
    index: Tensor | None = None,
) -> Tensor:
    """y = w x̂ (Zhang & Sennrich 2019).

    `hf` rounds where transformers does: LlamaRMSNorm (offset 0) rounds x̂ to x's type before the product,
    GemmaRMSNorm (any other) once, at the end, as `fp32` always does.
    """
    x_hat, _ = normalise(x, eps)
    weight = weight_of_rows(weight, index, x)
    if rounding == "hf" and offset == 0:
        return (weight * x_hat.to(x.dtype)).to(x.dtype)
    return ((weight.to(x_hat.dtype) + offset) * x_hat).to(x.dtype)


def add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    eps: float,
    offset: float = 0.0,
    rounding: str = "hf",
    index: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(norm of s, s) with s = x + residual in x's type."""
    s = x + residual
    return rms_norm(s, weight, eps, offset, rounding, index), s


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """y = w x̂ + b, x̂ of x - mean(x) (Ba, Kiros & Hinton 2016); rounded once, at the end."""
    centred = x.to(accumulation_dtype(x))
    centred = centred - mean(centred)
    x_hat, _ = normalise(centred, eps)
    return (weight.to(x_hat.dtype) * x_hat + _to_acc(bias, x_hat)).to(x.dtype)


def rms_norm_backward(
    x: Tensor, weight: Tensor, dy: Tensor, eps: float, offset: float = 0.0, index: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """dx = r (g - x̂ c) and dw = Σ_rows dy x̂."""
    x_hat, r = normalise(x, eps)
    dy = dy.to(x_hat.dtype)
    g = (weight_of_rows(weight, index, x).to(x_hat.dtype) + offset) * dy
    dx = r * (g - x_hat * mean(g * x_hat))
    return dx.to(x.dtype), _weight_sums(dy * x_hat, x, weight, index)


def rms_norm_jvp(
    x: Tensor,
    weight: Tensor,
    x_dot: Tensor | None,
    weight_dot: Tensor | None,
    eps: float,
    offset: float = 0.0,
    index: Tensor | None = None,
) -> Tensor:
    """ẏ = w x̂' + ẇ x̂ with x̂' = r (ẋ - x̂ mean(x̂ ẋ)), [*K, *x.shape].

    K tangents share one primal: ẋ is [*K, *x.shape], ẇ [*K, *weight.shape]; one of them may be absent.
    """
    x_hat, r = normalise(x, eps)
    v, u = _to_acc(x_dot, x_hat), beside_rows(weight_dot, x_hat, index)
    x_hat_dot = r * (v - x_hat * mean(x_hat * v))
    w = weight_of_rows(weight, index, x).to(x_hat.dtype) + offset
    return (w * x_hat_dot + u * x_hat).to(x.dtype)


def rms_norm_jvp_backward(
    x: Tensor,
    weight: Tensor,
    dy: Tensor,
    x_dot: Tensor | None,
    weight_dot: Tensor | None,
    eps: float,
    offset: float = 0.0,
    index: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of ⟨dy, `rms_norm_jvp`⟩ in x, w, ẋ, ẇ; dy is [*K, *x.shape], dx and dw are summed over K."""
    dx, dw = rms_norm_backward_tangent(x, weight, dy, x_dot, weight_dot, None, eps, offset, index)
    dims = tuple(range(dy.dim() - x.dim()))
    if dims:
        dx, dw = (t.to(accumulation_dtype(x)).sum(dims).to(t.dtype) for t in (dx, dw))
    x_hat, r = normalise(x, eps)
    dy = dy.to(x_hat.dtype)
    g = (weight_of_rows(weight, index, x).to(x_hat.dtype) + offset) * dy
    dx_dot = r * (g - x_hat * mean(g * x_hat))
    return dx, dw, dx_dot.to(x.dtype), _weight_sums(dy * x_hat, x, weight, index)


def rms_norm_backward_tangent(
    x: Tensor,
    weight: Tensor,
    dy: Tensor,
    x_dot: Tensor | None,
    weight_dot: Tensor | None,
    dy_dot: Tensor | None,
    eps: float,
    offset: float = 0.0,
    index: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Tangent of `rms_norm_backward`; with dẏ = 0 also the backward of the JVP in (x, w).

    K tangents share one primal: ẋ and dẏ are [*K, *x.shape], ẇ [*K, *weight.shape], each may be absent; the
    results are [*K, *x.shape] and [*K, *weight.shape].
    """
    x_hat, r = normalise(x, eps)
    dy, v, h = dy.to(x_hat.dtype), _to_acc(x_dot, x_hat), _to_acc(dy_dot, x_hat)
    u = beside_rows(weight_dot, x_hat, index)
    w = weight_of_rows(weight, index, x).to(x_hat.dtype) + offset
    m = mean(x_hat * v)
    x_hat_dot = r * (v - x_hat * m)
    r_dot = -(r**2) * m
    g = w * dy
    c = mean(g * x_hat)
    g_dot = w * h + u * dy
    c_dot = mean(g_dot * x_hat + g * x_hat_dot)
    dx_dot = r_dot * (g - x_hat * c) + r * (g_dot - x_hat_dot * c - x_hat * c_dot)
    return dx_dot.to(x.dtype), _weight_sums(h * x_hat + dy * x_hat_dot, x, weight, index)


def rms_norm_curvature_trace(
    x: Tensor, weight: Tensor, dy: Tensor, eps: float, offset: float = 0.0
) -> Tensor:
    """Trace over x of the local curvature ∇²_x ⟨dy, y⟩, per row: -r² c (N + 2 - 3 mean(x̂²))."""
    x_hat, r = normalise(x, eps)
    c = mean((weight.to(x_hat.dtype) + offset) * dy.to(x_hat.dtype) * x_hat)
    return (-(r**2) * c * (x.shape[-1] + 2 - 3 * mean(x_hat**2))).squeeze(-1)


def preconditioner(z: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """The diagonal of P = γ / σ(z), the RMSNorm of z read as a preconditioner (OFA, section 1).

    σ(z) = sqrt(mean(z²) + eps), one number a row, so that P z = `rms_norm(z)`. Composed in PyTorch, hence
    differentiable in z and the weight at every order.

    Args:
        z: [..., D], one state a row; float64, float32, bfloat16 or float16.
        weight: [D], the norm's γ, of any of these types, on z's device.
        eps: added to the mean square.
        offset: added to the weight (1.0 for Gemma).

    Returns:
        [..., D], float64 for a float64 z, else float32.

    Raises:
        RuntimeError: PyTorch's own, where the weight's size or device doesn't fit z.
    """
    _, r = normalise(z, eps)
    return (weight.to(r.dtype) + offset) * r


def preconditioned_probes_backward(
    z: Tensor,
    weight: Tensor,
    signs: Tensor,
    dp: Tensor,
    eps: float,
    offset: float = 0.0,
    index: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients in z [rows, D] and the weight of ⟨dp, P ν⟩ with ν = signs, dp [n_probes, rows, D]."""
    z_hat, r = normalise(z, eps)
    q = (signs.to(r.dtype) * dp.to(r.dtype)).sum(0)
    w = weight_of_rows(weight, index, z).to(r.dtype) + offset
    return (-(r**2) * z_hat * mean(w * q)).to(z.dtype), _weight_sums(q * r, z, weight, index)


def jacobian_trace(fn: Callable[[Tensor], Tensor], z: Tensor, diagonal: Tensor) -> Tensor:
    """tr(J_fn(z) diag(diagonal)) per row of z [rows, D], from the full Jacobian: exact and slow."""
    jacobian = torch.func.jacrev(fn)(z)  # [rows, D, rows, D]
    own = torch.einsum("rirj->rij", jacobian)
    return (own.diagonal(dim1=-2, dim2=-1) * diagonal).sum(-1)


def step_lengths(states: Tensor) -> Tensor:
    """‖Z_t - Z_{t-1}‖ as [T, B] in the accumulation type, for states [T+1, B, D]."""
    return torch.linalg.vector_norm(states.to(accumulation_dtype(states)).diff(dim=0), dim=-1)


def step_lengths_backward(states: Tensor, lengths: Tensor, dlengths: Tensor) -> Tensor:
    """Gradient of ⟨dlengths, `step_lengths`⟩ in the states; zero where a length is."""
    steps = states.to(lengths.dtype).diff(dim=0)
    scaled = steps * torch.where(lengths > 0, dlengths / lengths, 0)[..., None]
    none = torch.zeros_like(scaled[:1])
    return (torch.cat([none, scaled]) - torch.cat([scaled, none])).to(states.dtype)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: Seed) -> tuple[Tensor, ...]:
    """Philox-4x32-10 (Salmon et al. 2011): four int64 tensors of 32-bit words, key = the 64-bit seed."""
    c0, c1, c2, c3 = counter
    k0, k1 = seed & WORD, (seed >> 32) & WORD
    for _ in range(PHILOX_ROUNDS):
        # int64 products wrap modulo 2^64, so the mask recovers both halves of the unsigned product
        product0, product1 = c0 * PHILOX_MULTIPLIERS[0], c2 * PHILOX_MULTIPLIERS[1]
        c0, c2 = ((product1 >> 32) & WORD) ^ c1 ^ k0, ((product0 >> 32) & WORD) ^ c3 ^ k1
        c1, c3 = product1 & WORD, product0 & WORD
        k0, k1 = (k0 + PHILOX_KEY_STEPS[0]) & WORD, (k1 + PHILOX_KEY_STEPS[1]) & WORD
    return c0, c1, c2, c3


def rademacher_signs(
    n_cols: int, example_ids: Tensor, n_probes: int, layers: Tensor, seed: Seed, dtype: torch.dtype
) -> Tensor:
    """±1 as [layers, n_probes, examples, n_cols]; a set bit c mod 32 of word (c // 32) mod 4 means -1.

    A seed that is a tensor holds one for all examples, or one for each.
    """
    device = example_ids.device
    if isinstance(seed, Tensor):
        seed = seed.reshape(-1, 1)  # beside the blocks of columns
    blocks = torch.arange(-(-n_cols // SIGNS_PER_CALL), device=device)
    probes = torch.arange(n_probes, device=device)
    counter = torch.broadcast_tensors(
        blocks,
        (example_ids & WORD)[:, None],
        probes[:, None, None],
        (layers & WORD)[:, None, None, None],
    )
    words = torch.stack(philox(counter, seed), dim=-1)  # [L, N, B, blocks, 4]
    bits = (words[..., None] >> torch.arange(32, device=device)) & 1
    return (1 - 2 * bits.flatten(-3)[..., :n_cols]).to(dtype)
