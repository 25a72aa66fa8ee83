"""The mathematics in plain PyTorch: the truth that every backend is tested against.

Notation: r = (mean(x²) + eps)^(-1/2), x̂ = r x, w the weight plus offset, g = w dy, c = mean(g x̂).
float64 inputs are computed in float64, all others in float32. Every function is an ordinary
differentiable composition, so derivatives of any order are right.
"""

from collections.abc import Callable

import torch
from torch import Tensor

PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
PHILOX_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
PHILOX_ROUNDS = 10
WORD = 0xFFFFFFFF
WORDS_PER_CALL = 4
SIGNS_PER_CALL = 32 * WORDS_PER_CALL


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """The type that x is computed in: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _normalise(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x̂ and r [..., 1] in the accumulation type."""
    x = x.to(accumulation_dtype(x))
    r = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    return x * r, r


def _mean(t: Tensor) -> Tensor:
    return t.mean(-1, keepdim=True)


def _sum_rows(t: Tensor) -> Tensor:
    return t.sum(tuple(range(t.dim() - 1))) if t.dim() > 1 else t


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0, rounding: str = "hf") -> Tensor:
    """y = w x̂ (method: Zhang & Sennrich 2019); `hf` rounds x̂ to x's type first, as LlamaRMSNorm does."""
    x_hat, _ = _normalise(x, eps)
    if rounding == "hf":
        x_hat = x_hat.to(x.dtype)
    else:
        weight = weight.to(x_hat.dtype)
    w = weight + offset if offset else weight
    return (w * x_hat).to(x.dtype)


def rms_norm_backward(
    x: Tensor, weight: Tensor, dy: Tensor, eps: float, offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    """dx = r (g - x̂ c) and dw = Σ_rows dy x̂."""
    x_hat, r = _normalise(x, eps)
    dy = dy.to(x_hat.dtype)
    g = (weight.to(x_hat.dtype) + offset) * dy
    dx = r * (g - x_hat * _mean(g * x_hat))
    return dx.to(x.dtype), _sum_rows(dy * x_hat).to(weight.dtype)


def rms_norm_jvp(
    x: Tensor, weight: Tensor, x_dot: Tensor, weight_dot: Tensor, eps: float, offset: float = 0.0
) -> Tensor:
    """ẏ = w x̂' + ẇ x̂ with x̂' = r (ẋ - x̂ mean(x̂ ẋ))."""
    x_hat, r = _normalise(x, eps)
    x_dot = x_dot.to(x_hat.dtype)
    x_hat_dot = r * (x_dot - x_hat * _mean(x_hat * x_dot))
    y_dot = (weight.to(x_hat.dtype) + offset) * x_hat_dot + weight_dot.to(x_hat.dtype) * x_hat
    return y_dot.to(x.dtype)


def rms_norm_backward_tangent(
    x: Tensor,
    weight: Tensor,
    dy: Tensor,
    x_dot: Tensor,
    weight_dot: Tensor,
    dy_dot: Tensor,
    eps: float,
    offset: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Tangent of `rms_norm_backward`; with dẏ = 0 also the backward of the JVP in (x, w)."""
    x_hat, r = _normalise(x, eps)
    acc = x_hat.dtype
    dy, x_dot, weight_dot, dy_dot = (t.to(acc) for t in (dy, x_dot, weight_dot, dy_dot))
    w = weight.to(acc) + offset
    m = _mean(x_hat * x_dot)
    x_hat_dot = r * (x_dot - x_hat * m)
    r_dot = -(r**2) * m
    g = w * dy
    c = _mean(g * x_hat)
    g_dot = w * dy_dot + weight_dot * dy
    c_dot = _mean(g_dot * x_hat + g * x_hat_dot)
    dx_dot = r_dot * (g - x_hat * c) + r * (g_dot - x_hat_dot * c - x_hat * c_dot)
    dw_dot = _sum_rows(dy_dot * x_hat + dy * x_hat_dot)
    return dx_dot.to(x.dtype), dw_dot.to(weight.dtype)


def rms_norm_curvature_trace(
    x: Tensor, weight: Tensor, dy: Tensor, eps: float, offset: float = 0.0
) -> Tensor:
    """Trace over x of the local curvature ∇²_x ⟨dy, y⟩, per row: -r² c (N + 2 - 3 mean(x̂²))."""
    x_hat, r = _normalise(x, eps)
    c = _mean((weight.to(x_hat.dtype) + offset) * dy.to(x_hat.dtype) * x_hat)
    return (-(r**2) * c * (x.shape[-1] + 2 - 3 * _mean(x_hat**2))).squeeze(-1)


def preconditioner(z: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """P = γ / σ(z) with σ = sqrt(mean(z²) + eps), the norm read as a preconditioner (OFA, section 1)."""
    _, r = _normalise(z, eps)
    return (weight.to(r.dtype) + offset) * r


def jacobian_trace(fn: Callable[[Tensor], Tensor], z: Tensor, diagonal: Tensor) -> Tensor:
    """tr(J_fn(z) diag(diagonal)) per row of z [rows, D], from the full Jacobian: exact and slow."""
    jacobian = torch.func.jacrev(fn)(z)  # [rows, D, rows, D]
    own = torch.einsum("rirj->rij", jacobian)
    return (own.diagonal(dim1=-2, dim2=-1) * diagonal).sum(-1)


def step_ratio(states: Tensor, per_step: bool = False) -> Tensor | tuple[Tensor, Tensor]:
    """How fast the states of successive layers converge (OFA, step-ratio term J).

    J = mean over B of Σ_{t=1}^{T-1} ‖Z_t - Z_{t+1}‖ / ‖Z_t - Z_{t-1}‖.

    Args:
        states: [T+1, B, D], Z_0 (the embedding) to Z_T (the last layer's output before the final norm).
        per_step: also return the single ratios.

    Returns:
        J, a scalar in the accumulation type; with `per_step`, (J, ratios [T-1, B]).

    Raises:
        ValueError: for another shape, or where two successive states are equal (a zero denominator).
    """
    if states.dim() != 3 or states.shape[0] < 2 or states.shape[1] == 0:
        raise ValueError(f"step_ratio: states must be [T+1, B, D] with T, B >= 1, got {tuple(states.shape)}")
    states = states.to(accumulation_dtype(states))
    lengths = torch.linalg.vector_norm(states.diff(dim=0), dim=-1)  # [T, B]
    if not lengths[:-1].all():
        step, row = (lengths[:-1] == 0).nonzero()[0].tolist()
        raise ValueError(
            f"step_ratio: Z_{step + 1} equals Z_{step} in example {row}, so the ratio at t={step + 1} "
            "divides by zero; a layer that changes nothing has no step ratio"
        )
    ratios = lengths[1:] / lengths[:-1]
    value = ratios.sum(0).mean()
    return (value, ratios) if per_step else value


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: int) -> tuple[Tensor, ...]:
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
    n_cols: int, example_ids: Tensor, n_probes: int, layers: Tensor, seed: int, dtype: torch.dtype
) -> Tensor:
    """±1 as [layers, n_probes, examples, n_cols]; a set bit c mod 32 of word (c // 32) mod 4 means -1."""
    device = example_ids.device
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
