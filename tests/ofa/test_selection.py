"""Learning rate and λ chosen by cross-validation on the shots alone."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import StratifiedKFold

import ofa
from ofa import FewShotClassifier, Job, OFAConfig
from ofa import selection as module
from ofa.selection import candidates, cross_validated
from ofa.train.step import NonFiniteError
from tests.ofa.conftest import LABELS, TEXTS, build_llama

WORDS = ("bad", "good")
TEMPLATE = "Review: {text}\nSentiment:"
CONFIG = OFAConfig(epochs=3, lr=5e-3, seed=7)


@pytest.fixture
def classifier(model_folder):
    return FewShotClassifier(
        model_folder, WORDS, TEMPLATE, CONFIG, dtype=torch.float32, progress=False, select="cv"
    )


def test_candidates_are_around_the_configuration_and_ln_tuning_is_among_them():
    found = [(c.lr, c.lambda_step, c.lambda_sharp) for c in candidates(OFAConfig())]
    expected = [(lr, *weights) for weights in ((0, 0), (1e-2, 1e-3)) for lr in (1e-3, 3e-3, 1e-2)]
    assert np.allclose(found, expected, rtol=1e-12)
    others = OFAConfig(lambda_step=0, lambda_sharp=0, lr=0.1, epochs=2, seed=5)
    assert len(candidates(others)) == 3, "nothing is trained twice"
    assert {replace(c, lr=0.1) for c in candidates(others)} == {others}


def test_the_numbers_are_those_of_a_cross_validation_by_hand(classifier, llama, tokenizer, task, shots):
    shots, labels = shots[:5], np.array(LABELS[:5])  # three of one class, two of the other: two folds
    found = cross_validated(llama, tokenizer, Job(task, shots, CONFIG), progress=False)
    folds = list(StratifiedKFold(2, shuffle=True, random_state=7).split(labels, labels))
    texts = np.array(TEXTS[:5])
    assert found.n_folds == 2 and len(found.rows) == 6
    for row, config in zip(found.rows, candidates(CONFIG), strict=True):
        assert [row[name] for name in ("lr", "lambda_step", "lambda_sharp")] == [
            config.lr,
            config.lambda_step,
            config.lambda_sharp,
        ]
        one = FewShotClassifier(build_llama(), WORDS, TEMPLATE, config, tokenizer, progress=False)
        losses, right = [], []
        for learnt, seen in folds:
            odds = clone(one).fit(texts[learnt], labels[learnt]).predict_proba(texts[seen])
            losses += (-np.log(odds[np.arange(len(seen)), labels[seen]])).tolist()
            right += (odds.argmax(1) == labels[seen]).tolist()
        expected = np.mean(losses), np.std(losses, ddof=1) / 5**0.5, np.mean(right)
        numbers = row["log_loss"], row["log_loss_stderr"], row["accuracy"]
        assert np.allclose(numbers, expected, rtol=1e-5) and row["error"] is None
        assert row["accuracy_stderr"] == pytest.approx(np.std(right, ddof=1) / 5**0.5)
    best = min(range(6), key=lambda i: found.rows[i]["log_loss"])
    assert found.config == candidates(CONFIG)[best]
    assert len({row["log_loss"] for row in found.rows}) == 6


def test_a_classifier_is_trained_on_all_shots_with_what_was_chosen(classifier, tmp_path):
    slow = replace(CONFIG, lr=2e-4)
    texts, labels = TEXTS * 3, LABELS * 3  # what a fold holds out it knows, so the fastest is the best
    classifier.set_params(config=slow).fit(texts, labels)
    best = min(classifier.selection_, key=lambda row: row["log_loss"])
    chosen = classifier.selected_
    assert chosen == replace(slow, **{name: best[name] for name in ("lr", "lambda_step", "lambda_sharp")})
    assert chosen != slow and classifier.config == slow
    alone = clone(classifier).set_params(config=chosen, select=None).fit(texts, labels)
    assert all(map(torch.equal, classifier.gamma_, alone.gamma_))
    assert alone.selected_ == chosen and alone.selection_ == []
    classifier.save(tmp_path)
    again = ofa.load(tmp_path, progress=False)
    assert again.config == again.selected_ == chosen and again.select is None
    assert np.array_equal(again.predict_proba(TEXTS), classifier.predict_proba(TEXTS))


def test_all_folds_of_all_candidates_are_one_set(classifier, monkeypatch, capfd):
    sets, fit_many = [], module.fit_many

    def spy(model, tokenizer, jobs, *more):
        sets.append(jobs)
        return fit_many(model, tokenizer, jobs, *more)

    monkeypatch.setattr(module, "fit_many", spy)
    classifier.fit(TEXTS, LABELS)
    assert [len(jobs) for jobs in sets] == [3 * 6] and capfd.readouterr().err == ""
    for job in sets[0]:
        assert len(job.shots) == 4 and sum(shot["label"] for shot in job.shots) == 2


def test_it_says_what_it_chose_and_why(classifier, capfd):
    classifier.set_params(progress=True).fit(TEXTS, LABELS)
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "chosen" in line]
    best, second = sorted(classifier.selection_, key=lambda row: row["log_loss"])[:2]
    assert line.startswith("chosen of 6 settings in 3 folds, as the lowest log-loss of shots held out: lr ")
    for row in (best, second):
        assert f"lr {row['lr']:g}, λ_J {row['lambda_step']:g}, λ_H {row['lambda_sharp']:g} (log-loss" in line
        assert f"{row['log_loss']:.3f} ± {row['log_loss_stderr']:.3f}, accuracy {row['accuracy']:.2f}" in line


def test_a_class_with_a_single_shot_is_refused_with_what_to_do(classifier):
    with pytest.raises(
        ValueError, match=r"class 'good' has a single shot.*at least two of each, or leave out"
    ):
        classifier.fit(["dull", "long", "warm"], [0, 0, 1])
    classifier.set_params(select=None).fit(["dull", "long", "warm"], [0, 0, 1])


@pytest.mark.parametrize("factors", [(0, 1), (1, 0)])
def test_what_can_t_be_trained_is_not_chosen(llama, tokenizer, task, shots, monkeypatch, factors):
    wild = OFAConfig(epochs=1, lambda_step=1e39, lambda_sharp=0)
    monkeypatch.setattr(module, "LAMBDA_FACTORS", factors)
    found = cross_validated(llama.float(), tokenizer, Job(task, shots, wild), progress=False)
    failed = [row for row in found.rows if row["lambda_step"]]
    assert len(failed) == 3 and all(row["log_loss"] is None and "is inf" in row["error"] for row in failed)
    assert found.config.lambda_step == 0 and "; 3 could not be trained" in str(found)
    tame = Job(task, shots, replace(wild, lambda_step=0))
    alone = cross_validated(llama, tokenizer, tame, progress=False).rows
    for row, expected in zip([row for row in found.rows if row not in failed], alone, strict=True):
        assert row["log_loss"] == pytest.approx(expected["log_loss"], rel=1e-4) and row["error"] is None


def test_where_nothing_can_be_trained_it_is_an_error(llama, tokenizer, task, shots, monkeypatch):
    monkeypatch.setattr(module, "LAMBDA_FACTORS", (1,))
    wild = OFAConfig(epochs=1, lambda_step=1e39, lambda_sharp=0)
    with pytest.raises(NonFiniteError, match="is inf"):
        cross_validated(llama.float(), tokenizer, Job(task, shots, wild), progress=False)


@pytest.mark.parametrize(
    ("numbers", "chosen"),
    [([(0.5, 0.2), (0.4, 0.1)], 1), ([(0.5, 0.5), (0.5, 0.9)], 1), ([(0.5, 0.5)] * 2, 0)],
)
def test_ties_are_broken_by_accuracy_then_by_order(
    numbers, chosen, llama, tokenizer, task, shots, monkeypatch
):
    monkeypatch.setattr(module, "LAMBDA_FACTORS", (1,))
    monkeypatch.setattr(module, "LR_FACTORS", (1, 3))
    given = iter(numbers)

    def fixed(scored):
        loss, accuracy = next(given)
        return {"log_loss": loss, "log_loss_stderr": 0.1, "accuracy": accuracy, "accuracy_stderr": 0.1}

    monkeypatch.setattr(module, "_numbers", fixed)
    config = OFAConfig(epochs=1, lambda_step=0, lambda_sharp=0)
    found = cross_validated(llama, tokenizer, Job(task, shots, config), progress=False)
    assert found.config == candidates(config)[chosen]


def test_one_hopeless_shot_makes_no_loss_infinite():
    numbers = module._numbers([({0: 0.0, 1: 1.0}, 0), ({0: 0.5, 1: 0.5}, 0)])
    assert math.isfinite(numbers["log_loss"]) and numbers["log_loss"] > 30 and numbers["accuracy"] == 0.5


def test_a_warm_start_is_not_where_folds_start(classifier):
    """What was learnt from the shots that a fold holds out would choose by heart."""
    first = clone(classifier).fit(TEXTS, LABELS).selection_
    classifier.set_params(warm_start=True).fit(TEXTS, LABELS)
    cold = classifier.result_.history[0]["loss"]
    assert classifier.fit(TEXTS, LABELS).selection_ == first
    assert classifier.result_.history[0]["loss"] < cold, "the training on all shots goes on"


def test_a_run_that_was_stopped_keeps_both_parts(classifier, tmp_path, monkeypatch):
    undisturbed = clone(classifier).fit(TEXTS, LABELS)
    place, fit = tmp_path / "run.safetensors", ofa.classifier.fit

    def stop(*args, **options):
        fit(*args, max_steps=2, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr("ofa.classifier.fit", stop)
    with pytest.raises(KeyboardInterrupt):
        classifier.fit(TEXTS, LABELS, place)
    assert {path.name for path in tmp_path.iterdir()} == {"run.safetensors", "run.selection.safetensors"}
    monkeypatch.setattr("ofa.classifier.fit", fit)
    classifier.fit(TEXTS, LABELS, place)
    assert classifier.selection_ == undisturbed.selection_
    assert all(map(torch.equal, classifier.gamma_, undisturbed.gamma_))


def test_only_cv_is_known(classifier):
    with pytest.raises(ValueError, match="select must be None or 'cv', got 'loo'"):
        classifier.set_params(select="loo").fit(TEXTS, LABELS)
