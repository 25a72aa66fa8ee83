"""Several trainings as one classifier."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.base import clone

import ofa
from ofa import FewShotClassifier, OFAConfig
from ofa import members as module
from ofa.members import mean_scores
from ofa.scoring import Scores
from ofa.train.step import NonFiniteError
from tests.ofa.conftest import LABELS, TEXTS

WORDS = ("bad", "good")
TEMPLATE = "Review: {text}\nSentiment:"
CONFIG = OFAConfig(epochs=4, lr=5e-2, batch_size=2, seed=3)


@pytest.fixture
def classifier(model_folder):
    return FewShotClassifier(
        model_folder, WORDS, TEMPLATE, CONFIG, dtype=torch.float32, progress=False, n_members=3
    )


@pytest.fixture
def singles(classifier):
    """The members as classifiers of their own."""
    seeds = [replace(CONFIG, seed=3 + i) for i in range(3)]
    alone = [clone(classifier).set_params(n_members=1, config=config) for config in seeds]
    return [one.fit(TEXTS, LABELS) for one in alone]


def near(a, b):
    return all(torch.allclose(x, y, rtol=0, atol=1e-4) for x, y in zip(a, b, strict=True))


def test_the_adapter_is_the_mean_of_the_members(classifier, singles, tmp_path):
    classifier.fit(TEXTS, LABELS)
    assert len(classifier.members_) == 3
    assert all(near(found, one.gamma_) for found, one in zip(classifier.members_, singles, strict=True))
    assert not near(classifier.members_[0], classifier.members_[1]), "they differ by their seeds"
    mean = [sum(of_norm) / 3 for of_norm in zip(*classifier.members_, strict=True)]
    assert all(torch.allclose(a, b, rtol=1e-6) for a, b in zip(classifier.gamma_, mean, strict=True))
    held = [norm.module.weight.detach() for norm in ofa.patch_model(classifier.model_).norms]
    assert all(map(torch.equal, held, classifier.gamma_))
    odds = classifier.predict_proba(TEXTS)
    classifier.save(tmp_path)
    again = ofa.load(tmp_path, progress=False)
    assert np.array_equal(again.predict_proba(TEXTS), odds) and again.n_members == 1
    assert np.array_equal(pickle.loads(pickle.dumps(classifier)).predict_proba(TEXTS), odds)


def test_the_history_is_the_mean_over_members(classifier, singles):
    result = classifier.fit(TEXTS, LABELS).result_
    assert len(result.history) == 12 and result.seconds > 0 and result.n_truncated == 0
    for name in ("loss", "cross_entropy", "step_ratio", "sharpness"):
        expected = np.mean([[row[name] for row in one.result_.history] for one in singles], axis=0)
        assert np.allclose([row[name] for row in result.history], expected, atol=1e-3)
    for name in ("step", "epoch", "lr"):
        assert [row[name] for row in result.history] == [row[name] for row in singles[0].result_.history]
    without = classifier.set_params(config=replace(CONFIG, lambda_sharp=0)).fit(TEXTS, LABELS)
    assert {row["sharpness"] for row in without.result_.history} == {None}


def test_probabilities_can_be_averaged_instead(classifier, singles, tmp_path):
    classifier.set_params(combine="probabilities").fit(TEXTS, LABELS)
    expected = np.mean([one.predict_proba(TEXTS) for one in singles], axis=0)
    odds = classifier.predict_proba(TEXTS)
    assert np.allclose(odds, expected, atol=1e-3) and np.allclose(odds.sum(1), 1)
    assert (classifier.predict(TEXTS) == expected.argmax(1)).all()
    again = pickle.loads(pickle.dumps(classifier))
    assert np.array_equal(again.predict_proba(TEXTS), odds)
    assert classifier.predict_proba([]).shape == (0, 2)
    with pytest.raises(ValueError, match="an adapter holds one γ, and this classifier predicts with 3"):
        classifier.save(tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    classifier.set_params(combine="gamma").save(tmp_path / "adapter")
    assert not np.allclose(classifier.predict_proba(TEXTS), odds, atol=1e-6)


def test_demonstrations_reach_every_member(classifier, singles):
    classifier.set_params(combine="probabilities").fit(TEXTS, LABELS)
    shots = [{"text": "dull", "label": 0}]
    expected = np.mean([one.label_scores(["warm"], shots).log_probs.exp().numpy() for one in singles], axis=0)
    assert np.allclose(classifier.label_scores(["warm"], shots).log_probs.exp(), expected, atol=1e-3)


def test_means_of_scores():
    odds = torch.tensor([[[0.2, 0.8]], [[0.6, 0.4]]], dtype=torch.float64)
    found = mean_scores([Scores(given.log(), 4) for given in odds])
    assert torch.allclose(found.log_probs.exp(), odds.mean(0)) and found.n_truncated == 4
    sure = torch.tensor([[-1e4, 0.0]])
    assert torch.equal(mean_scores([Scores(sure, 0)]).log_probs, sure)
    assert torch.isfinite(mean_scores([Scores(sure, 0)] * 2).log_probs).all()


def test_members_go_with_a_selection(classifier, monkeypatch):
    sizes, fit_many = [], module.fit_many

    def spy(model, tokenizer, jobs, *more):
        sizes.append([job.config.seed for job in jobs])
        return fit_many(model, tokenizer, jobs, *more)

    monkeypatch.setattr(module, "fit_many", spy)
    classifier.set_params(select="cv").fit(TEXTS, LABELS)
    assert sizes == [[3, 4, 5]] and classifier.selected_ in ofa.selection.candidates(CONFIG)
    alone = clone(classifier).set_params(select=None, config=classifier.selected_).fit(TEXTS, LABELS)
    assert near(alone.gamma_, classifier.gamma_)


def test_a_warm_start_takes_every_member_on_from_the_mean(classifier):
    classifier.set_params(warm_start=True).fit(TEXTS, LABELS)
    mean = classifier.gamma_
    classifier.set_params(config=replace(CONFIG, lr=1e-9)).fit(TEXTS, LABELS)
    assert all(near(found, mean) for found in classifier.members_)


def test_after_members_a_single_training_predicts_alone(classifier, singles):
    classifier.set_params(combine="probabilities").fit(TEXTS, LABELS)
    classifier.set_params(n_members=1).fit(TEXTS, LABELS)
    assert len(classifier.members_) == 1
    assert np.array_equal(classifier.predict_proba(TEXTS), singles[0].predict_proba(TEXTS))


def test_a_member_that_fails_fails_the_fit(classifier):
    with pytest.raises(NonFiniteError, match="is inf"):
        classifier.set_params(config=replace(CONFIG, lambda_step=1e39)).fit(TEXTS, LABELS)
    assert not hasattr(classifier, "gamma_")


def test_the_set_is_kept_where_the_run_is(classifier, tmp_path, monkeypatch):
    places, fit_many = [], module.fit_many

    def spy(model, tokenizer, jobs, progress, checkpoint):
        places.append(checkpoint)
        return fit_many(model, tokenizer, jobs, progress, checkpoint)

    monkeypatch.setattr(module, "fit_many", spy)
    classifier.fit(TEXTS, LABELS, tmp_path / "run.safetensors")
    assert places == [tmp_path / "run.safetensors"] and places[0].exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_members": 0}, "n_members must be an integer of at least 1, got 0"),
        ({"n_members": 2.5}, "n_members must be an integer of at least 1, got 2.5"),
        ({"combine": "votes"}, r"combine must be one of \('gamma', 'probabilities'\), got 'votes'"),
    ],
)
def test_what_is_not_known_is_refused(classifier, options, message):
    with pytest.raises(ValueError, match=message):
        classifier.set_params(**options).fit(TEXTS, LABELS)
