"""An adapted model as a plain one, for servers and tools that know no adapters of norms."""

import os
import shutil
from pathlib import Path

from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PreTrainedTokenizerBase

from ofa.decoder.view import Decoder


def export_merged(model: nn.Module, tokenizer: PreTrainedTokenizerBase, path: str | os.PathLike) -> None:
    """Write model and tokenizer with γ in its place, as `AutoModelForCausalLM.from_pretrained` loads them.

    Every tensor is stored in the model's own type: γ, trained in float32, is rounded in a 16-bit model, to
    about three digits in bfloat16. Export a float32 model where that matters.

    Args:
        model: a causal language model of a supported family, adapted; not wrapped by PEFT.
        tokenizer: the model's.
        path: a folder; made where missing.

    Raises:
        ValueError: the path is a file, the family is not supported, the model is inside PEFT's wrapper, or
            its weights are quantised or sharded tensors.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file; give a folder")
    lm = Decoder.of(model).lm
    if lm is not model:
        raise ValueError(
            "the model is inside PEFT's wrapper; use its merge_and_unload(), or load the adapter with "
            "ofa.load_adapter"
        )
    for name, t in lm.state_dict().items():
        if is_traceable_wrapper_subclass(t):
            raise ValueError(
                f"{name} is quantised or sharded (a {type(t).__name__}), and no plain copy of it can be "
                "written; save_adapter keeps γ, to load into the model as it was"
            )
    state = {name: t.to(lm.dtype) if t.is_floating_point() else t for name, t in lm.state_dict().items()}
    lm.save_pretrained(path, state_dict=state)
    for weights in path.glob("*.safetensors"):  # safetensors makes its files the owner's alone
        shutil.copymode(path / "config.json", weights)
    tokenizer.save_pretrained(path)
