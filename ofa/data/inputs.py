"""Texts and labels as users hand them over: lists, arrays, columns of a table."""

from collections.abc import Hashable, Mapping, Set
from typing import Any

import numpy as np


def _column(values: Any, what: str) -> list:
    """One column of values as a list; `what` names them in errors."""
    if isinstance(values, (str, bytes)):
        raise TypeError(f"{what} must be a list, got the single {values!r}; give a list: [{values!r}]")
    if isinstance(values, (Mapping, Set)):
        raise TypeError(f"{what} must be a list, got a {type(values).__name__}; give its values as a list")
    if hasattr(values, "to_numpy"):  # a column of a table of pandas or polars
        values = values.to_numpy()
    if isinstance(values, np.ndarray):
        if values.ndim not in (1, 2) or values.shape[1:] not in ((), (1,)):
            raise ValueError(f"{what} must be one column, got the shape {values.shape}; select a column")
        return values.ravel().tolist()
    try:
        return list(values)
    except TypeError:
        raise TypeError(f"{what} must be a list, got {values!r} ({type(values).__name__})") from None


def as_texts(values: Any) -> list[str]:
    """A list of texts from a list, tuple, generator, array or column of a table.

    Raises:
        TypeError: a single string or a mapping, or an entry that is no string (its place is named).
        ValueError: an array or a table of more than one column.
    """
    texts = _column(values, "texts")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(
                f"text {i} is {text!r} ({type(text).__name__}); texts must be strings: convert it, fill it "
                "in or drop it"
            )
    return [str(text) for text in texts]  # numpy has a string type of its own


def as_labels(values: Any) -> list[Hashable]:
    """A list of labels from what `as_texts` takes; numpy's and torch's numbers become Python's.

    Raises:
        TypeError: a single string or a mapping, or a label that can't be hashed.
        ValueError: a missing label (None or NaN), or more than one column.
    """
    labels = [v.item() if getattr(v, "ndim", None) == 0 else v for v in _column(values, "labels")]
    for i, label in enumerate(labels):
        if not isinstance(label, Hashable):
            raise TypeError(f"label {i} is {label!r} ({type(label).__name__}), which can't be hashed")
        if label is None or label != label:
            raise ValueError(f"label {i} is missing, got {label!r} (None or NaN); fill it in or drop the row")
    return labels
