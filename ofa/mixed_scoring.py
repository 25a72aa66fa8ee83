"""Label-word scores of a batch in which every prompt may have norm weights and label words of its own."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from ofa.data.words import IGNORED
from ofa.decoder.patch import borrowed, set_gammas
from ofa.decoder.view import Decoder, without_autocast
from ofa.passes.fast import stacked_pass, why_not_stacked
from ofa.passes.row_weights import RowWeights
from ofa.passes.shared_packing import SharedPacking
from ofa.scoring import batches, prompt_log_probs
from ofa_kernels import accumulation_dtype


@dataclass(frozen=True, eq=False)
class Adapter:
    """What a model is to be for a prompt, and which words it is to weigh.

    Attributes:
        gammas: [norms, D] float32 or float64, in the order of the model's norms.
        words: of each label word, the tokens that are scored.
    """

    gammas: Tensor
    words: Sequence[list[int]]

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest word."""
        return max(map(len, self.words))

    @cached_property
    def readings(self) -> list[tuple[list[int], list[int]]]:
        """Which words are to follow a prompt, each in an example of its own, and which scores that tells.

        A word of one token need not follow: the prompt alone tells its score, be it followed by another word.
        """
        single = [n for n, word in enumerate(self.words) if len(word) == 1]
        several = [n for n, word in enumerate(self.words) if len(word) > 1]
        if not several:
            return [(self.words[0], single)]
        return [(self.words[n], [n] if i else [n, *single]) for i, n in enumerate(several)]


@dataclass(frozen=True)
class _Example:
    """A prompt with a label word that follows it.

    Attributes:
        prompt: its number.
        ids: its tokens.
        adapter: that answers.
        word: its tokens; those after the first are scored if there are any.
        reads: the label words that are scored, by their numbers.
    """

    prompt: int
    ids: list[int]
    adapter: Adapter
    word: list[int]
    reads: list[int]


@torch.no_grad()
@without_autocast
def mixed_log_probs(
    model: nn.Module, prompts: Sequence[list[int]], adapters: Sequence[Adapter], turn: threading.Lock
) -> Tensor:
    """Log-probabilities of the label words after every prompt, in batches across the adapters.

    The model is only read. One without a stacked form (see `why_not_stacked`) is borrowed instead: it is run
    adapter by adapter, in evaluation mode and with the adapter's γ in it.

    Args:
        model: a causal language model of a supported family, patched or not.
        prompts: [P] token ids.
        adapters: [P], whose γ and label words each prompt has.
        turn: held while a batch is computed.

    Returns:
        [P, most words of an adapter], normalised over the words of each adapter, on the CPU; minus infinity
        where an adapter has no further word. float64 if γ are, else float32.

    Raises:
        FloatingPointError: a logit is NaN or infinite.
    """
    decoder, n_words = Decoder.of(model), max(len(adapter.words) for adapter in adapters)
    dtype = accumulation_dtype(adapters[0].gammas)
    found = torch.full((len(prompts), n_words), float("-inf"), dtype=dtype)
    if why_not_stacked(decoder) is None:
        for batch in _batches(prompts, adapters):
            with turn:
                places, scores = _read(decoder, batch)
            found[places] = scores
    else:
        for adapter in dict.fromkeys(adapters):
            rows = [i for i, other in enumerate(adapters) if other is adapter]
            with turn, borrowed(model):
                set_gammas(model, adapter.gammas.unbind())
                scores = prompt_log_probs(decoder, [prompts[i] for i in rows], adapter.words)
            found[rows, : len(adapter.words)] = scores.to(dtype)
    return found.log_softmax(-1)


def _batches(prompts: Sequence[list[int]], adapters: Sequence[Adapter]) -> Iterator[list[_Example]]:
    """Examples of similar length, as many together as the limits allow, those of an adapter side by side."""
    examples = [
        _Example(i, ids, adapter, word, reads)
        for i, (ids, adapter) in enumerate(zip(prompts, adapters, strict=True))
        for word, reads in adapter.readings
    ]
    order = {adapter: n for n, adapter in enumerate(dict.fromkeys(adapters))}
    # with the longest word in any case: so the examples of a prompt stay together and share its rows
    lengths = [len(example.ids) + example.adapter.longest - 1 for example in examples]
    for batch in batches(lengths, 0):
        yield sorted((examples[i] for i in batch), key=lambda example: order[example.adapter])


def _read(decoder: Decoder, batch: Sequence[_Example]) -> tuple[tuple[list[int], list[int]], Tensor]:
    """Scores, and where they belong: the numbers of prompts, and those of words."""
    device = decoder.device
    number = {adapter: n for n, adapter in enumerate(dict.fromkeys(example.adapter for example in batch))}
    which = [number[example.adapter] for example in batch]
    words = [example.word for example in batch]
    packing = SharedPacking.of_prompts([example.ids for example in batch], words, which, device)
    gammas = torch.stack([adapter.gammas.to(device) for adapter in number], 1)
    weights = RowWeights(gammas.unbind(), torch.tensor(which, device=device))
    ran = stacked_pass(decoder, {"packing": packing}, weights=weights)

    read = [(row, example, n) for row, example in enumerate(batch) for n in example.reads]
    rows = [row for row, *_ in read]
    scores = _log_probs(ran.logits)[rows, [example.adapter.words[n][0] for _, example, n in read]]
    if ran.following is not None:
        n_more = ran.following.shape[1]
        more = torch.tensor([[*word[1:], *[IGNORED] * (n_more + 1 - len(word))] for word in words]).to(device)
        further = _log_probs(ran.following).gather(-1, more.clamp(min=0)[..., None])[..., 0]
        further = further.masked_fill(more == IGNORED, 0).sum(-1)
        has_more = torch.tensor([len(example.adapter.words[n]) > 1 for _, example, n in read]).to(device)
        scores = scores + further[rows].where(has_more, 0)
    scores, prompts = scores.cpu(), [example.prompt for _, example, _ in read]
    finite = torch.isfinite(scores)
    if not finite.all():
        raise FloatingPointError(
            f"text {prompts[finite.tolist().index(False)]}: the model's logits are NaN or infinite; load it "
            "in float32 or bfloat16"
        )
    return (prompts, [n for *_, n in read]), scores


def _log_probs(logits: Tensor) -> Tensor:
    return logits.to(accumulation_dtype(logits)).log_softmax(-1)
