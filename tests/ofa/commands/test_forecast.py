import warnings

import pytest
import torch

from ofa import FewShotClassifier
from ofa.commands import forecast
from tests.ofa.conftest import build_llama


@pytest.fixture
def classifier(tokenizer):
    return FewShotClassifier(
        build_llama(torch.float32),
        ("bad", "good"),
        "Review: {text}\nIs:",
        tokenizer=tokenizer,
        progress=False,
    )


@pytest.fixture
def clock(monkeypatch):
    """Ten seconds pass between two looks at it."""
    times = iter(range(0, 1000, 10))
    monkeypatch.setattr(forecast.time, "perf_counter", lambda: float(next(times)))


def test_the_first_rows_tell_the_time_of_all_by_their_tokens(classifier, clock):
    assert forecast.seconds_to_score(classifier, ["dull"] * 320) == 100
    short, long = (len(classifier.tokenizer_(text)["input_ids"]) for text in ("dull", "x y z w"))
    expected = 10 * (1 + long / short)
    found = forecast.seconds_to_score(classifier, ["dull"] * 32 + ["x y z w"] * 32)
    assert found == pytest.approx(expected)


def test_cut_texts_count_as_long_as_the_context_and_are_told_once(classifier, clock):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert forecast.seconds_to_score(classifier, ["long " * 100] * 64) == 20


def test_few_texts_are_not_timed(classifier, monkeypatch):
    monkeypatch.setattr(forecast.time, "perf_counter", None)
    assert forecast.seconds_to_score(classifier, ["dull"] * 63) == 0
    assert forecast.seconds_to_score(classifier, []) == 0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(61, "1 minute"), (100, "2 minutes"), (3600, "60 minutes"), (7200, "2.0 hours"), (9000, "2.5 hours")],
)
def test_in_words(seconds, words):
    assert forecast.in_words(seconds) == words
