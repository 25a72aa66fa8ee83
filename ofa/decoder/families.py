"""The model families: where each keeps its parts, what its norms do, and where it differs from Llama."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import cast

from torch import Tensor

from ofa.decoder.norms import (
    Foreign,
    GemmaRMSNorm,
    LayerNorm,
    Olmo2RMSNorm,
    RMSNorm,
    RMSNormFunction,
    epsilon,
)
from ofa_kernels import preconditioner


class Role(Enum):
    """Where in a block a norm stands."""

    BEFORE_ATTENTION = "before attention"
    AFTER_ATTENTION = "after attention"
    BEFORE_MLP = "before the MLP"
    AFTER_MLP = "after the MLP"
    BEFORE_BOTH = "before attention and the MLP"


LLAMA = {"input_layernorm": Role.BEFORE_ATTENTION, "post_attention_layernorm": Role.BEFORE_MLP}
GEMMA = {
    "input_layernorm": Role.BEFORE_ATTENTION,
    "post_attention_layernorm": Role.AFTER_ATTENTION,
    "pre_feedforward_layernorm": Role.BEFORE_MLP,
    "post_feedforward_layernorm": Role.AFTER_MLP,
}
OLMO2 = {"post_attention_layernorm": Role.AFTER_ATTENTION, "post_feedforward_layernorm": Role.AFTER_MLP}
GPT2 = {"ln_1": Role.BEFORE_ATTENTION, "ln_2": Role.BEFORE_MLP}
GPTJ = {"ln_1": Role.BEFORE_BOTH}


@dataclass(frozen=True)
class Family:
    """What a model family calls its parts, and what it does otherwise than Llama.

    P belongs to the norm before the MLP, or in OLMo 2, which has none there, to the norm after the MLP.

    Attributes:
        norm_class: the class of the norms that are replaced.
        roles: a block's norms in the order of their use.
        preconditioner: the name of the norm that P belongs to.
        norm: the class that replaces the norms.
        decoder: where the language model keeps its decoder; the other names are below that.
        layers: where the decoder keeps its blocks.
        attention: where a block keeps its attention; all families call the MLP `mlp`.
        embedding: the embedding of the words.
        positions: the embedding of the positions, where they are learned.
        final: the norm behind the last block.
        fast_pass: whether `ofa.passes.layer` does what its blocks do.
        rotary_by_layer_type: sliding layers turn faster than the others.
        caps_scores: attention scores are capped; Gemma 3 has the setting and makes no use of it.
    """

    norm_class: str
    roles: Mapping[str, Role]
    preconditioner: str
    norm: type[RMSNorm] | type[LayerNorm] = RMSNorm
    decoder: str = "model"
    layers: str = "layers"
    attention: str = "self_attn"
    embedding: str = "embed_tokens"
    positions: str | None = None
    final: str = "norm"
    fast_pass: bool = True
    rotary_by_layer_type: bool = False
    caps_scores: bool = False

    @property
    def before_attention(self) -> str:
        """The name of the norm before attention.

        Raises:
            ValueError: the family has none.
        """
        for name, role in self.roles.items():
            if role in (Role.BEFORE_ATTENTION, Role.BEFORE_BOTH):
                return name
        raise ValueError(f"no norm stands before attention; there are {', '.join(self.roles)}")

    def role(self, name: str) -> str:
        """What the norm called `name` does, in words."""
        if name == self.final:
            return "final"
        return self.roles[name].value + (": the preconditioner P" if name == self.preconditioner else "")

    def function_of(self, norm: Foreign) -> RMSNormFunction:
        """What a norm of the family computes, be it one of queries or keys; for RMSNorm families only."""
        ours = cast(type[RMSNorm], self.norm)
        return RMSNormFunction(norm.weight, epsilon(norm), ours.offset, ours.rounding)

    def preconditioner_at(self, norm: Foreign, z: Tensor) -> Tensor:
        """P = γ / σ(z) [B, D] of states z [B, D]; of a LayerNorm σ is their standard deviation."""
        if self.norm is LayerNorm:
            z = z - z.mean(-1, keepdim=True)
        return preconditioner(z, norm.weight, epsilon(norm), self.norm.offset)


def _gpt(roles: Mapping[str, Role], p: str, positions: str | None) -> Family:
    return Family(
        "LayerNorm",
        roles,
        p,
        norm=LayerNorm,
        decoder="transformer",
        layers="h",
        attention="attn",
        embedding="wte",
        positions=positions,
        final="ln_f",
        fast_pass=False,
    )


def _gemma(norm_class: str, caps_scores: bool = False, rotary_by_layer_type: bool = False) -> Family:
    return Family(
        norm_class,
        GEMMA,
        "pre_feedforward_layernorm",
        GemmaRMSNorm,
        rotary_by_layer_type=rotary_by_layer_type,
        caps_scores=caps_scores,
    )


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
    "gemma2": _gemma("Gemma2RMSNorm", caps_scores=True),
    "gemma3_text": _gemma("Gemma3RMSNorm", rotary_by_layer_type=True),
    "olmo2": Family("Olmo2RMSNorm", OLMO2, "post_feedforward_layernorm", Olmo2RMSNorm),
    "gpt2": _gpt(GPT2, "ln_2", "wpe"),
    "gptj": _gpt(GPTJ, "ln_1", None),
}
