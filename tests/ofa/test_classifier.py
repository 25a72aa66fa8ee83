import json

import numpy as np
import pytest
import torch

import ofa
from ofa import FewShotClassifier, OFAConfig
from tests.ofa.conftest import LABELS, TEXTS

WORDS = ("bad", "good")
TEMPLATE = "Review: {text}\nSentiment:"
CONFIG = OFAConfig(epochs=20, lr=5e-2)


@pytest.fixture
def classifier(model_folder):
    return FewShotClassifier(model_folder, WORDS, TEMPLATE, CONFIG, dtype=torch.float32, progress=False)


def test_learns_its_shots_by_number_or_by_word(classifier):
    assert classifier.fit(TEXTS, LABELS) is classifier
    by_number = classifier.predict(TEXTS)
    assert (by_number == np.array(LABELS)).all()
    classifier.fit(TEXTS, [WORDS[label] for label in LABELS])
    assert classifier.predict(TEXTS).tolist() == [WORDS[label] for label in LABELS]
    assert len(classifier.result_.history) == 40


def test_probabilities_follow_the_classes(classifier):
    classifier.fit(TEXTS, LABELS)
    probabilities = classifier.predict_proba(TEXTS)
    assert probabilities.shape == (6, 2) and np.allclose(probabilities.sum(1), 1)
    assert (probabilities.argmax(1) == classifier.predict(TEXTS)).all()
    assert classifier.predict([]).shape == (0,) and classifier.predict_proba([]).shape == (0, 2)


@pytest.mark.parametrize("by_word", [True, False])
def test_saved_and_loaded_it_is_the_same(classifier, tmp_path, by_word):
    classifier.fit(TEXTS, [WORDS[label] for label in LABELS] if by_word else LABELS)
    classifier.save(tmp_path / "adapter")
    again = ofa.load(tmp_path / "adapter", progress=False)
    assert again.task == classifier.task and again.config == CONFIG
    assert again.classes_ == classifier.classes_ and again.model.dtype == torch.float32
    assert np.array_equal(again.predict_proba(TEXTS), classifier.predict_proba(TEXTS))
    assert (again.predict(TEXTS) == classifier.predict(TEXTS)).all()


@pytest.mark.parametrize(
    ("texts", "labels", "message"),
    [
        (["a"], [0, 1], "same length, got 1 and 2"),
        (["a", "b"], ["bad", "fair"], "unknown label 'fair'; known are 'bad', 'good'"),
        (["a", "b"], [0, 2], "unknown label 2; known are 0, 1"),
        (["a", ""], [0, 1], "a text is empty"),
        ([], [], "at least one labelled example"),
    ],
)
def test_bad_examples_are_refused(classifier, texts, labels, message):
    with pytest.raises(ValueError, match=message):
        classifier.fit(texts, labels)


def test_colliding_words_are_found_before_any_training(model_folder):
    with pytest.raises(ValueError, match="'good' and 'goodness' start with the same token"):
        FewShotClassifier(model_folder, ("good", "goodness"), TEMPLATE)


def test_a_model_object_needs_its_tokenizer(llama, tokenizer):
    with pytest.raises(ValueError, match="needs its tokenizer"):
        FewShotClassifier(llama, WORDS, TEMPLATE)
    given = FewShotClassifier(llama, WORDS, TEMPLATE, tokenizer=tokenizer, progress=False)
    assert given.predict_proba(["fine"]).shape == (1, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("config"), "ofa_config.json is damaged"),
        (lambda r: r["config"].update(nonsense=1), "ofa_config.json is damaged"),
        (lambda r: r["model"].update(name=""), "without a name"),
    ],
)
def test_a_damaged_record_is_one_error(classifier, tmp_path, change, message):
    classifier.save(tmp_path)
    record = json.loads((tmp_path / "ofa_config.json").read_text())
    change(record)
    (tmp_path / "ofa_config.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=message):
        ofa.load(tmp_path)
