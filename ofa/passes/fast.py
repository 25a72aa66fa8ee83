"""The whole decoder on packed rows: one pass gives states, logits and J_f P ν of the probed layers."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ofa.decoder.norms import Foreign
from ofa.decoder.sharding import gathered
from ofa.decoder.view import Decoder
from ofa.passes.layer import Layer, Norms, Probes, Rows
from ofa.passes.packing import Batch, Packing, packed
from ofa.passes.row_weights import RowWeights


@dataclass(frozen=True)
class StackedPass:
    """What one pass leaves behind, at each example's prediction token.

    Attributes:
        z: [T+1, B, D], Z_0 (the embedding) to Z_T (the last layer's output before the final norm).
        logits: [B, V].
        following: [B, L - 1, V], the logits of a label's tokens after its first; None where labels have one.
        products: [layers, n_probes, B], νᵀ J_f P ν of the probed layers; None without probes.
    """

    z: Tensor
    logits: Tensor
    following: Tensor | None
    products: Tensor | None


def _linears(layer: Foreign) -> list[nn.Module]:
    """The linear maps of a decoder layer; Phi-3 fuses some of them."""
    fused, single = ("qkv_proj", "gate_up_proj"), ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
    names = (*fused, *single, "o_proj", "down_proj")
    return [getattr(part, n) for part in (layer.self_attn, layer.mlp) for n in names if hasattr(part, n)]


def why_not_stacked(decoder: Decoder) -> str | None:
    """Why the model has to go through its own layers instead, or None."""
    if not decoder.family.fast_pass:
        return f"no stacked form of {decoder.config.model_type} is written"
    if decoder.drops():
        return "dropout is on"
    if any("_hf_hook" in layer.__dict__ for layer in decoder.layers):
        return "accelerate moves the layers' inputs"
    for layer in decoder.layers:
        for linear in _linears(layer):
            if getattr(linear, "bias", None) is not None and not isinstance(linear, nn.Linear):
                return f"a {type(linear).__name__} adds a bias, which tangents must not get"
    return None


def stacked_pass(
    decoder: Decoder, batch: Batch, probes: Probes | None = None, weights: RowWeights | None = None
) -> StackedPass:
    """Run the decoder once on packed rows, with the probes' tangents riding along.

    The model is only read, so that passes may run in several threads at once.

    Args:
        decoder: the view of a model of a family with a fast pass, patched or not.
        batch: `input_ids` and `attention_mask`, both [B, T], padded on either side, and `labels` where these
            hold several tokens each (see `objective`); or their `packing`, made before by `ofa.packed`.
        probes: which directions to take; None for none.
        weights: a γ of its own for each example, differentiable; None for the model's own.

    Returns:
        The `StackedPass` of the batch.

    Raises:
        ValueError: shapes don't fit, a row has no real token, or a prompt is longer than the sliding window.
    """
    layers, family, cap = decoder.layers, decoder.family, decoder.score_cap
    packing: Packing = packed(batch)["packing"]
    norms = [family.function_of(norm) for _, _, norm in decoder.named_norms()]
    if weights is not None:
        norms = weights.put_into(norms, packing)
    n_norms = len(family.roles)
    decoder.check_attention(packing.real.shape[1])
    x = decoder.embed(packing.input_ids, packing.positions)
    states, products = [x[: packing.n_examples]], []
    n_probes = {0} if probes is None else {0, probes.n_probes}
    # every family with a fast pass turns its keys
    rotary = cast(dict[str, tuple[Tensor, Tensor]], decoder.rotary(x, packing.positions[None]))
    rows = {
        (kind, n): Rows.of(packing, n, cos[0, :, None], sin[0, :, None])
        for kind, (cos, sin) in rotary.items()
        for n in n_probes
    }
    goes_on = packing.following.shape[1] > 0
    for index, (module, kind) in enumerate(zip(layers, decoder.rotary_kinds, strict=True)):
        riding = probes if probes is not None and index in probes.layers else None
        at = rows[kind, 0 if riding is None else riding.n_probes]
        final = index == len(layers) - 1 and not goes_on
        own = Norms.of(family, norms[index * n_norms : (index + 1) * n_norms])
        layer = Layer(module, own, cap, index)
        with gathered(module):
            if getattr(module, "gradient_checkpointing", False) and torch.is_grad_enabled():
                x, product = checkpoint(layer, x, at, riding, final, use_reentrant=False)
            else:
                x, product = layer(x, at, riding, final)
        states.append(x[: packing.n_examples])
        if product is not None:
            products.append(product)
    logits = decoder.logits(norms[-1](states[-1]))
    following = decoder.logits(norms[-1](x[packing.following])) if goes_on else None
    return StackedPass(torch.stack(states), logits, following, torch.stack(products) if products else None)
