"""What an adapter's JSON says of its task: template, label words, and the labels that these stand for."""

import os
from collections.abc import Hashable, Sequence
from dataclasses import asdict

from ofa.data.labels import Classes
from ofa.data.task import Task
from ofa.save.adapter import OFA_CONFIG


def task_record(task: Task, labels: Sequence[Hashable]) -> dict:
    """JSON values for `save_adapter`, of a task and the label that each of its words stands for.

    Raises:
        ValueError: JSON can't hold the labels.
    """
    return {"task": asdict(task), "labels": _labels_record([*labels], task.label_words)}


def recorded_task(record: dict, path: str | os.PathLike) -> tuple[Task, Classes]:
    """The inverse of `task_record`.

    Args:
        record: of `read_config`.
        path: the adapter's folder, for errors.

    Raises:
        ValueError: the adapter has no task, or the record is damaged.
    """
    if "task" not in record:
        raise ValueError(
            f"{path} holds γ but no template and label words, as ofa.save_adapter writes it; give a folder "
            "of ofa adapt or FewShotClassifier.save, or use ofa.load_adapter(model, path)"
        )
    try:
        task = Task(**record["task"])
        return task, _classes(record["labels"], task.label_words)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: {OFA_CONFIG} is damaged: {error!r}") from None


def _labels_record(labels: list[Hashable], words: Sequence[str]) -> str | list:
    """Labels as an adapter's JSON holds them."""
    if labels == list(words):
        return "words"
    if [*map(repr, labels)] == [*map(repr, range(len(words)))]:
        return "numbers"
    for label in labels:
        if type(label) not in (bool, int, float, str):
            raise ValueError(
                f"the label {label!r} is a {type(label).__name__}, which an adapter's JSON can't hold; fit "
                "with strings, numbers or booleans, or save γ alone: ofa.save_adapter(model_, path)"
            )
    return labels


def _classes(record: str | list, words: Sequence[str]) -> Classes:
    labels = {"words": words, "numbers": range(len(words))}[record] if isinstance(record, str) else record
    if len(labels) != len(words):
        raise TypeError(f"{len(labels)} labels for {len(words)} words")
    if len(set(labels)) != len(labels):
        raise TypeError("a label stands for two words")
    return Classes(tuple(labels), tuple(words))
