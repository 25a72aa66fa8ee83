"""Batches in parts that fit the memory."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

from ofa.decoder.view import Decoder

# what the activations saved for the backward pass of one part of a batch may take
ACTIVATION_BYTES = 4 * 2**30

Row = TypeVar("Row")


def bytes_per_token(decoder: Decoder) -> int:
    """Roughly what one token's saved activations take: six rows of the state and three of the MLP a layer."""
    config = decoder.config
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None)
    row = 6 * config.hidden_size + 3 * (inner or 4 * config.hidden_size)
    return config.num_hidden_layers * row * decoder.lm.dtype.itemsize


def tokens_at_once(decoder: Decoder) -> float:
    """How many tokens may be run together."""
    return ACTIVATION_BYTES / bytes_per_token(decoder)


def parts(rows: Sequence[Row], lengths: Sequence[int], limit: float) -> Iterator[list[Row]]:
    """The rows in order, as many together as have at most `limit` tokens, but one at least.

    Args:
        rows: whatever is to be divided.
        lengths: the tokens of each row.
        limit: of tokens.
    """
    part, n_tokens = [], 0
    for row, length in zip(rows, lengths, strict=True):
        if part and n_tokens + length > limit:
            yield part
            part, n_tokens = [], 0
        part.append(row)
        n_tokens += length
    yield part
