import json

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

import ofa
from ofa import FewShotClassifier, OFAConfig, Task, fit
from ofa.scoring import score
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
    assert classifier.classes_.tolist() == list(WORDS) and classifier.task_.label_words == WORDS


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
    assert again.task_ == classifier.task_ and again.config == CONFIG
    assert again.classes_.tolist() == classifier.classes_.tolist() and again.model_.dtype == torch.float32
    assert np.array_equal(again.predict_proba(TEXTS), classifier.predict_proba(TEXTS))
    assert (again.predict(TEXTS) == classifier.predict(TEXTS)).all()


@pytest.mark.parametrize(
    ("texts", "labels", "message"),
    [
        (["a"], [0, 1], "same length, got 1 and 2"),
        (["a", "b"], ["bad", "fair"], "unknown label 'fair'; known are 'bad', 'good'"),
        (["a", "b", "c"], [0, 1, 2], "unknown label 2; known are 0, 1"),
        (["a", ""], [0, 1], "a text is empty"),
        ([], [], "at least one labelled example"),
    ],
)
def test_bad_examples_are_refused(classifier, texts, labels, message):
    with pytest.raises(ValueError, match=message):
        classifier.fit(texts, labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"whole_words": False}, "'good' and 'goodness' start with the same token"),
        ({"label_words": ("good", "good")}, "'good' and 'good' start with the same token"),
        ({"template": "no field"}, "exactly once"),
        ({"tokenizer": None}, "needs its tokenizer"),
        ({"dtype": torch.float32}, "keeps its own dtype"),
    ],
)
def test_what_can_t_be_trained_is_found_before_any_training(llama, tokenizer, options, message):
    settings = {"label_words": ("good", "goodness"), "template": TEMPLATE, "tokenizer": tokenizer, **options}
    with pytest.raises(ValueError, match=message):
        FewShotClassifier(llama, **settings).fit(TEXTS, LABELS)
    assert all(p.requires_grad for p in llama.parameters()), "the model was patched"


def gammas(model):
    return [norm.module.weight.detach().clone() for norm in ofa.patch_model(model).norms]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_every_fit_starts_from_the_base_model(classifier, model_folder):
    classifier.fit(TEXTS, LABELS)
    first, history = classifier.gamma_, classifier.result_.history
    assert classifier.fit(TEXTS, LABELS).result_.history == history and same(classifier.gamma_, first)
    fresh = clone(classifier).fit(TEXTS, LABELS[::-1]).gamma_
    assert same(classifier.fit(TEXTS, LABELS[::-1]).gamma_, fresh) and not same(fresh, first)


def test_warm_start_goes_on(classifier):
    classifier.set_params(warm_start=True, config=OFAConfig(epochs=2, lr=5e-2)).fit(TEXTS, LABELS)
    first = classifier.result_.history
    assert classifier.fit(TEXTS, LABELS).result_.history[0]["loss"] < first[0]["loss"]


@pytest.mark.parametrize("copied", [False, True], ids=["made anew", "cloned"])
def test_classifiers_of_one_model_keep_their_own_gamma(llama, tokenizer, tmp_path, copied):
    first = FewShotClassifier(llama.float(), WORDS, TEMPLATE, CONFIG, tokenizer, progress=False)
    zero_shot = first.label_scores(TEXTS).log_probs
    second = clone(first) if copied else FewShotClassifier(**first.get_params())
    expected = first.fit(TEXTS, LABELS).predict_proba(TEXTS)
    found = second.fit(TEXTS, LABELS[::-1]).predict_proba(TEXTS)
    assert second.model is first.model and not np.allclose(found, expected, atol=1e-2)
    assert np.array_equal(first.predict_proba(TEXTS), expected)
    assert np.array_equal(second.predict_proba(TEXTS), found)
    assert same(gammas(first.model_), first.gamma_) and same(gammas(second.model_), second.gamma_)
    first.save(tmp_path)
    assert same([norm.module.weight for norm in ofa.load_adapter(llama, tmp_path).norms], first.gamma_)
    third = clone(first)
    torch.testing.assert_close(third.label_scores(TEXTS).log_probs, zero_shot, rtol=1e-4, atol=1e-4)
    third.fit(TEXTS, LABELS)
    assert np.array_equal(third.predict_proba(TEXTS), expected)


def test_random_labels_can_t_be_learnt_by_hand_made_folds(llama, tokenizer):
    """What one fold learnt would tell the next one its test labels."""
    classifier = FewShotClassifier(llama.float(), WORDS, TEMPLATE, CONFIG, tokenizer, progress=False)
    folds = [(TEXTS[i:] + TEXTS[:i], LABELS[i:] + LABELS[:i]) for i in (0, 2, 4)]
    by_hand = [classifier.fit(x[:4], y[:4]).predict_proba(x[4:]) for x, y in folds]
    afresh = [clone(classifier).fit(x[:4], y[:4]).predict_proba(x[4:]) for x, y in folds]
    assert np.array_equal(by_hand, afresh)


def test_a_checkpoint_is_gone_on_from_also_after_another_fit(classifier, tmp_path, monkeypatch):
    undisturbed = clone(classifier).fit(TEXTS, LABELS).gamma_

    def stop(*args, **options):
        return fit(*args, max_steps=15, **options)

    monkeypatch.setattr("ofa.classifier.fit", stop)
    classifier.fit(TEXTS, LABELS, tmp_path / "run.safetensors")
    monkeypatch.setattr("ofa.classifier.fit", fit)
    classifier.fit(TEXTS, LABELS[::-1])
    classifier.fit(TEXTS, LABELS, tmp_path / "run.safetensors")
    assert same(classifier.gamma_, undisturbed)


@pytest.mark.parametrize("call", ["predict", "predict_proba", "label_scores"])
def test_before_fit_there_is_nothing_to_predict(llama, tokenizer, call):
    unfitted = FewShotClassifier(llama, None, TEMPLATE, tokenizer=tokenizer)
    with pytest.raises(NotFittedError):
        getattr(unfitted, call)(["fine"])


def test_before_fit_there_is_nothing_to_score_or_save(classifier, tmp_path):
    with pytest.raises(NotFittedError):
        classifier.score(["fine"], ["good"])
    with pytest.raises(NotFittedError):
        classifier.save(tmp_path)


def test_label_words_have_scores_before_fit(llama, tokenizer):
    given = FewShotClassifier(
        llama, {True: "good", False: "bad"}, TEMPLATE, tokenizer=tokenizer, progress=False
    )
    plain = score(llama, tokenizer, Task("plain", TEMPLATE, WORDS), TEXTS)
    assert torch.equal(given.label_scores(TEXTS).log_probs, plain.log_probs)
    assert all(p.requires_grad for p in llama.parameters()), "the model was patched"


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ((False, True), WORDS),
        ((-1, 1), WORDS),
        ((0.5, 1.5), {0.5: "bad", 1.5: "good"}),
        (("neg", "pos"), WORDS),
        (("bad", "good"), None),
    ],
)
def test_labels_of_every_json_kind_are_saved(llama, tokenizer, model_folder, tmp_path, labels, words):
    classifier = FewShotClassifier(model_folder, words, TEMPLATE, CONFIG, dtype=torch.float32, progress=False)
    classifier.fit(TEXTS, [labels[label] for label in LABELS]).save(tmp_path)
    again = ofa.load(tmp_path, progress=False)
    assert [*map(repr, again.classes_.tolist())] == [*map(repr, labels)]
    assert again.predict(TEXTS).tolist() == [labels[label] for label in LABELS]
    assert again.score(TEXTS, [labels[label] for label in LABELS]) == 1
    again.fit(TEXTS, [labels[label] for label in LABELS])


def test_labels_that_json_can_t_hold_are_refused_by_name(classifier, tmp_path):
    pairs = [("a", 0), ("a", 1)]
    classifier.set_params(label_words=dict(zip(pairs, WORDS, strict=True)))
    classifier.fit(TEXTS, [pairs[label] for label in LABELS])
    assert classifier.predict(TEXTS).tolist() == [pairs[label] for label in LABELS]
    assert classifier.score(TEXTS, [pairs[label] for label in LABELS]) == 1
    with pytest.raises(ValueError, match=r"the label \('a', 0\) is a tuple"):
        classifier.save(tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("config"), "ofa_config.json is damaged"),
        (lambda r: r["config"].update(nonsense=1), "ofa_config.json is damaged"),
        (lambda r: r.update(labels=["bad"]), "ofa_config.json is damaged"),
        (lambda r: r.update(labels=[[], []]), "ofa_config.json is damaged"),
        (lambda r: r["model"].update(name=""), "without a name"),
    ],
)
def test_a_damaged_record_is_one_error(classifier, tmp_path, change, message):
    classifier.set_params(config=OFAConfig(epochs=1)).fit(TEXTS, LABELS).save(tmp_path)
    record = json.loads((tmp_path / "ofa_config.json").read_text())
    change(record)
    (tmp_path / "ofa_config.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=message):
        ofa.load(tmp_path)
