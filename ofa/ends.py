"""The two ends of a model: from token ids to Z_0, and from the normed Z_T to logits."""

from torch import Tensor
from transformers import PreTrainedModel


def embed(lm: PreTrainedModel, input_ids: Tensor) -> Tensor:
    """What the first layer is given, [..., D]; Granite scales its embeddings."""
    return lm.model.embed_tokens(input_ids) * getattr(lm.config, "embedding_multiplier", 1.0)


def project(lm: PreTrainedModel, normed: Tensor) -> Tensor:
    """Logits [..., V] of normed states; Granite scales them too."""
    return lm.lm_head(normed) / getattr(lm.config, "logits_scaling", 1.0)
