"""Causal attention of packed rows, and the tangents of the prediction tokens' own, written out.

Fused attention has no forward mode, and on a CPU its backward is slower than this for prompts of usual length
(bfloat16, 8 x 44 tokens: 5.2 ms a layer against 1.1). Everything is computed in float32 at least.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ofa_kernels.reference import accumulation_dtype

# beyond it the weights [B, heads, S, S] take more memory than the states do
WRITTEN_OUT_TOKENS = 128


@dataclass(frozen=True)
class Tangents:
    """Directions of the prediction tokens: q [N, B, H, head_dim], k and v [N, B, H_kv, head_dim]."""

    q: Tensor
    k: Tensor
    v: Tensor


def causal(q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
    """Attention of [B, S, H, head_dim] queries to [B, S, H_kv, head_dim], all left-aligned."""
    n_rows, n_tokens, n_heads, head_dim = q.shape
    n_kv = k.shape[2]
    if q.device.type != "cpu" or n_tokens > WRITTEN_OUT_TOKENS:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        out = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scaling, enable_gqa=n_heads != n_kv
        )
        return out.transpose(1, 2)
    dtype = accumulation_dtype(q)
    hidden = torch.ones(n_tokens, n_tokens, dtype=torch.bool).triu(1)
    bias = torch.zeros(n_tokens, n_tokens, dtype=dtype).masked_fill(hidden, float("-inf"))
    grouped = q.transpose(1, 2).to(dtype).reshape(n_rows * n_kv, -1, head_dim)  # [B H_kv, group S, head_dim]
    keys = k.permute(0, 2, 3, 1).to(dtype).flatten(0, 1)  # [B H_kv, head_dim, S]
    values = v.transpose(1, 2).to(dtype).flatten(0, 1)  # [B H_kv, S, head_dim]
    scores = torch.baddbmm(bias.repeat(n_heads // n_kv, 1), grouped, keys, alpha=scaling)
    out = scores.softmax(-1) @ values
    return out.view(n_rows, n_heads, n_tokens, head_dim).transpose(1, 2).to(q.dtype)


def one_query(
    q: Tensor,  # [B, H, head_dim]
    k: Tensor,  # [B, S, H_kv, head_dim]
    v: Tensor,  # [B, S, H_kv, head_dim]
    real: Tensor,  # [B, S] bool; the query's own key is the last real one
    scaling: float,
    dots: Tangents | None,
) -> tuple[Tensor, Tensor | None]:
    """Attention of the prediction tokens [B, H, head_dim], and its tangents [N, B, H, head_dim]."""
    dtype, n_rows, n_kv, head_dim = accumulation_dtype(q), q.shape[0], k.shape[2], q.shape[-1]
    grouped = q.to(dtype).view(n_rows, n_kv, -1, head_dim) * scaling  # [B, H_kv, group, head_dim]
    keys, values = k.permute(0, 2, 3, 1).to(dtype), v.transpose(1, 2).to(dtype)  # [B, H_kv, .., ..]
    scores = (grouped @ keys).masked_fill(~real[:, None, None], float("-inf"))
    p = scores.softmax(-1)  # [B, H_kv, group, S]
    out = (p @ values).reshape(q.shape).to(q.dtype)
    if dots is None:
        return out, None

    n_probes = len(dots.q)
    q_dot = dots.q.to(dtype).view(n_probes, n_rows, n_kv, -1, head_dim) * scaling
    k_dot, v_dot = (t.to(dtype).permute(1, 2, 0, 3) for t in (dots.k, dots.v))  # [B, H_kv, N, head_dim]
    own = (real.sum(-1) - 1)[:, None, None, None]
    scores_dot = q_dot.permute(1, 2, 0, 3, 4).flatten(2, 3) @ keys  # [B, H_kv, N group, S]
    own_dot = (k_dot @ grouped.transpose(-1, -2)).flatten(2, 3)[..., None]  # q · k̇, [B, H_kv, N group, 1]
    scores_dot = scores_dot.scatter_add(-1, own.expand_as(own_dot), own_dot)
    scores_dot = scores_dot.unflatten(2, (n_probes, -1))  # [B, H_kv, N, group, S]
    weighted = p[:, :, None] * scores_dot
    p_dot = weighted - p[:, :, None] * weighted.sum(-1, keepdim=True)
    p_own = p.gather(-1, own.expand(*p.shape[:-1], 1))  # [B, H_kv, group, 1]
    out_dot = (p_dot.flatten(2, 3) @ values).unflatten(2, (n_probes, -1))
    out_dot = out_dot + p_own[:, :, None] * v_dot[:, :, :, None]  # [B, H_kv, N, group, head_dim]
    return out, out_dot.permute(2, 0, 1, 3, 4).reshape(n_probes, *q.shape).to(q.dtype)
