"""The model families: where each keeps its norms and layers, by role and not by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ofa.decoder.norms import GemmaRMSNorm, LayerNorm, Olmo2RMSNorm, RMSNorm, RMSNormFunction, epsilon
from ofa_kernels.reference import preconditioner

LLAMA = {"input_layernorm": "before attention", "post_attention_layernorm": "before the MLP"}
GEMMA = {
    "input_layernorm": "before attention",
    "post_attention_layernorm": "after attention",
    "pre_feedforward_layernorm": "before the MLP",
    "post_feedforward_layernorm": "after the MLP",
}
OLMO2 = {"post_attention_layernorm": "after attention", "post_feedforward_layernorm": "after the MLP"}
GPT2 = {"ln_1": "before attention", "ln_2": "before the MLP"}
GPTJ = {"ln_1": "before attention and the MLP"}


@dataclass(frozen=True)
class Family:
    """What a model family calls its parts.

    P is the norm of the MLP: the one before it, or in OLMo 2, which has none there, the one after it.

    Attributes:
        norm_class: the class of the norms that are replaced.
        roles: a block's norms in the order of their use, and what each does.
        preconditioner: which of them is P.
        norm: what replaces them.
        decoder: where the language model keeps its decoder; the other names are below that.
        layers: its blocks.
        attention: a block's attention; all call their MLP `mlp`.
        embedding: of the words.
        positions: the embedding of the positions, where they are learned.
        final: the norm behind the last block.
    """

    norm_class: str
    roles: Mapping[str, str]
    preconditioner: str
    norm: type[nn.Module] = RMSNorm
    decoder: str = "model"
    layers: str = "layers"
    attention: str = "self_attn"
    embedding: str = "embed_tokens"
    positions: str | None = None
    final: str = "norm"

    def role(self, name: str) -> str:
        """What the norm called `name` does."""
        if name == self.final:
            return "final"
        return self.roles[name] + (": the preconditioner P" if name == self.preconditioner else "")

    def decoder_of(self, lm: PreTrainedModel) -> nn.Module:
        """The decoder of a language model."""
        return getattr(lm, self.decoder)

    def layers_of(self, lm: PreTrainedModel) -> nn.ModuleList:
        """The blocks of a language model."""
        return getattr(self.decoder_of(lm), self.layers)

    def function_of(self, norm: nn.Module) -> RMSNormFunction:
        """What one of the family's norms computes, also those of queries and keys."""
        return RMSNormFunction(norm.weight, epsilon(norm), self.norm.offset, self.norm.rounding)

    def preconditioner_at(self, norm: nn.Module, z: Tensor) -> Tensor:
        """P = γ / σ(z) [B, D] of states z [B, D]; of a LayerNorm σ is their standard deviation."""
        if self.norm is LayerNorm:
            z = z - z.mean(-1, keepdim=True)
        return preconditioner(z, norm.weight, epsilon(norm), self.norm.offset)


def _gpt(roles: Mapping[str, str], p: str, positions: str | None) -> Family:
    return Family("LayerNorm", roles, p, LayerNorm, "transformer", "h", "attn", "wte", positions, "ln_f")


_LLAMA_CLASSES = {
    "llama": "LlamaRMSNorm",
    "mistral": "MistralRMSNorm",
    "qwen2": "Qwen2RMSNorm",
    "qwen3": "Qwen3RMSNorm",
    "smollm3": "SmolLM3RMSNorm",
    "granite": "GraniteRMSNorm",
    "phi3": "Phi3RMSNorm",
}
# by the model type of transformers' configuration
FAMILIES = {
    **{name: Family(cls, LLAMA, "post_attention_layernorm") for name, cls in _LLAMA_CLASSES.items()},
    "gemma2": Family("Gemma2RMSNorm", GEMMA, "pre_feedforward_layernorm", GemmaRMSNorm),
    "gemma3_text": Family("Gemma3RMSNorm", GEMMA, "pre_feedforward_layernorm", GemmaRMSNorm),
    "olmo2": Family("Olmo2RMSNorm", OLMO2, "post_feedforward_layernorm", Olmo2RMSNorm),
    "gpt2": _gpt(GPT2, "ln_2", "wpe"),
    "gptj": _gpt(GPTJ, "ln_1", None),
}


def causal_lm(model: nn.Module) -> PreTrainedModel:
    """The causal language model inside PEFT's wrapper, or the model itself.

    Raises:
        ValueError: the family is not supported, the model has no language-model head, or PEFT puts virtual
            tokens before the prompt, which the prediction token's states would miss.
    """
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise ValueError(
            f"{model.active_peft_config.peft_type.value} of PEFT can't be combined with norm tuning"
        )
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    model_type = getattr(getattr(inner, "config", None), "model_type", None)
    if model_type not in FAMILIES or not hasattr(inner, "lm_head"):
        what = f"{type(inner).__name__} (model type {model_type!r})"
        raise ValueError(
            f"{what} is not supported; supported are causal language models of: {', '.join(sorted(FAMILIES))}"
        )
    family = FAMILIES[model_type]
    if family.positions is None and not hasattr(family.decoder_of(inner), "rotary_emb"):
        raise ValueError(
            f"{type(inner).__name__} turns its keys inside its attention in this version of transformers; "
            "use transformers 5.24 or later"
        )
    return inner


def without_autocast(function: Callable) -> Callable:
    """A function of a model, run in the model's own type also under autocast.

    Autocast casts what goes into linear layers and not what goes around them, and tangents and sums need one
    type.
    """

    @wraps(function)
    def run(model: nn.Module, *args, **kwargs):
        with torch.autocast(causal_lm(model).lm_head.weight.device.type, enabled=False):
            return function(model, *args, **kwargs)

    return run


def family_of(model: nn.Module) -> Family:
    """The family's table entry."""
    return FAMILIES[causal_lm(model).config.model_type]


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The blocks of a model, Z_t to Z_{t+1} each."""
    return family_of(model).layers_of(causal_lm(model))


def dropout_is_on(lm: PreTrainedModel) -> bool:
    """Whether a forward pass would drop anything."""
    return lm.training and bool(
        getattr(lm.config, "attention_dropout", 0)
        or any(isinstance(module, nn.Dropout) and module.p for module in lm.modules())
    )


def check_attention(model: nn.Module, n_tokens: int) -> None:
    """Refuse what would not let every token see all before it, and these only.

    Raises:
        ValueError: the prompt is longer than the model's sliding window, or attention looks ahead.
    """
    config = causal_lm(model).config
    if getattr(config, "use_bidirectional_attention", None):
        raise ValueError("the model's attention looks ahead (use_bidirectional_attention); it must be causal")
    window = getattr(config, "sliding_window", None)
    slides = "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"])
    if window is not None and slides and n_tokens > window:
        raise ValueError(
            f"a prompt of {n_tokens} tokens is longer than the model's sliding window of {window}; use "
            "shorter texts or fewer demonstrations"
        )
