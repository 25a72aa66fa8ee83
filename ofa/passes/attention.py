"""Causal attention of packed rows, and of the prediction tokens alone with its tangents, written out.

Fused attention has no forward mode, and on a CPU its backward is slower than this for prompts of usual length
(8 x 44 tokens: 5.2 ms a layer in bfloat16, this in float32 1.1). Everything is computed in float32 at least.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from ofa.decoder.view import capped
from ofa_kernels import accumulation_dtype

# for longer prompts the weights [B, heads, S, S] take more memory than the states do
WRITTEN_OUT_TOKENS = 128


@dataclass(frozen=True)
class KeyValues:
    """Keys and values of a layer, left-aligned, each [B, S, H_kv, head_dim]."""

    k: Tensor
    v: Tensor

    @cached_property
    def keys(self) -> Tensor:
        """[B H_kv, head_dim, S], made once for all that multiply by them."""
        return self.k.permute(0, 2, 3, 1).to(accumulation_dtype(self.k)).flatten(0, 1)

    @cached_property
    def values(self) -> Tensor:
        """[B H_kv, S, head_dim], made once for all that multiply by them."""
        return self.v.transpose(1, 2).to(accumulation_dtype(self.v)).flatten(0, 1)


@dataclass(frozen=True)
class Tangents:
    """Directions of the prediction tokens: q [N, B, H, head_dim], k and v [N, B, H_kv, head_dim]."""

    q: Tensor
    k: Tensor
    v: Tensor


def causal(q: Tensor, memory: KeyValues, scaling: float, cap: float | None = None) -> Tensor:
    """Attention of left-aligned queries [B, S, H, head_dim]; scores may be capped, cap · tanh(· / cap)."""
    n_rows, n_tokens, n_heads, head_dim = q.shape
    n_kv = memory.k.shape[2]
    if cap is None and (q.device.type != "cpu" or n_tokens > WRITTEN_OUT_TOKENS):
        q, k, v = (t.transpose(1, 2) for t in (q, memory.k, memory.v))
        out = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scaling, enable_gqa=n_heads != n_kv
        )
        return out.transpose(1, 2)
    dtype = accumulation_dtype(q)
    hidden = torch.ones(n_tokens, n_tokens, dtype=torch.bool, device=q.device).triu(1)
    grouped = q.transpose(1, 2).to(dtype).reshape(n_rows * n_kv, -1, head_dim)  # [B H_kv, group S, head_dim]
    if cap is None:
        bias = torch.zeros(n_tokens, n_tokens, dtype=dtype).masked_fill(hidden, float("-inf"))
        scores = torch.baddbmm(bias.repeat(n_heads // n_kv, 1), grouped, memory.keys, alpha=scaling)
    else:
        scores = capped(scaling * grouped @ memory.keys, cap)
        scores = scores.masked_fill(hidden.repeat(n_heads // n_kv, 1), float("-inf"))
    out = scores.softmax(-1) @ memory.values
    return out.view(n_rows, n_heads, n_tokens, head_dim).transpose(1, 2).to(q.dtype)


def one_query(
    q: Tensor,  # [B, H, head_dim]
    memory: KeyValues,
    real: Tensor,  # [B, S] bool; the query's own key is the last real one
    scaling: float,
    dots: Tangents | None,
    cap: float | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Attention of the prediction tokens [B, H, head_dim], and its tangents [N, B, H, head_dim]."""
    dtype, n_kv, head_dim = accumulation_dtype(q), memory.k.shape[2], q.shape[-1]
    grouped = scaling * q.to(dtype).reshape(len(q) * n_kv, -1, head_dim)  # [B H_kv, group, head_dim]
    hidden = ~real.repeat_interleave(n_kv, 0)[:, None]  # [B H_kv, 1, S]
    scores = capped(grouped @ memory.keys, cap)  # [B H_kv, group, S]
    p = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    out = (p @ memory.values).reshape(q.shape).to(q.dtype)
    if dots is None:
        return out, None

    n_probes, group = len(dots.q), grouped.shape[1]
    q_dot = scaling * dots.q.to(dtype).reshape(n_probes, -1, group, head_dim).transpose(0, 1)
    # [B H_kv, N, head_dim]
    k_dot, v_dot = (t.to(dtype).reshape(n_probes, -1, head_dim).transpose(0, 1) for t in (dots.k, dots.v))
    own = (real.sum(-1) - 1).repeat_interleave(n_kv)[:, None, None]  # [B H_kv, 1, 1]
    own_dot = (k_dot @ grouped.transpose(1, 2)).flatten(1)[..., None]  # q · k̇, [B H_kv, N group, 1]
    scores_dot = q_dot.flatten(1, 2) @ memory.keys  # [B H_kv, N group, S]
    scores_dot = scores_dot.scatter_add(-1, own.expand_as(own_dot), own_dot).unflatten(1, (n_probes, group))
    if cap is not None:
        scores_dot = (1 - (scores / cap) ** 2)[:, None] * scores_dot
    weighted = p[:, None] * scores_dot  # [B H_kv, N, group, S]
    p_dot = weighted - p[:, None] * weighted.sum(-1, keepdim=True)
    p_own = p.gather(-1, own.expand(-1, group, 1))  # [B H_kv, group, 1]
    out_dot = (p_dot.flatten(1, 2) @ memory.values).unflatten(1, (n_probes, group))
    out_dot = out_dot + p_own[:, None] * v_dot[:, :, None]  # [B H_kv, N, group, head_dim]
    return out, out_dot.transpose(0, 1).reshape(n_probes, *q.shape).to(q.dtype)
