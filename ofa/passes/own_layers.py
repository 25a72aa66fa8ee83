"""One clean pass: token states Z_0..Z_T at the prediction token, keys and values, last-token logits."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from ofa.data.words import columns_of, label_places
from ofa.decoder.view import Decoder, Rotary
from ofa.passes.hf_attention import SOFT_CAPPED
from ofa.passes.packing import Batch, check_batch


@dataclass(frozen=True)
class TokenStates:
    """What one clean pass leaves behind, at each example's prediction token (see `Packing`).

    Attributes:
        z: [T+1, B, D], Z_0 (the embedding) to Z_T (the last layer's output before the final norm).
        logits: [B, V], of the prediction tokens.
        following: [B, L - 1, V], the logits of a label's tokens after its first; None where labels have one.
        keys: per layer [B, H_kv, S, head_dim], rotated; empty unless recorded.
        values: per layer [B, H_kv, S, head_dim]; empty unless recorded.
        earlier: [B, S] bool, the positions before the prediction token that it may attend to.
        rotary: per layer its rotary embedding at the prediction token, a pair [B, 1, ...], or None.
        n_positions: where what continues the batch begins.
    """

    z: Tensor
    logits: Tensor
    following: Tensor | None
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    earlier: Tensor
    rotary: tuple[Rotary, ...]
    n_positions: int

    def keep(self, tokens: Sequence[int]) -> "TokenStates":
        """The keys and values of some tokens only; these, and what continues them, keep their positions.

        Args:
            tokens: their columns in `keys`, ascending.
        """
        return replace(
            self,
            keys=tuple(key[:, :, tokens] for key in self.keys),
            values=tuple(value[:, :, tokens] for value in self.values),
            earlier=self.earlier[:, tokens],
        )


@dataclass(frozen=True)
class ActivationPatch:
    """What stands in for a layer's output at every row's prediction token.

    Attributes:
        layer: whose output, counted from 0.
        state: [D] or [B, D].
    """

    layer: int
    state: Tensor


class _Tap:
    """Stands where a layer expects a cache: puts a shared prefix before keys and values; records if asked."""

    def __init__(self, prefix: "TokenStates | None", record: bool):
        self.prefix, self.record = prefix, record
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_, **__) -> tuple[Tensor, Tensor]:
        if self.prefix is not None:
            shape = (key.shape[0], -1, -1, -1)
            key = torch.cat([self.prefix.keys[layer_idx].expand(shape), key], dim=2)
            value = torch.cat([self.prefix.values[layer_idx].expand(shape), value], dim=2)
        if self.record:
            self.keys.append(key)
            self.values.append(value)
        return key, value


@cache
def cache_argument(layer_class: type) -> str:
    """The name under which a decoder layer takes its cache; transformers renamed it in 5.x."""
    parameters = inspect.signature(layer_class.forward).parameters
    return "cache" if "cache" in parameters else "past_key_values"


@contextmanager
def attention_implementation(decoder: Decoder, name: str) -> Iterator[None]:
    """Run the layers with another attention function; the configuration is restored in any case."""
    config = decoder.stack.config
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def token_states(
    decoder: Decoder,
    batch: Batch,
    record: bool = True,
    prefix: TokenStates | None = None,
    patch: ActivationPatch | None = None,
) -> TokenStates:
    """Run the decoder once and read it at the prediction tokens; only their logits are computed.

    Attention is PyTorch's `scaled_dot_product_attention`, whatever the model is configured for (the eager
    form drops to float32 in a float64 model), and written out where scores are capped.

    Args:
        decoder: the view of a model, patched or not.
        batch: `input_ids` and `attention_mask`, both [B, T], padded on either side; `labels` where these hold
            several tokens each (see `objective`).
        record: keep every layer's keys and values (for `sharpness`, or to serve as a prefix).
        prefix: the recorded states of one shared, unpadded beginning (B = 1) that every row continues.
        patch: what stands in for a layer's output.

    Returns:
        The `TokenStates` of the batch.

    Raises:
        ValueError: shapes don't fit, or a row has no real token.
    """
    layers = decoder.layers
    input_ids, mask = batch["input_ids"], batch["attention_mask"].bool()
    check_batch(input_ids, mask, batch.get("labels"))
    n_rows, n_tokens = input_ids.shape
    rows = torch.arange(n_rows, device=input_ids.device)
    columns = columns_of(mask, label_places(mask, batch.get("labels")))
    last = columns[:, 0]
    n_prefix, start = (0, 0) if prefix is None else (prefix.keys[0].shape[2], prefix.n_positions)
    decoder.check_attention(start + n_tokens)
    position_ids = (mask.cumsum(-1) - 1).clamp(min=0) + start

    index = torch.arange(n_tokens, device=input_ids.device)
    attention_mask = None  # lets SDPA take its causal path
    if n_prefix or not mask.all():
        causal = index[:, None] >= index
        # a padding token attends to itself, so that its row of the softmax is defined
        visible = causal & (mask[:, None, :] | (index[:, None] == index))
        attention_mask = torch.nn.functional.pad(visible, (n_prefix, 0), value=True)[:, None]
    earlier = torch.nn.functional.pad(mask & (index < last[:, None]), (n_prefix, 0), value=True)

    hidden = decoder.embed(input_ids, position_ids)
    rotary = decoder.rotary(hidden, position_ids)
    turns = [rotary[kind] for kind in decoder.rotary_kinds]
    tap = _Tap(prefix, record)
    tapped = {cache_argument(type(layers[0])): tap}
    states = [hidden[rows, last]]
    with attention_implementation(decoder, "sdpa" if decoder.score_cap is None else SOFT_CAPPED):
        for i, (layer, turn) in enumerate(zip(layers, turns, strict=True)):
            hidden = layer(
                hidden,
                attention_mask=attention_mask,
                position_ids=position_ids,
                position_embeddings=turn,
                **tapped,
            )
            if patch is not None and i == patch.layer:
                hidden = hidden.index_put((rows, last), patch.state)
            states.append(hidden[rows, last])
    final = decoder.final_norm
    logits, following = decoder.logits(final(states[-1])), None
    if columns.shape[1] > 1:
        following = decoder.logits(final(hidden[rows[:, None], columns[:, 1:]]))

    def at_last(part: Tensor) -> Tensor:
        return part.expand(n_rows, -1, -1)[rows, last][:, None]

    own = tuple(turn and (at_last(turn[0]), at_last(turn[1])) for turn in turns)
    keys, values = tuple(tap.keys), tuple(tap.values)
    return TokenStates(torch.stack(states), logits, following, keys, values, earlier, own, start + n_tokens)
