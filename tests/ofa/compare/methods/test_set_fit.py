import os
import random
import sys

import datasets
import numpy as np
import pytest
import torch

from ofa.compare import encoder
from ofa.compare.methods import missing, set_fit
from ofa.compare.methods.set_fit import SetFit
from ofa.data.task import Task
from tests.ofa.compare.methods.test_lora import setting_of, state_of
from tests.ofa.conftest import TEXTS


def test_without_its_package_it_is_missing_and_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "setfit", None)
    monkeypatch.setattr(set_fit, "missing_encoder", lambda: pytest.fail("the encoder was asked for"))
    assert missing(SetFit()).endswith('install it with: pip install "setfit>=1.2"')


@pytest.fixture
def setfit():
    return pytest.importorskip("setfit", reason="setfit is not installed: pip install setfit")


@pytest.fixture
def setting(llama, tokenizer, task, shots, tiny_encoder):
    return setting_of(llama, tokenizer, task, shots, max_steps=4)


def test_it_learns_and_scores_as_the_package_does(setfit, setting, monkeypatch):
    trainers = []

    class Kept(setfit.Trainer):
        def __init__(self, *args):
            super().__init__(*args)
            trainers.append(self)

    monkeypatch.setattr(setfit, "Trainer", Kept)
    with SetFit().fit(setting) as fitted:
        scores = fitted.score([*TEXTS, "story " * 300])
    trained = trainers[0].model.predict_proba([*TEXTS, "story " * 300], as_numpy=True)
    np.testing.assert_allclose(scores.log_probs.exp(), trained, rtol=1e-4, atol=1e-5)
    assert scores.n_truncated == 1
    untrained = encoder.load_encoder(torch.device("cpu"))
    n_weights = sum(weight.numel() for weight in untrained.model.parameters())
    assert fitted.n_steps == 4 and fitted.n_trainable == n_weights + 16 + 1
    assert fitted.notes == {"encoder": encoder.NAME, "encoder_sha256": encoder.SHA256}
    body = trainers[0].model.model_body[0].auto_model
    pairs = zip(untrained.model.parameters(), body.parameters(), strict=True)
    assert any((before != after).any() for before, after in pairs), "the encoder was trained"


def test_the_seed_alone_decides_and_no_cap_means_every_pair(setfit, setting):
    def scored(**options):
        given = setting_of(setting.model, setting.tokenizer, setting.task, setting.shots, **options)
        with SetFit().fit(given) as fitted:
            return fitted.score(TEXTS).log_probs, fitted.n_steps

    (first, steps), (again, _), (other, _) = scored(seed=1), scored(seed=1), scored(seed=2)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert steps == 15, "20 pairs of either kind for each of 6 shots, 16 a step"
    assert scored(max_steps=0)[1] == 0


def test_one_shot_a_class_is_enough(setfit, setting):
    task = Task("three", "Say: {text}\nIs:", ("one", "two", "three"))
    shots = [{"text": text, "label": label} for text, label in zip(TEXTS, (2, 0, 1), strict=False)]
    with SetFit().fit(setting_of(setting.model, setting.tokenizer, task, shots, max_steps=2)) as fitted:
        assert fitted.score(TEXTS).log_probs.shape == (6, 3)


@pytest.mark.filterwarnings("error")
def test_it_is_quiet_and_leaves_all_as_it_was(setfit, setting, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    state, files = state_of(setting.model), sorted(tmp_path.rglob("*"))
    torch_state, python, numpy = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    with SetFit().fit(setting) as fitted:
        fitted.score(TEXTS)
    assert capfd.readouterr() == ("", "")
    assert state_of(setting.model) == state and sorted(tmp_path.rglob("*")) == files
    assert torch.equal(torch.get_rng_state(), torch_state) and random.getstate() == python
    assert (np.random.get_state()[1] == numpy).all() and not datasets.are_progress_bars_disabled()


def test_a_process_of_several_trains_by_itself(setfit, setting, monkeypatch):
    seen = []

    class Spy(setfit.Trainer):
        def __init__(self, *args):
            seen.append([name for name in set_fit.PROCESSES if name in os.environ])
            super().__init__(*args)

    monkeypatch.setattr(setfit, "Trainer", Spy)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    with SetFit().fit(setting):
        assert seen == [[]] and os.environ["RANK"] == os.environ["WORLD_SIZE"] == "2"


def test_bad_shots_are_refused(llama, tokenizer, task, shots):
    with pytest.raises(ValueError, match=r"an example of every class, got none of good$"):
        SetFit().fit(setting_of(llama, tokenizer, task, shots[1::2])).__enter__()
