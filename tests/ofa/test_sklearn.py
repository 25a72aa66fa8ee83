"""What scikit-learn asks of a classifier."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks
from sklearn.utils.validation import validate_data

from ofa import FewShotClassifier, OFAConfig, models
from tests.ofa.conftest import LABELS, TEXTS

WORDS = ("bad", "good")
TEMPLATE = "Review: {text}\nSentiment:"
CONFIG = OFAConfig(epochs=20, lr=5e-2)
MANY, MANY_LABELS = TEXTS * 3, np.array(LABELS * 3)


class OnNumbers(FewShotClassifier):
    """Rows of numbers written as texts, so that scikit-learn's checks, which give numbers, apply."""

    def fit(self, X, y):
        X, y = validate_data(self, X, y)
        return super().fit(self.written(X), y)

    def label_scores(self, X, *args):
        return super().label_scores(self.written(validate_data(self, X, reset=False)), *args)

    @staticmethod
    def written(rows):
        return [" ".join(f"{number:.1f}" for number in row) for row in rows]

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        tags.classifier_tags.poor_score = True  # what few epochs make of a random model
        return tags


def test_the_contract_holds(model_folder):
    config = OFAConfig(epochs=1, lambda_step=0, lambda_sharp=0, batch_size=None)
    settings = {"template": TEMPLATE, "config": config, "dtype": torch.float32, "progress": False}
    with pytest.warns(UserWarning, match="start with the same token"):  # numbers as label words
        found = estimator_checks.check_estimator(
            OnNumbers(model_folder, **settings), on_fail=None, on_skip=None
        )
    failed = {check["check_name"]: check["exception"] for check in found if check["status"] == "failed"}
    assert not failed and len(found) > 40


def test_texts_are_said_to_be_what_it_takes(model_folder):
    given = FewShotClassifier(model_folder)
    tags = given.__sklearn_tags__()
    assert tags.input_tags.string and not tags.input_tags.two_d_array
    assert tags.estimator_type == "classifier" and tags.target_tags.required
    # the only one of scikit-learn's checks for what does not take rows of numbers
    estimator_checks.check_estimator_cloneable("FewShotClassifier", given)


def test_nothing_is_loaded_or_checked_before_fit():
    given = FewShotClassifier("no such model", "no words", "no field")
    assert clone(given).get_params() == given.get_params()
    with pytest.raises(TypeError, match="label_words"):
        given.fit(TEXTS, LABELS)


@pytest.fixture
def classifier(model_folder):
    return FewShotClassifier(model_folder, WORDS, TEMPLATE, CONFIG, dtype=torch.float32, progress=False)


@pytest.mark.parametrize("by_name", [True, False])
def test_clones_share_the_loaded_model(llama, tokenizer, classifier, monkeypatch, by_name):
    if not by_name:
        classifier.set_params(model=llama.float(), tokenizer=tokenizer, dtype=None)
    loads, load = [], models.load
    monkeypatch.setattr(models, "load", lambda *args: loads.append(args) or load(*args))
    copies = [clone(classifier) for _ in range(2)]
    assert copies[0].fit(TEXTS, LABELS).model_ is copies[1].fit(TEXTS, LABELS).model_
    assert len(loads) == by_name and not hasattr(classifier, "classes_")


def test_a_name_is_what_is_pickled(classifier):
    classifier.fit(TEXTS, LABELS)
    written = pickle.dumps(classifier)
    assert len(written) < 20_000
    assert np.array_equal(pickle.loads(written).predict_proba(TEXTS), classifier.predict_proba(TEXTS))


@pytest.mark.parametrize("names", [{0: "neg", 1: "pos"}, {0: "z", 1: "a"}, {0: 0, 1: 1}, {0: False, 1: True}])
def test_scores_are_accuracies_whatever_the_labels(classifier, names):
    y = [names[label] for label in LABELS]
    classifier.set_params(label_words={names[0]: "bad", names[1]: "good"}).fit(TEXTS, y)
    assert classifier.classes_.tolist() == sorted(names.values())
    assert classifier.score(TEXTS, y) == classifier.score(pd.Series(TEXTS), pd.Series(y)) == 1
    wrong = [y[1], *y[1:]]
    assert classifier.score(TEXTS, wrong) == pytest.approx(5 / 6)
    assert classifier.score(TEXTS, wrong, sample_weight=[5, 1, 1, 1, 1, 1]) == pytest.approx(0.5)
    assert classifier.score(TEXTS, ["unknown", *y[1:]]) == pytest.approx(5 / 6)


def test_cross_validation(classifier):
    scores = cross_val_score(classifier, np.array(MANY), MANY_LABELS, cv=3, scoring="roc_auc")
    assert (scores == 1).all()
    probabilities = cross_val_predict(classifier, MANY, MANY_LABELS, cv=3, method="predict_proba")
    assert (probabilities.argmax(1) == MANY_LABELS).all()


def test_labels_of_chance_are_found_by_chance(classifier):
    """A fold that went on from another's γ would have seen its own test labels."""
    texts = [f"{text} {i}" for i, text in enumerate(TEXTS * 4)]
    labels = np.random.default_rng(0).permutation([0, 1] * 12)
    assert 0.2 <= cross_val_score(classifier, texts, labels, cv=4).mean() <= 0.8


def test_grid_search(classifier):
    grid = {"config": [OFAConfig(epochs=1, lr=1e-6), CONFIG], "template": [TEMPLATE]}
    search = GridSearchCV(classifier, grid, cv=3).fit(MANY, MANY_LABELS)
    assert search.best_params_["config"] == CONFIG and search.score(TEXTS, LABELS) == 1


def test_pipeline(classifier):
    pipeline = Pipeline(
        [("lower", FunctionTransformer(lambda x: [t.lower() for t in x])), ("ofa", classifier)]
    )
    pipeline.set_params(ofa__config=OFAConfig(epochs=30, lr=5e-2)).fit(TEXTS, LABELS)
    shouted = [text.upper() for text in TEXTS]
    assert pipeline.predict(shouted).tolist() == list(LABELS) and pipeline.score(shouted, LABELS) == 1


@pytest.mark.parametrize("words", [WORDS, WORDS[::-1]])
def test_calibration(classifier, words):
    named = np.array(words)[MANY_LABELS]
    classifier.set_params(label_words=words)
    calibrated = CalibratedClassifierCV(classifier, cv=3).fit(np.array(MANY), named)
    probabilities = calibrated.predict_proba(np.array(TEXTS))
    assert (calibrated.classes_[probabilities.argmax(1)] == named[:6]).all()


def test_selection_and_members_are_parameters_like_others(classifier):
    options = {"select": "cv", "n_members": 2, "combine": "probabilities"}
    given = clone(classifier.set_params(**options))
    assert options.items() <= given.get_params().items()
    assert not [name for name in vars(given) if name.endswith("_")]


def test_grid_search_over_members_and_selections(classifier):
    classifier.set_params(config=OFAConfig(epochs=4, lr=2e-2))
    grid = {"n_members": [1, 2], "select": [None, "cv"], "combine": ["probabilities"]}
    search = GridSearchCV(classifier, grid, cv=2, error_score="raise").fit(MANY, MANY_LABELS)
    assert len(search.cv_results_["params"]) == 4 and search.score(TEXTS, LABELS) == 1
    best = search.best_estimator_
    assert len(best.members_) == search.best_params_["n_members"]
    copied = pickle.loads(pickle.dumps(best))
    assert np.array_equal(copied.predict_proba(TEXTS), best.predict_proba(TEXTS))
    assert copied.selected_ == best.selected_ and copied.selection_ == best.selection_


def test_classifiers_of_one_model_keep_their_own_members(llama, tokenizer):
    first = FewShotClassifier(
        llama.float(), WORDS, TEMPLATE, OFAConfig(epochs=4, lr=5e-2), tokenizer, progress=False,
        select="cv", n_members=2, combine="probabilities",
    )  # fmt: skip
    second = clone(first)
    expected = first.fit(TEXTS, LABELS).predict_proba(TEXTS)
    found = second.fit(TEXTS, LABELS[::-1]).predict_proba(TEXTS)
    assert second.model is first.model and not np.allclose(found, expected, atol=1e-2)
    assert np.array_equal(first.predict_proba(TEXTS), expected)
    assert np.array_equal(second.predict_proba(TEXTS), found)
