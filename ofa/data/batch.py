"""Prompts and their labels as batches of tensors."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from ofa.data.inputs import as_texts
from ofa.data.task import Task, count_truncated
from ofa.data.words import IGNORED


def pad(prompts: Sequence[list[int]], device: torch.device) -> dict[str, Tensor]:
    """Right-padded `input_ids` and `attention_mask` [B, longest]."""
    longest = max(map(len, prompts))
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids in prompts], device=device)
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in prompts], device=device)
    return {"input_ids": ids, "attention_mask": mask}


def labelled(
    prompts: Sequence[Sequence[int]], words: Sequence[list[int]], device: torch.device
) -> dict[str, Tensor]:
    """A batch whose `labels` are the words' tokens, [B] where each has one; see `ofa.objective`."""
    batch = pad([[*prompt, *word[:-1]] for prompt, word in zip(prompts, words, strict=True)], device)
    labels = padded(words, device)
    return {**batch, "labels": labels if labels.shape[1] > 1 else labels[:, 0]}


def classes_of(words: Sequence[Sequence[int]]) -> list[int]:
    """The tokens of the label words, where each word has one; none where a word has several."""
    return [] if any(len(word) > 1 for word in words) else [word[0] for word in words]


def padded(rows: Sequence[Sequence[int]], device: torch.device | None = None) -> Tensor:
    """[rows, longest] int64, filled up with -100."""
    longest = max(map(len, rows))
    filled = [[*row, *[IGNORED] * (longest - len(row))] for row in rows]
    return torch.tensor(filled, dtype=torch.int64, device=device)


@dataclass(frozen=True)
class Encoded:
    """Labelled examples as token ids.

    Attributes:
        prompts: of each example, cut to fit the context together with the longest label word.
        words: of each example's label word, what is trained on and scored.
        n_truncated: how many texts were cut.
        classes: the tokens of all label words, where each has one.
    """

    prompts: Sequence[Sequence[int]]
    words: list[list[int]]
    n_truncated: int
    classes: Sequence[int] = ()

    @cached_property
    def lengths(self) -> list[int]:
        """How many tokens each example has in a batch."""
        return [len(prompt) + len(word) - 1 for prompt, word in zip(self.prompts, self.words, strict=True)]

    def batch(self, rows: Sequence[int], device: torch.device) -> dict[str, Tensor]:
        """The examples of these indices, which select their probes too."""
        batch = labelled([self.prompts[i] for i in rows], [self.words[i] for i in rows], device)
        batch["classes"] = padded([self.classes] * len(rows), device)
        return {**batch, "example_ids": torch.tensor(rows, device=device)}


def encoded(
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    rows: Sequence[dict],
    max_tokens: int,
    before: Sequence[str] | None = None,
) -> Encoded:
    """The token ids of rows {"text", "label"}; arguments and errors as in `features`.

    `before` is what precedes each row's prompt and is never cut; a ValueError where it leaves no room.
    """
    task.check_labels(rows)
    texts = as_texts(row["text"] for row in rows)
    words = task.target_ids(tokenizer)
    limit = max_tokens - max(map(len, words)) + 1
    preceded = zip(texts, before or [""] * len(texts), strict=True)
    prompts = [task.encode(tokenizer, text, limit, demonstrations) for text, demonstrations in preceded]
    n_truncated = count_truncated(prompts)
    # four bytes a token: behind demonstrations every epoch has prompts of its own
    ids = [array("i", prompt.ids) for prompt in prompts]
    return Encoded(ids, [words[row["label"]] for row in rows], n_truncated, classes_of(words))


def features(
    tokenizer: PreTrainedTokenizerBase, task: Task, rows: Sequence[dict], max_tokens: int
) -> list[dict]:
    """Rows as `OFATrainer` takes them: `input_ids`, `labels`, `classes`, `example_ids`.

    `labels` is the label word's first token, and `classes` are those of all label words; or, if the task has
    whole words, `labels` is a list of all the word's tokens, `input_ids` ends in all of these but the last,
    and `classes` are empty where a word has several tokens.

    Args:
        tokenizer: the model's.
        task: template and label words.
        rows: {"text": str, "label": class number} each: a list or a `datasets.Dataset`.
        max_tokens: the context's length; longer texts lose their beginning, with a warning.

    Raises:
        TypeError: a text is no string.
        ValueError: an unknown label, an empty text, or colliding label words.
    """
    examples = encoded(tokenizer, task, list(rows), max_tokens)
    return [
        {
            "input_ids": [*prompt, *word[:-1]],
            "labels": word if task.whole_words else word[0],
            "example_ids": i,
            "classes": list(examples.classes),
        }
        for i, (prompt, word) in enumerate(zip(examples.prompts, examples.words, strict=True))
    ]


def collate(examples: Sequence[dict]) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask` [B, longest], `labels` [B] or [B, L], and `example_ids` [B].

    And `classes` [B, C], where the examples have them.
    """
    batch = pad([list(example["input_ids"]) for example in examples], torch.device("cpu"))
    labels = [torch.atleast_1d(torch.as_tensor(example["labels"])) for example in examples]
    labels = pad_sequence(labels, batch_first=True, padding_value=IGNORED)
    batch["labels"] = labels if labels.shape[1] > 1 else labels[:, 0]
    batch["example_ids"] = torch.tensor([int(example["example_ids"]) for example in examples])
    if all("classes" in example for example in examples):
        batch["classes"] = padded([list(example["classes"]) for example in examples])
    return batch
