"""What a model does around its layers: from token ids to Z_0, rotary embeddings, from Z_T to logits."""

from torch import Tensor
from transformers import PreTrainedModel

from ofa.decoder.families import family_of
from ofa.passes.attention import capped

Rotary = tuple[Tensor, Tensor] | None


def embed(lm: PreTrainedModel, input_ids: Tensor, positions: Tensor) -> Tensor:
    """What the first layer is given, [..., D]; Granite scales its embeddings, GPT-2 adds the positions'."""
    family = family_of(lm)
    decoder = family.decoder_of(lm)
    embedded = getattr(decoder, family.embedding)(input_ids)
    if family.positions is not None:
        embedded = embedded + getattr(decoder, family.positions)(positions)
    return embedded * getattr(lm.config, "embedding_multiplier", 1.0)


def rotary(lm: PreTrainedModel, embedded: Tensor, positions: Tensor) -> list[Rotary]:
    """Each layer's rotary embedding, a pair [B, T, ...] (cos and sin, for most); None where it has none."""
    family = family_of(lm)
    decoder, n_layers = family.decoder_of(lm), lm.config.num_hidden_layers
    if family.positions is not None:
        return [None] * n_layers
    if lm.config.model_type != "gemma3_text":
        return [decoder.rotary_emb(embedded, positions)] * n_layers
    types = lm.config.layer_types  # sliding layers turn faster than the others
    by_type = {name: decoder.rotary_emb(embedded, positions, name) for name in set(types)}
    return [by_type[name] for name in types]


def attention_cap(lm: PreTrainedModel) -> float | None:
    """What caps attention scores; Gemma 3 has the setting and makes no use of it."""
    return lm.config.attn_logit_softcapping if lm.config.model_type == "gemma2" else None


def project(lm: PreTrainedModel, normed: Tensor) -> Tensor:
    """Logits [..., V] of normed states; Granite scales them too, Gemma 2 caps them."""
    logits = lm.lm_head(normed) / getattr(lm.config, "logits_scaling", 1.0)
    return capped(logits, getattr(lm.config, "final_logit_softcapping", None))
