import re

import numpy as np
import pandas as pd
import pytest
import torch

from ofa import FewShotClassifier, OFAConfig, scoring
from ofa.data.inputs import as_labels, as_texts
from tests.ofa.conftest import LABELS, TEXTS, build_llama

TEMPLATE = "Review: {text}\nSentiment:"
NONE = TypeError, "text 1 is None (NoneType); texts must be strings"
COLUMNS = ValueError, "texts must be one column, got the shape (2, 2); select a column"
CASES = {
    "list": (["a", "b"], None),
    "tuple": (("a", "b"), None),
    "generator": (iter, None),
    "array of str": (np.array(["a", "b"]), None),
    "array of object": (np.array(["a", "b"], dtype=object), None),
    "[n, 1] array": (np.array([["a"], ["b"]]), None),
    "numpy's strings": ([np.str_("a"), np.str_("b")], None),
    "series": (pd.Series(["a", "b"], index=[5, 3]), None),
    "one-column table": (pd.DataFrame({"x": ["a", "b"]}), None),
    "string": ("great", (TypeError, "got the single 'great'; give a list: ['great']")),
    "bytes": (b"great", (TypeError, "got the single b'great'; give a list")),
    "mapping": ({"a": 1}, (TypeError, "must be a list, got a dict")),
    "set": ({"a"}, (TypeError, "must be a list, got a set")),
    "number": (3, (TypeError, "must be a list, got 3 (int)")),
    "nothing": (None, (TypeError, "must be a list, got None (NoneType)")),
    "0-d array": (np.array("a"), (ValueError, "one column, got the shape ()")),
    "two columns": (np.array([["a", "b"]] * 2), COLUMNS),
    "two-column table": (pd.DataFrame({"x": ["a", "b"], "y": ["c", "d"]}), COLUMNS),
    "a None": (["a", None], NONE),
    "a None in a series": (pd.Series(["a", None], dtype=object), NONE),
    "a NaN": (["a", float("nan")], (TypeError, "text 1 is nan (float); texts must be strings")),
    "pandas' missing": (pd.Series(["a", None], dtype="string"), (TypeError, "text 1 is ")),
    "some bytes": ([b"a", "b"], (TypeError, "text 0 is b'a' (bytes)")),
    "a number": (["a", 7], (TypeError, "text 1 is 7 (int)")),
    "a list": (["a", ["b"]], (TypeError, "text 1 is ['b'] (list)")),
    "array of numbers": (np.ones(2), (TypeError, "text 0 is 1.0 (float)")),
}


def case(name):
    value, expected = CASES[name]
    return (text for text in ("a", "b")) if value is iter else value, expected


def outcome(value, expected, call):
    if expected is None:
        return call(value)
    kind, message = expected
    with pytest.raises(kind, match=re.escape(message)):
        call(value)
    return None


@pytest.mark.parametrize("name", CASES)
def test_texts(name):
    value, expected = case(name)
    found = outcome(value, expected, as_texts)
    assert expected or (found == ["a", "b"] and {*map(type, found)} == {str})


@pytest.fixture(scope="module")
def fitted(tokenizer):
    config = OFAConfig(epochs=1)
    classifier = FewShotClassifier(build_llama(torch.float32), ("bad", "good"), TEMPLATE, config, tokenizer)
    return classifier.set_params(progress=False).fit(TEXTS, LABELS)


CALLS = {
    "fit": lambda c, x: len(c.fit(x, [0, 1]).result_.history) == 1,
    "predict": lambda c, x: c.predict(x).shape == (2,),
    "predict_proba": lambda c, x: c.predict_proba(x).shape == (2, 2),
    "score": lambda c, x: 0 <= c.score(x, [0, 1]) <= 1,
    "label_scores": lambda c, x: c.label_scores(x).log_probs.shape == (2, 2),
    "ofa.scoring.score": lambda c, x: (
        scoring.score(c.model_, c.tokenizer_, c.task_, x).log_probs.shape == (2, 2)
    ),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", CASES)
def test_every_method_takes_and_refuses_the_same(fitted, call, name):
    value, expected = case(name)
    assert outcome(value, expected, lambda x: CALLS[call](fitted, x)) in (True, None)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (["a", "b"], ["a", "b"]),
        (np.array([0, 1]), [0, 1]),
        (torch.tensor([0, 1]), [0, 1]),
        (list(torch.tensor([0, 1])), [0, 1]),
        ([np.bool_(True), np.float32(0.5)], [True, 0.5]),
        (pd.Series(["a", "b"], dtype="category"), ["a", "b"]),
        ([("a", 1), ("b", 2)], [("a", 1), ("b", 2)]),
    ],
)
def test_labels(value, expected):
    found = as_labels(value)
    assert found == expected and [*map(type, found)] == [*map(type, expected)]


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("good", TypeError, "labels must be a list, got the single 'good'"),
        ({"a": 1}, TypeError, "labels must be a list, got a dict"),
        (["a", None], ValueError, "label 1 is missing, got None"),
        ([0.0, float("nan")], ValueError, "label 1 is missing, got nan"),
        ([[1], [2]], TypeError, "label 0 is [1] (list), which can't be hashed"),
        (np.eye(2), ValueError, "labels must be one column"),
    ],
)
def test_labels_that_are_none(value, error, message):
    with pytest.raises(error, match=re.escape(message)):
        as_labels(value)
