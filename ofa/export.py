"""An adapted model as a plain one, for servers and tools that know no adapters of norms."""

import os

from torch import nn
from transformers import PreTrainedTokenizerBase

from ofa.families import causal_lm


def export_merged(model: nn.Module, tokenizer: PreTrainedTokenizerBase, path: str | os.PathLike) -> None:
    """Write model and tokenizer with γ in its place, as `AutoModelForCausalLM.from_pretrained` loads them.

    Every tensor is stored in the model's own type: γ, trained in float32, is rounded in a 16-bit model, to
    about three digits in bfloat16. Export a float32 model where that matters.

    Args:
        model: a causal language model of a supported family, adapted; not wrapped by PEFT.
        tokenizer: the model's.
        path: a folder; made where missing.

    Raises:
        ValueError: the family is not supported, or the model is inside PEFT's wrapper.
    """
    lm = causal_lm(model)
    if lm is not model:
        raise ValueError(
            "the model is inside PEFT's wrapper; use its merge_and_unload(), or load the adapter with "
            "ofa.load_adapter"
        )
    state = {name: t.to(lm.dtype) if t.is_floating_point() else t for name, t in lm.state_dict().items()}
    lm.save_pretrained(path, state_dict=state)
    tokenizer.save_pretrained(path)
