"""Attention functions that transformers' own layers are run with, where PyTorch's fused one won't do."""

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from ofa.decoder.view import capped
from ofa_kernels import accumulation_dtype

ONE_QUERY = "ofa_one_query"
SOFT_CAPPED = "ofa_soft_capped"


def _attend(
    query: Tensor,  # [B, H, T, head_dim]
    key: Tensor,  # [B, H_kv, S, head_dim]
    value: Tensor,  # [B, H_kv, S, head_dim]
    visible: Tensor,  # [B or 1, 1, 1, T, S] bool
    scaling: float,
    softcap: float | None,
) -> Tensor:
    """[B, T, H, head_dim], in operations that have a forward mode which can be differentiated again."""
    n_rows, _, n_tokens, head_dim = query.shape
    grouped = query.reshape(n_rows, key.shape[1], -1, head_dim)  # [B, H_kv, group T, head_dim]
    scores = (grouped * scaling) @ key.transpose(-1, -2)  # [B, H_kv, group T, S]
    scores = scores.to(accumulation_dtype(scores)).unflatten(2, (-1, n_tokens))
    scores = capped(scores, softcap).masked_fill(~visible, float("-inf"))
    # PyTorch's forward-mode softmax has an exp in place
    weights = (scores - scores.amax(-1, keepdim=True).detach()).exp()
    weights = (weights / weights.sum(-1, keepdim=True)).to(value.dtype)
    return (weights.flatten(2, 3) @ value).reshape(query.shape).transpose(1, 2)


def one_query_attention(
    module: nn.Module,
    query: Tensor,  # [B, H, 1, head_dim]
    key: Tensor,  # [B, H_kv, S, head_dim]
    value: Tensor,  # [B, H_kv, S, head_dim]
    attention_mask: Tensor,  # [B, S] bool
    scaling: float,
    softcap: float | None = None,
    **_,
) -> tuple[Tensor, None]:
    """Attention of one query, written out: fused SDPA has no forward mode."""
    visible = attention_mask[:, None, None, None, :]
    return _attend(query, key, value, visible, scaling, softcap), None


def soft_capped_attention(
    module: nn.Module,
    query: Tensor,  # [B, H, T, head_dim]
    key: Tensor,  # [B, H_kv, S, head_dim]
    value: Tensor,  # [B, H_kv, S, head_dim]
    attention_mask: Tensor | None,  # [B or 1, 1, T, S] bool; None for causal
    scaling: float,
    softcap: float | None = None,
    **_,
) -> tuple[Tensor, None]:
    """Causal attention whose scores pass through softcap · tanh(· / softcap), which fused SDPA can't."""
    n_tokens = query.shape[2]
    if attention_mask is None:
        attention_mask = torch.ones(n_tokens, n_tokens, dtype=torch.bool, device=query.device).tril()
        attention_mask = attention_mask[None, None]
    return _attend(query, key, value, attention_mask[:, :, None], scaling, softcap), None


def _refuse_whole_model(*_, **__):
    raise RuntimeError("ofa's attention functions serve its own passes; a model can't be run with them")


for _name, _function in ((ONE_QUERY, one_query_attention), (SOFT_CAPPED, soft_capped_attention)):
    AttentionInterface.register(_name, _function)
    # a model that is configured with an attention function without a mask function ignores padding in silence
    AttentionMaskInterface.register(_name, _refuse_whole_model)
