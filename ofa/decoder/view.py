"""A causal language model as the rest of ofa sees it, whatever its family calls its parts."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ofa.decoder.families import FAMILIES, Family
from ofa.decoder.norms import Foreign, active_norm

# a pair [B, T, ...], cos and sin for most families; None where the model has no rotary embedding
Rotary = tuple[Tensor, Tensor] | None

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def capped(scores: Tensor, cap: float | None) -> Tensor:
    """cap · tanh(scores / cap), or the scores themselves without a cap (Gemma 2)."""
    return scores if cap is None else cap * (scores / cap).tanh()


@dataclass(frozen=True)
class Decoder:
    """A model's parts by what they do; made once for a call from outside, and handed down.

    Attributes:
        lm: the causal language model, without PEFT's wrapper.
        family: what the model calls its parts, and where it differs from Llama.
    """

    lm: PreTrainedModel
    family: Family

    @classmethod
    def of(cls, model: nn.Module) -> "Decoder":
        """The view of a model, or of the one inside PEFT's wrapper.

        Raises:
            ValueError: the family is not supported, the model has no language-model head, or PEFT puts
                virtual tokens before the prompt, which the prediction token's states would miss.
        """
        wrapped = cast(Foreign, model)
        if getattr(getattr(wrapped, "active_peft_config", None), "is_prompt_learning", False):
            raise ValueError(
                f"{wrapped.active_peft_config.peft_type.value} of PEFT can't be combined with norm tuning"
            )
        inner = wrapped.get_base_model() if hasattr(wrapped, "get_base_model") else wrapped
        model_type = getattr(getattr(inner, "config", None), "model_type", None)
        if model_type not in FAMILIES or not hasattr(inner, "lm_head"):
            what = f"{type(inner).__name__} (model type {model_type!r})"
            known = ", ".join(sorted(FAMILIES))
            raise ValueError(f"{what} is not supported; supported are causal language models of: {known}")
        decoder = cls(inner, FAMILIES[model_type])
        if decoder.family.positions is None and not hasattr(decoder.stack, "rotary_emb"):
            raise ValueError(
                f"{type(inner).__name__} turns its keys inside its attention in this version of "
                "transformers; use transformers 5.24 or later"
            )
        return decoder

    @property
    def config(self) -> PreTrainedConfig:
        """The configuration of transformers."""
        return self.lm.config

    @property
    def stack(self) -> Foreign:
        """What lies between token ids and the head."""
        return getattr(self.lm, self.family.decoder)

    @property
    def _head(self) -> Foreign:
        return self.lm.lm_head

    @property
    def layers(self) -> nn.ModuleList:
        """The blocks, Z_t to Z_{t+1} each."""
        return getattr(self.stack, self.family.layers)

    @property
    def device(self) -> torch.device:
        """Where the head lies, and so the logits."""
        return self._head.weight.device

    @property
    def max_tokens(self) -> int:
        """The length of the context."""
        return self.config.max_position_embeddings

    @property
    def final_norm(self) -> Foreign:
        """The norm behind the last block, which may be inside PEFT's wrapper."""
        return getattr(self.stack, self.family.final)

    @property
    def score_cap(self) -> float | None:
        """What caps attention scores, or None."""
        return self.config.attn_logit_softcapping if self.family.caps_scores else None

    def norms_of(self, layer: nn.Module) -> dict[str, Foreign]:
        """The norms of a block by their names, in the order of their use."""
        return {name: active_norm(getattr(layer, name)) for name in self.family.roles}

    def named_norms(self) -> Iterator[tuple[str, str, Foreign]]:
        """(path below the decoder, role, norm) of every norm whose γ is trained."""
        family = self.family
        for i, layer in enumerate(self.layers):
            for name, norm in self.norms_of(layer).items():
                yield f"{family.layers}.{i}.{name}", family.role(name), norm
        yield family.final, family.role(family.final), active_norm(self.final_norm)

    def trained_norms(self, depth: float, which: str = "all") -> Tensor:
        """[norms] bool, those meant by `OFAConfig.trained_depth` and `Ablation.trained_norms`."""
        family, n_layers = self.family, len(self.layers)
        first = n_layers - max(1, round(depth * n_layers))
        wanted = set(family.roles)
        if which != "all":
            wanted = {family.preconditioner if which == "p" else family.before_attention}
        of_layers = [i >= first and name in wanted for i in range(n_layers) for name in family.roles]
        return torch.tensor([*of_layers, which == "all"])

    def with_preconditioner(self, which: str) -> "Decoder":
        """The view in which P belongs to the norm that `Ablation.p_norm` means."""
        if which == "own":
            return self
        return replace(self, family=replace(self.family, preconditioner=self.family.before_attention))

    def preconditioner(self, layer: nn.Module, z: Tensor) -> Tensor:
        """P = γ / σ(z) [B, D] of a block at states z [B, D]."""
        return self.family.preconditioner_at(self.norms_of(layer)[self.family.preconditioner], z)

    def embed(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """What the first block is given, [..., D]; Granite scales it, GPT-2 embeds the positions too."""
        embedded = getattr(self.stack, self.family.embedding)(input_ids)
        if self.family.positions is not None:
            embedded = embedded + getattr(self.stack, self.family.positions)(positions)
        return embedded * getattr(self.config, "embedding_multiplier", 1.0)

    @property
    def rotary_kinds(self) -> list[str]:
        """Which of the rotary embeddings each block uses."""
        if self.family.rotary_by_layer_type:
            return self.config.layer_types
        return ["every layer"] * len(self.layers)

    def rotary(self, embedded: Tensor, positions: Tensor) -> dict[str, Rotary]:
        """The rotary embeddings at positions [B, T], by their kinds."""
        kinds = set(self.rotary_kinds)
        if self.family.positions is not None:
            return dict.fromkeys(kinds)
        if not self.family.rotary_by_layer_type:
            return dict.fromkeys(kinds, self.stack.rotary_emb(embedded, positions))
        return {kind: self.stack.rotary_emb(embedded, positions, kind) for kind in kinds}

    def logits(self, normed: Tensor) -> Tensor:
        """Logits [..., V] of normed states; Granite scales them too, Gemma 2 caps them."""
        logits = self._head(normed) / getattr(self.config, "logits_scaling", 1.0)
        return capped(logits, getattr(self.config, "final_logit_softcapping", None))

    def drops(self) -> bool:
        """Whether a forward pass would drop anything."""
        return self.lm.training and bool(
            getattr(self.config, "attention_dropout", 0)
            or any(isinstance(module, nn.Dropout) and module.p for module in self.lm.modules())
        )

    def check_attention(self, n_tokens: int) -> None:
        """Refuse what would not let every token see all tokens before it, and no others.

        Raises:
            ValueError: the prompt is longer than the model's sliding window, or attention looks ahead.
        """
        config = self.config
        if getattr(config, "use_bidirectional_attention", None):
            raise ValueError(
                "the model's attention looks ahead (use_bidirectional_attention); it must be causal"
            )
        window = getattr(config, "sliding_window", None)
        slides = "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"])
        if window is not None and slides and n_tokens > window:
            raise ValueError(
                f"a prompt of {n_tokens} tokens is longer than the model's sliding window of {window}; use "
                "shorter texts or fewer demonstrations"
            )


def without_autocast(
    function: Callable[Concatenate[nn.Module, Arguments], Result],
) -> Callable[Concatenate[nn.Module, Arguments], Result]:
    """A function of a model, run in the number type of the model also under autocast.

    Autocast casts what goes into linear layers and not what goes around them, and tangents and sums need one
    type.
    """

    @wraps(function)
    def run(model: nn.Module, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with torch.autocast(Decoder.of(model).device.type, enabled=False):
            return function(model, *args, **kwargs)

    return run
