from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from ofa.compare import encoder
from ofa.compare.methods import missing
from ofa.compare.methods.embedding import Embedding
from ofa.data.task import Task
from ofa.download import SourceError
from tests.ofa.compare.methods.test_lora import setting_of, state_of
from tests.ofa.conftest import TEXTS

FRESH = ("a bright second half", "duller jokes", "its own place", "warm and moving")


def test_it_is_a_regression_on_the_embeddings(llama, tokenizer, task, shots, tiny_encoder):
    vectors = encoder.load_encoder(torch.device("cpu")).embed
    labels = [shot["label"] for shot in shots]
    slow = LogisticRegression(max_iter=1000).fit(vectors([shot["text"] for shot in shots])[0], labels)
    with Embedding().fit(setting_of(llama, tokenizer, task, shots)) as fitted:
        scores = fitted.score(FRESH)
    np.testing.assert_allclose(scores.log_probs, slow.predict_log_proba(vectors(FRESH)[0]), rtol=1e-5)
    assert scores.log_probs.dtype == torch.float32 and scores.n_truncated == 0
    assert fitted.n_trainable == 16 + 1 and fitted.n_steps == 0
    assert fitted.notes == {"encoder": encoder.NAME, "encoder_sha256": encoder.SHA256}


def test_classes_are_columns_whatever_the_order_of_the_shots(llama, tokenizer, tiny_encoder):
    task = Task("three", "Say: {text}\nIs:", ("one", "two", "three"))
    shots = [{"text": text, "label": label} for text, label in zip(TEXTS, (2, 0, 1), strict=False)]
    with Embedding().fit(setting_of(llama, tokenizer, task, shots)) as fitted:
        scores = fitted.score(TEXTS[:3])
    assert scores.predictions.tolist() == [2, 0, 1]
    torch.testing.assert_close(scores.log_probs.exp().sum(-1), torch.ones(3))


def test_texts_alone_decide(llama, tokenizer, task, shots, tiny_encoder):
    found = []
    for changed in (task, replace(task, template="{text} is", label_words=("awful", "fine"))):
        for protocol in "AB":
            setting = setting_of(llama, tokenizer, changed, shots, protocol=protocol)
            with Embedding().fit(setting) as fitted:
                found.append(fitted.score(FRESH).log_probs)
    assert all(torch.equal(found[0], other) for other in found)


def test_the_model_stays_as_it_is(llama, tokenizer, task, shots, tiny_encoder):
    state, generator = state_of(llama), torch.get_rng_state()
    with Embedding().fit(setting_of(llama, tokenizer, task, shots)) as fitted:
        fitted.score(TEXTS)
    assert state_of(llama) == state and torch.equal(torch.get_rng_state(), generator)


def test_bad_shots_are_refused(llama, tokenizer, task, shots, tiny_encoder):
    with pytest.raises(ValueError, match=r"an example of every class, got none of good$"):
        Embedding().fit(setting_of(llama, tokenizer, task, shots[1::2])).__enter__()


def test_an_encoder_that_can_t_be_had_is_missing(monkeypatch):
    def fail():
        raise SourceError("no network")

    monkeypatch.setattr(encoder, "encoder_folder", fail)
    assert missing(Embedding()) == "no network"


@pytest.mark.model
@pytest.mark.timeout(600)
def test_the_real_encoder_tells_topics_apart_by_one_shot(llama, tokenizer):
    encoder.load_encoder.cache_clear()
    if reason := missing(Embedding()):
        pytest.skip(f"no encoder: {reason}")
    task = Task("topics", "Text: {text}\nTopic:", ("sport", "money"))
    shots = [
        {"text": "The striker scored twice in the second half.", "label": 0},
        {"text": "The central bank raised interest rates.", "label": 1},
    ]
    with Embedding().fit(setting_of(llama, tokenizer, task, shots)) as fitted:
        asked = ("Shares fell after the report on inflation.", "Their goalkeeper saved a penalty.")
        assert fitted.score(asked).predictions.tolist() == [1, 0]
