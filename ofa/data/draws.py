"""Labelled examples: their class numbers, k shots per class, and rows to test on."""

import random
import re
from collections.abc import Sequence
from itertools import zip_longest

from ofa.data.rows import plain_label, read_rows, read_texts

__all__ = ["draw_shots", "draw_test", "number_labels", "read_rows", "read_texts"]

NUMBER = re.compile(r"-?\d+(\.\d+)?")
N_SHOWN = 10  # of the labels in an example


def number_labels(
    rows: Sequence[dict], label_words: Sequence[str] | None = None
) -> tuple[list[dict], tuple[str, ...]]:
    """Rows with class numbers as labels, and the label words in that order.

    Labels may be words (then `label_words` gives their order; default: sorted) or class numbers from 0 on
    (then `label_words` is needed). Labels that all are label words are taken as such, also `1` to `5`. Any
    label, also a number that does not count from 0, is renamed by `label=word`: `1=bad`, `3=okay`, `5=great`.

    Raises:
        ValueError: numbers without words, an unknown label, or fewer than two classes.
    """
    labels = [plain_label(str(row["label"])) for row in rows]
    if label_words is not None:
        pairs = [word.strip().partition("=") for word in label_words]
        renamed = {plain_label(old): new or old for old, _, new in pairs if new}
        labels = [renamed.get(label, label) for label in labels]
        label_words = [new or old for old, _, new in pairs]
    different = sorted(set(labels))
    are_numbers = all(NUMBER.fullmatch(label) for label in different)
    if are_numbers:
        different.sort(key=float)
    if are_numbers and not set(different) <= set(label_words or ()):
        if label_words is None:
            raise ValueError(
                f"the labels are numbers ({_first(different, ', ')}); give each its word: "
                f"--label-words {_first([f'{label}=WORD' for label in different], ',')}"
            )
        index = {str(i): i for i in range(len(label_words))}
    else:
        label_words = different if label_words is None else label_words
        index = {word: i for i, word in enumerate(label_words)}
    unknown = [label for label in different if label not in index]
    if unknown:
        example = f"{unknown[0]}=…"
        if are_numbers and len(different) == len(label_words):
            example = ",".join(f"{label}={word}" for label, word in zip(different, label_words, strict=True))
        raise ValueError(
            f"unknown labels: {', '.join(unknown)}; known are {', '.join(index)}. Where a label and its word "
            f"differ, write label=word (--label-words {example})"
        )
    if len(set(label_words)) < len(label_words):
        raise ValueError(f"a label word is given twice: {', '.join(label_words)}; each class needs its own")
    if len(label_words) < 2:
        raise ValueError(f"at least two classes are needed, got {', '.join(label_words)}")
    numbered = [{"text": row["text"], "label": index[label]} for row, label in zip(rows, labels, strict=True)]
    return numbered, tuple(label_words)


def _first(labels: Sequence[str], separator: str) -> str:
    return separator.join([*labels[:N_SHOWN], *["…"] * (len(labels) > N_SHOWN)])


def _counted(n: int) -> str:
    return f"{n} example{'s' * (n != 1)}"


def draw_shots(
    rows: Sequence[dict], k: int, seed: int, label_words: Sequence[str]
) -> tuple[list[dict], list[dict]]:
    """k rows per class, drawn by the seed and shuffled, and all other rows in their order.

    Raises:
        ValueError: a class has fewer than k rows.
    """
    generator = random.Random(seed)
    chosen: list[int] = []
    for label, word in enumerate(label_words):
        members = [i for i, row in enumerate(rows) if row["label"] == label]
        if len(members) < k:
            raise ValueError(
                f"class {word!r} has {_counted(len(members))}, and {k} per class are asked for; "
                "add examples or ask for fewer shots (--shots)"
            )
        chosen += generator.sample(members, k)
    generator.shuffle(chosen)
    taken = set(chosen)
    return [rows[i] for i in chosen], [row for i, row in enumerate(rows) if i not in taken]


def draw_test(rows: Sequence[dict], n: int, seed: int, n_classes: int) -> list[dict]:
    """Up to n rows, drawn by the seed, as evenly over the classes as the rows allow."""
    generator = random.Random(seed)
    by_class = [[row for row in rows if row["label"] == label] for label in range(n_classes)]
    for members in by_class:
        generator.shuffle(members)
    rounds = zip_longest(*by_class)
    return [row for one_of_each in rounds for row in one_of_each if row is not None][:n]
