"""Quantised linear layers that would lose derivatives without a word."""

import sys
from collections.abc import Iterable

from torch import nn

# whether a layer of bitsandbytes may pack its weight
PACKS = "support_avx512bf16_for_cpu"


def keep_unpacked(model: nn.Module) -> list[nn.Module]:
    """Stop bitsandbytes from packing weights for inference, after which they pass no gradient on.

    Returns:
        The layers that would have packed; `allow_packing` lets them again.
    """
    layers = [module for module in model.modules() if getattr(module, PACKS, False)]
    for layer in layers:
        setattr(layer, PACKS, False)
    return layers


def allow_packing(layers: Iterable[nn.Module]) -> None:
    """The inverse of `keep_unpacked`."""
    for layer in layers:
        setattr(layer, PACKS, True)


def check_derivatives(model: nn.Module, own_layers: bool) -> None:
    """Refuse bitsandbytes' layers where they drop what the objective differentiates.

    Where a CPU has AVX512-BF16, bitsandbytes repacks a 4-bit weight for inference the first time that a layer
    in evaluation mode is given an input without a gradient; from then on its output carries none. Its
    operators have no forward-mode derivative either: a tangent through the model's own layers would come out
    as zero.

    Args:
        model: the model.
        own_layers: whether tangents go through the model's own layers.

    Raises:
        ValueError: a weight was repacked, or tangents would go through such a layer.
    """
    if "bitsandbytes" not in sys.modules:  # spares every step a walk through the model
        return
    for name, module in model.named_modules():
        if not type(module).__module__.startswith("bitsandbytes."):
            continue
        if own_layers:
            raise ValueError(
                f"{name} is bitsandbytes' {type(module).__name__}, which has no forward-mode derivative, and "
                "this model's sharpness needs one; set lambda_sharp=0, or quantise with torchao"
            )
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if getattr(state, "packing_format_for_cpu", False):
            raise ValueError(
                f"bitsandbytes packed {name} for inference, and γ would get no gradient through it; load the "
                "model again and patch it before it is used"
            )
