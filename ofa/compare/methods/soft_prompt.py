"""Prompt tuning: a virtual token, whose embedding is learned, comes before everything else."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import cast

import torch
from peft import PromptEmbedding, PromptTuningConfig
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ofa.compare.methods.base import Fitted, Setting
from ofa.compare.methods.peft_training import TrainingOptions, frozen, seeded, train_on_shots

OPTIONS = TrainingOptions(lr=0.1, weight_decay=1e-3, epochs=50, batch_size=4)


class _Tokenizer:
    """Begins every prompt with the virtual token, as others do with their special tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, virtual_id: int):
        self.tokenizer, self.virtual_id = tokenizer, virtual_id

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        ids = self.tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
        return {"input_ids": [self.virtual_id, *ids] if add_special_tokens else ids}

    def decode(self, ids: list[int]) -> str:
        return cast(str, self.tokenizer.decode(ids))


class _Embedding(nn.Module):
    """Embeddings of the words, and under the next id after them the virtual token, [1, D]."""

    def __init__(self, words: nn.Embedding, virtual: nn.Parameter):
        super().__init__()
        self.words, self.virtual = words, virtual

    def forward(self, ids: Tensor) -> Tensor:
        is_virtual = ids == self.words.num_embeddings
        embedded = self.words(ids.masked_fill(is_virtual, 0))
        return torch.where(is_virtual[..., None], self.virtual.to(embedded.dtype), embedded)


@dataclass(frozen=True)
class SoftPrompt:
    """One virtual token (Lester et al. 2021), initialised as PEFT does, held in float32.

    To the rest of the code it is one more token of the vocabulary that stands first, before the tokenizer's
    special tokens and the demonstrations: padding, positions, the context's limit and keys and values that
    are computed once need no case of their own.
    """

    name: str = "soft-prompt"
    options: TrainingOptions = OPTIONS

    @contextmanager
    def fit(self, setting: Setting) -> Iterator[Fitted]:
        """Train the virtual token; on leaving it is gone."""
        stack, name = setting.decoder.stack, setting.decoder.family.embedding
        words = getattr(stack, name)
        config = PromptTuningConfig(
            num_virtual_tokens=1, token_dim=words.embedding_dim, num_transformer_submodules=1
        )
        with seeded(setting.seed):
            prompt = PromptEmbedding(config, words).to(words.weight.device)
        virtual = cast(nn.Parameter, prompt.embedding.weight)
        extended = replace(setting, tokenizer=_Tokenizer(setting.tokenizer, words.num_embeddings))
        with frozen(setting.model):
            setattr(stack, name, _Embedding(words, virtual))
            try:
                n_steps = train_on_shots(extended, [virtual], self.options)
                yield Fitted(extended.scorer(), virtual.numel(), n_steps)
            finally:
                setattr(stack, name, words)
