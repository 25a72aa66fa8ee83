"""Label-word scores of many texts: one shared beginning computed once, short prompts together."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ofa.data.batch import labelled, pad
from ofa.data.inputs import as_texts
from ofa.data.task import Task, count_truncated
from ofa.decoder.view import Decoder, without_autocast
from ofa.passes.own_layers import ActivationPatch, TokenStates, token_states

# what a batch may hold: its keys and values, and a mask of rows × tokens²
ROWS_PER_BATCH = 32
TOKENS_PER_BATCH = 16384


@dataclass(frozen=True)
class Scores:
    """Log-probabilities over the label words, [texts, classes], and how many texts were cut to fit."""

    log_probs: Tensor
    n_truncated: int

    @property
    def predictions(self) -> Tensor:
        """[texts] class numbers."""
        return self.log_probs.argmax(-1)

    def accuracy(self, labels: Sequence[int]) -> float:
        """The share of right predictions."""
        return (self.predictions == torch.tensor(labels)).double().mean().item()


def shared_beginning(decoder: Decoder, ids: Sequence[list[int]]) -> tuple[int, TokenStates | None]:
    """What all prompts begin with, run once; it leaves each prompt at least one token.

    Args:
        decoder: the view of the model.
        ids: the prompts' tokens; of a single prompt nothing is shared.

    Returns:
        How many tokens it has, and what serves as a prefix of the rest; None where it is empty.
    """
    shortest = min(map(len, ids)) - 1 if len(ids) > 1 else 0
    columns = zip(*(prompt[:shortest] for prompt in ids), strict=True)
    shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    return shared, token_states(decoder, pad([ids[0][:shared]], decoder.device)) if shared else None


def batches(lengths: Sequence[int], shared: int) -> list[list[int]]:
    """Indices in order of length, as many together as the limits allow.

    Args:
        lengths: tokens of each prompt after the shared beginning.
        shared: tokens of that beginning.
    """
    found: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        rows = found[-1] if found else None
        if (
            rows
            and len(rows) < ROWS_PER_BATCH
            and (len(rows) + 1) * (shared + lengths[i]) <= TOKENS_PER_BATCH
        ):
            rows.append(i)
        else:
            found.append([i])
    return found


@torch.no_grad()
@without_autocast
def score(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    texts: Iterable[str],
    shots: Sequence[dict] = (),
    track: Callable[[Iterable], Iterable] = iter,
    prefix: tuple[list[int], TokenStates] | None = None,
    patch: ActivationPatch | None = None,
) -> Scores:
    """Score the label words after every text: their first tokens, or all of them if the task says so.

    What all prompts begin with (the demonstrations, in context) is run once, and its keys and values serve
    every query; the queries run in batches of similar length, with no logits but the last token's.

    Args:
        model: a causal language model of a supported family, patched or not.
        tokenizer: the model's.
        task: template and label words.
        texts: what to classify: a list, tuple, generator, array or column of a table.
        shots: demonstrations {"text", "label"} to put before every prompt.
        track: wraps the iteration over batches, for a progress bar.
        prefix: the demonstrations' tokens and what the queries see of them, where that is not all.
        patch: what stands in for a layer's output at the last prompt token.

    Returns:
        Log-probabilities over the label words in the order of `texts`. A warning says how many texts were
        cut on the left to fit the context.

    Raises:
        TypeError: a single string instead of a list, or a text that is no string.
        ValueError: label words collide, a text is empty, nothing of it fits the context, or a prompt does
            not continue the prefix.
        FloatingPointError: a logit is NaN or infinite.
    """
    decoder, texts, words = Decoder.of(model), as_texts(texts), task.target_ids(tokenizer)
    if not texts:
        return Scores(torch.empty(0, len(words)), 0)
    task.check_labels(shots)
    before, limit = task.demonstrations(shots), decoder.max_tokens - max(map(len, words)) + 1
    prompts = [task.encode(tokenizer, text, limit, before) for text in texts]
    n_truncated = count_truncated(prompts)
    ids = [prompt.ids for prompt in prompts]
    return Scores(prompt_log_probs(decoder, ids, words, track, prefix, patch), n_truncated)


def prompt_log_probs(
    decoder: Decoder,
    ids: Sequence[list[int]],
    words: Sequence[list[int]],
    track: Callable[[Iterable], Iterable] = iter,
    prefix: tuple[list[int], TokenStates] | None = None,
    patch: ActivationPatch | None = None,
) -> Tensor:
    """[prompts, words] log-probabilities over label words, from their tokens and those of the prompts.

    Run it without gradients and autocast; arguments and errors as in `score`.
    """
    if prefix is None:
        shared, seen = shared_beginning(decoder, ids)
    else:
        (beginning, seen), shared = prefix, len(prefix[0])
        if any(i[:shared] != beginning for i in ids):
            raise ValueError(
                "the tokenizer merges the demonstrations' end with a prompt's beginning; let the template "
                "begin with a word"
            )
    result = torch.empty(len(ids), len(words))
    for rows in track(batches([len(i) - shared for i in ids], shared)):
        log_probs = _word_log_probs(decoder, [ids[i][shared:] for i in rows], words, seen, patch)
        result[rows] = log_probs.log_softmax(-1).cpu()
    if not torch.isfinite(result).all():
        raise FloatingPointError("the model's logits are NaN or infinite; load it in float32 or bfloat16")
    return result


def _word_log_probs(
    decoder: Decoder,
    prompts: Sequence[list[int]],
    words: Sequence[list[int]],
    prefix: TokenStates | None,
    patch: ActivationPatch | None,
) -> Tensor:
    """[prompts, words] log-probability of each word after each prompt, its tokens one after the other."""

    def states(word: list[int]) -> TokenStates:
        batch = labelled(prompts, [word] * len(prompts), decoder.device)
        return token_states(decoder, batch, record=False, prefix=prefix, patch=patch)

    first = states(words[0][:1]).logits.float().log_softmax(-1)
    columns = []
    for word in words:
        column = first[:, word[0]]
        if len(word) > 1:
            logits = states(word).following
            assert logits is not None  # the word has several tokens
            following = logits.float().log_softmax(-1)
            column = column + sum(following[:, i, token] for i, token in enumerate(word[1:]))
        columns.append(column)
    return torch.stack(columns, dim=1)
