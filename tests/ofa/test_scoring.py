from dataclasses import replace

import pytest
import torch

import ofa
from ofa import scoring
from ofa.data.batch import pad
from ofa.decoder.view import Decoder
from ofa.passes.own_layers import ActivationPatch, token_states
from ofa.scoring import score
from tests.ofa.conftest import TEXTS


def slow(model, tokenizer, task, text, shots=()):
    """One prompt, one pass, all logits."""
    ids = tokenizer(task.demonstrations(shots) + task.render(text), return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return model(input_ids=ids).logits[0, -1, task.label_ids(tokenizer)].log_softmax(-1)


@pytest.mark.parametrize("n_shots", [0, 2])
@pytest.mark.parametrize("n_texts", [1, 2, 6])
def test_batches_and_shared_keys_change_nothing(llama, tokenizer, task, shots, n_texts, n_shots, monkeypatch):
    monkeypatch.setattr(scoring, "ROWS_PER_BATCH", 4)
    llama.config.max_position_embeddings = 256
    result = score(llama, tokenizer, task, TEXTS[:n_texts], shots[:n_shots])
    for text, row in zip(TEXTS, result.log_probs, strict=False):
        expected = slow(llama, tokenizer, task, text, shots[:n_shots])
        torch.testing.assert_close(row, expected.float(), rtol=1e-5, atol=1e-5)


def test_the_demonstrations_run_once(llama, tokenizer, task, shots, monkeypatch):
    llama.config.max_position_embeddings = 256
    monkeypatch.setattr(scoring, "ROWS_PER_BATCH", 2)
    tokens = []
    llama.model.embed_tokens.register_forward_hook(lambda _, args, __: tokens.append(tuple(args[0].shape)))
    score(llama, tokenizer, task, TEXTS, shots)
    n_demonstrations = len(tokenizer(task.demonstrations(shots))["input_ids"])
    assert tokens[0][0] == 1 and tokens[0][1] >= n_demonstrations
    assert [rows for rows, _ in tokens[1:]] == [2, 2, 2]
    assert max(length for _, length in tokens[1:]) < n_demonstrations / 2


def test_only_last_logits(llama, tokenizer, task):
    rows = []
    llama.lm_head.register_forward_hook(lambda _, args, __: rows.append(args[0].shape[:-1].numel()))
    score(llama, tokenizer, task, TEXTS)
    assert sum(rows) == len(TEXTS) + 1  # and one for the shared beginning


def test_accuracy_and_predictions(llama, tokenizer, task):
    scores = score(llama, tokenizer, task, TEXTS)
    labels = scores.predictions.tolist()
    assert scores.accuracy(labels) == 1 and scores.accuracy([1 - label for label in labels]) == 0
    torch.testing.assert_close(scores.log_probs.exp().sum(-1), torch.ones(len(TEXTS)))


def test_identical_texts_and_none(llama, tokenizer, task):
    twice = score(llama, tokenizer, task, ["same", "same"]).log_probs
    torch.testing.assert_close(twice[0], twice[1])
    assert score(llama, tokenizer, task, []).log_probs.shape == (0, 2)


def test_cut_texts_are_counted(llama, tokenizer, task):
    with pytest.warns(UserWarning, match="1 of 2 texts were longer than the context"):
        assert score(llama, tokenizer, task, ["short", "long " * 100]).n_truncated == 1


def test_empty_texts_and_bad_demonstrations_are_refused(llama, tokenizer, task):
    with pytest.raises(ValueError, match="a text is empty"):
        score(llama, tokenizer, task, ["fine", " "])
    with pytest.raises(ValueError, match="unknown label 5"):
        score(llama, tokenizer, task, ["fine"], [{"text": "x", "label": 5}])


def test_a_patched_model_scores_alike(llama, tokenizer, task):
    before = score(llama, tokenizer, task, TEXTS).log_probs
    ofa.patch_model(llama)
    torch.testing.assert_close(score(llama, tokenizer, task, TEXTS).log_probs, before)


def test_nan_is_no_prediction(llama, tokenizer, task):
    llama.model.norm.weight.data[0] = float("nan")
    with pytest.raises(FloatingPointError, match="logits are NaN or infinite"):
        score(llama, tokenizer, task, TEXTS)


def test_long_prompts_come_in_smaller_batches(monkeypatch):
    monkeypatch.setattr(scoring, "ROWS_PER_BATCH", 3)
    monkeypatch.setattr(scoring, "TOKENS_PER_BATCH", 40)
    assert scoring.batches([50, 1, 9, 1, 1, 1, 30], shared=10) == [[1, 3, 4], [5, 2], [6], [0]]


@pytest.mark.parametrize("n_shots", [0, 2])
def test_whole_words_are_scored_token_by_token(llama, tokenizer, task, shots, n_shots):
    llama.config.max_position_embeddings = 256
    task = replace(task, label_words=("bad", "goodness me"), whole_words=True)
    assert min(map(len, task.word_ids(tokenizer))) < max(map(len, task.word_ids(tokenizer)))
    result = score(llama, tokenizer, task, TEXTS[:3], shots[:n_shots])
    for text, row in zip(TEXTS, result.log_probs, strict=False):
        prompt = tokenizer(task.demonstrations(shots[:n_shots]) + task.render(text))["input_ids"]
        sums = []
        for word in task.word_ids(tokenizer):
            with torch.no_grad():
                log_probs = llama(input_ids=torch.tensor([prompt + word])).logits[0].log_softmax(-1)
            sums.append(sum(log_probs[len(prompt) - 1 + i, token] for i, token in enumerate(word)))
        torch.testing.assert_close(row, torch.stack(sums).log_softmax(-1).float(), rtol=1e-5, atol=1e-5)


def test_a_patched_token_stays_where_it_is_while_words_are_read(llama, tokenizer, task):
    llama.config.max_position_embeddings = 256
    task = replace(task, label_words=("bad", "goodness me"), whole_words=True)
    with torch.no_grad():
        own = token_states(
            Decoder.of(llama), pad([task.encode(tokenizer, TEXTS[0], 256).ids], torch.device("cpu"))
        ).z[2, 0]
    plain = score(llama, tokenizer, task, TEXTS[:1]).log_probs
    patched = score(llama, tokenizer, task, TEXTS[:1], patch=ActivationPatch(1, own)).log_probs
    torch.testing.assert_close(patched, plain)
