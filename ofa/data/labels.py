"""The classes of a classifier: what labels stand for them, and by which words the model says them."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
from sklearn.utils.multiclass import check_classification_targets

Label = TypeVar("Label", bound=Hashable)


def _ordered(labels: Iterable[Label]) -> tuple[Label, ...]:
    try:
        return tuple(sorted(cast(Iterable[Any], labels)))
    except TypeError:  # labels of several types
        return tuple(sorted(labels, key=lambda label: (type(label).__name__, repr(label))))


@dataclass(frozen=True)
class Classes:
    """Labels in their sorted order, which scikit-learn's tools rely on, and the word of each."""

    labels: tuple[Hashable, ...]
    words: tuple[str, ...]

    @classmethod
    def of(
        cls, found: Sequence[Hashable], label_words: Sequence[str] | Mapping[Hashable, str] | None
    ) -> "Classes":
        """The classes of labels as they occur.

        Args:
            found: labels, as often as they occur.
            label_words: None: the labels themselves, as strings. A mapping: label to word. A sequence: the
                labels themselves (if they are strings among the words); or the words of classes numbered from
                0; or else of the sorted labels, one each.

        Raises:
            TypeError: `label_words` is a single string.
            ValueError: a label has no word, or labels are continuous numbers.
        """
        if isinstance(label_words, str):
            raise TypeError(f"label_words must be a list or a mapping, got the single {label_words!r}")
        labels = _ordered(set(found))
        if isinstance(label_words, Mapping):
            named = _ordered(label_words)
            return cls(named, tuple(label_words[label] for label in named)).knowing(labels)
        if label_words is None:
            if len(labels) == 1:
                raise ValueError(
                    f"one class only: all labels are {labels[0]!r}; give label_words for all classes"
                )
            if labels and all(isinstance(label, float) for label in labels):
                check_classification_targets(np.array(labels))
            return cls(labels, tuple(map(str, labels)))
        words = tuple(label_words)
        by_word = cls(_ordered(words), _ordered(words))
        by_number = cls(tuple(range(len(words))), words)
        for classes in (by_word, by_number):
            same_kind = set(map(type, labels)) <= set(map(type, classes.labels))
            if same_kind and set(labels) <= set(classes.labels):
                return classes
        if len(labels) == len(words) and not set(labels) & set(words):
            return cls(labels, words)
        return (by_number if all(type(label) is int for label in labels) else by_word).knowing(labels)

    def knowing(self, labels: Iterable[Hashable]) -> "Classes":
        """These classes, once it is known that they have the labels."""
        for label in labels:
            if label not in self.labels:
                known = ", ".join(map(repr, self.labels))
                raise ValueError(f"unknown label {label!r}; known are {known}")
        return self

    def numbers(self, labels: Iterable[Hashable]) -> list[int]:
        """The class number of each label; -1 for a label that is none of the classes."""
        places = {label: i for i, label in enumerate(self.labels)}
        return [places.get(label, -1) for label in labels]

    def array(self) -> np.ndarray:
        """The labels as scikit-learn's `classes_`."""
        types = set(map(type, self.labels))
        if len(types) == 1 and types <= {bool, int, float, str}:
            return np.array(self.labels)
        return np.fromiter(self.labels, dtype=object, count=len(self.labels))
