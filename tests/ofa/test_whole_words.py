"""Label words of several tokens: told apart, trained on and scored whole."""

import warnings

import pytest
import torch

import ofa
from ofa import FewShotClassifier, OFAConfig, Task
from ofa.compare.methods import Setting
from ofa.compare.methods.lora import LoRA
from ofa.data.batch import collate, features, labelled
from ofa.data.words import columns_of, label_places
from ofa.decoder.view import Decoder
from ofa.loss import objective as objective_module
from ofa.loss import sharpness as sharpness_module
from ofa.loss.objective import objective
from ofa.passes.packing import Packing, packed
from ofa.scoring import score
from ofa.train import memory
from ofa.train.hf import OFATrainer
from tests.ofa.conftest import LABELS, TEXTS, build_llama
from tests.ofa.decoder.test_families import build
from tests.ofa.train.test_hf import trainer as hf_trainer

TEMPLATE = "Review: {text}\nSentiment:"
CONFIG = OFAConfig(lambda_step=0.3, lambda_sharp=0.2, n_probes=2, seed=4)
PROMPTS = [[5, 9, 41, 7], [8, 300], [17, 20, 33]]
WORDS = [[60, 61, 62], [70], [60, 64]]


def batch_of(side="right"):
    batch = labelled(PROMPTS, WORDS, torch.device("cpu"))
    if side == "left":
        for name in ("input_ids", "attention_mask"):
            for row, mask in zip(batch[name], batch["attention_mask"].clone(), strict=True):
                row.copy_(row.roll(int((1 - mask).sum())))
    return batch


def negative_log_likelihood(model):
    """By transformers' own logits, one unpadded example after the other."""
    total = 0
    for prompt, word in zip(PROMPTS, WORDS, strict=True):
        log_probs = model(input_ids=torch.tensor([prompt + word])).logits[0].log_softmax(-1)
        total = total - sum(log_probs[len(prompt) - 1 + i, token] for i, token in enumerate(word))
    return total / len(PROMPTS)


def test_a_batch_holds_words_and_their_labels():
    batch = batch_of()
    assert batch["input_ids"].tolist() == [
        [5, 9, 41, 7, 60, 61],
        [8, 300, 0, 0, 0, 0],
        [17, 20, 33, 60, 0, 0],
    ]
    assert batch["labels"].tolist() == [[60, 61, 62], [70, -100, -100], [60, 64, -100]]
    assert labelled(PROMPTS, [[1], [2], [3]], torch.device("cpu"))["labels"].tolist() == [1, 2, 3]
    assert batch_of("left")["input_ids"][1].tolist() == [0, 0, 0, 0, 8, 300]


@pytest.mark.parametrize("own_layers", [False, True])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen2", "gpt2"])
def test_the_loss_and_its_gradients_are_transformers(family, side, own_layers, monkeypatch):
    model = build(family)
    weights = [norm.module.weight for norm in ofa.patch_model(model).norms]
    if own_layers:
        monkeypatch.setattr(objective_module, "why_not_stacked", lambda model: "not here")
    terms = objective(model, batch_of(side), CONFIG)
    expected = negative_log_likelihood(model)
    rtol = 1e-5 if family == "gemma2" else 1e-9  # whose eager attention has a softmax in float32
    torch.testing.assert_close(terms.cross_entropy, expected, rtol=rtol, atol=0)
    found = torch.autograd.grad(terms.cross_entropy, weights, retain_graph=True)
    for gradient, truth in zip(found, torch.autograd.grad(expected, weights), strict=True):
        assert (gradient - truth).norm() <= rtol * truth.norm()


@pytest.mark.parametrize("own_layers", [False, True])
@pytest.mark.parametrize("side", ["right", "left"])
def test_the_other_terms_are_the_prompts_own(llama, side, own_layers, monkeypatch):
    weights = [norm.module.weight for norm in ofa.patch_model(llama).norms]
    if own_layers:
        monkeypatch.setattr(objective_module, "why_not_stacked", lambda model: "not here")
        monkeypatch.setattr(sharpness_module, "why_not_stacked", lambda model: "not here")
    bare = labelled(PROMPTS, [[60], [70], [60]], torch.device("cpu"))
    for term in ("step_ratio", "sharpness"):
        found, expected = (getattr(objective(llama, b, CONFIG), term) for b in (batch_of(side), bare))
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
        gradients = (torch.autograd.grad(t, weights, allow_unused=True) for t in (found, expected))
        for gradient, truth in zip(*gradients, strict=True):
            torch.testing.assert_close(gradient, truth, rtol=1e-8, atol=1e-10)
    measured = [ofa.sharpness(llama, batch, n_probes=2).value for batch in (batch_of(side), bare)]
    torch.testing.assert_close(*measured, rtol=1e-10, atol=1e-12)


def test_one_token_is_a_word_too(llama):
    ofa.patch_model(llama)
    batch = labelled(PROMPTS, [[60], [70], [60]], torch.device("cpu"))
    column = {**batch, "labels": batch["labels"][:, None]}
    assert torch.equal(objective(llama, column, CONFIG).loss, objective(llama, batch, CONFIG).loss)


def test_a_packing_made_before_serves_words(llama):
    ofa.patch_model(llama)
    expected = objective(llama, batch_of(), CONFIG).loss
    assert torch.equal(objective(llama, packed(batch_of()), CONFIG).loss, expected)


@pytest.mark.parametrize(
    "labels",
    [
        [[60, 61, 63], [-100, 70, -100], [60, 64, -100]],  # not left-aligned
        [[61, 61, 62], [70, -100, -100], [60, 64, -100]],  # not what input_ids end in
        [[60, 61, 62], [70, 71, 72], [60, 64, -100]],  # longer than the row
    ],
)
def test_labels_that_are_no_continuation_are_refused(llama, labels):
    batch = {**batch_of(), "labels": torch.tensor(labels)}
    with pytest.raises(ValueError, match=r"example \d of the batch: labels \[B, L\] hold"):
        Packing.of(batch["input_ids"], batch["attention_mask"], batch["labels"])
    with pytest.raises(ValueError, match=r"labels \[B, L\] hold"):
        objective(llama, batch, CONFIG)


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_authors_terms_take_words_too(llama, side):
    ofa.patch_model(llama)
    bare = labelled(PROMPTS, [[60], [70], [60]], torch.device("cpu"))
    found, short = (objective(llama, batch, OFAConfig.paper_code()) for batch in (batch_of(side), bare))
    torch.testing.assert_close(found.cross_entropy, negative_log_likelihood(llama))
    torch.testing.assert_close(found.step_ratio, short.step_ratio)


def test_where_labels_stand():
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1], [1, 0, 0, 0]])
    assert columns_of(mask, label_places(mask)).tolist() == [[1], [3], [3], [0]]
    labels = torch.tensor([[7, 8], [7, 8], [7, 8], [7, -100]])
    assert columns_of(mask, label_places(mask, labels)).tolist() == [[0, 1], [2, 3], [2, 3], [0, 0]]


def test_methods_of_peft_train_on_whole_words(tokenizer, shots):
    task = Task("t", TEMPLATE, ("very good", "very bad"), whole_words=True)
    setting = Setting(build_llama(torch.float32), tokenizer, task, shots, progress=False)
    before = setting.scorer()(TEXTS).log_probs
    with LoRA().fit(setting) as fitted:
        after = fitted.score(TEXTS).log_probs
    shares = [scores[range(len(TEXTS)), LABELS].mean() for scores in (before, after)]
    assert shares[1] > shares[0]


@pytest.mark.parametrize(
    ("words", "whole"),
    [
        (("bad", "good"), False),
        (("good", "goodness"), True),
        (("very good", "very bad"), True),
        (("Wirtschaft", "Wissenschaft", "Sport"), True),
    ],
)
def test_whole_words_are_taken_where_they_are_needed(tokenizer, words, whole):
    task = Task("t", TEMPLATE, words)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert task.told_apart(tokenizer).whole_words == whole
    assert [str(w.message).endswith("scored whole, token by token") for w in said] == [True] * whole


@pytest.mark.parametrize(
    ("words", "ended"), [(("good", "good one"), True), (("very good", "very bad"), False)]
)
def test_the_lines_end_tells_a_word_from_its_beginning(tokenizer, words, ended):
    task = Task("t", TEMPLATE, words, whole_words=True)
    prompt = tokenizer(task.render("text"))["input_ids"]
    for word, ids in zip(words, task.word_ids(tokenizer), strict=True):
        assert prompt + ids == tokenizer(f"{task.render('text')} {word}" + "\n" * ended)["input_ids"]


def test_equal_words_are_refused(tokenizer):
    task = Task("t", TEMPLATE, ("good", "bad", "good"), whole_words=True)
    with pytest.raises(ValueError, match="the tokens of label word 'good' begin those of 'good'"):
        task.target_ids(tokenizer)


def test_a_word_and_its_beginning_are_scored_with_their_ends(llama, tokenizer):
    task = Task("t", TEMPLATE, ("good", "good one"), whole_words=True)
    prompt = tokenizer(task.render("fine"))["input_ids"]
    sums = []
    for word in task.word_ids(tokenizer):
        log_probs = llama(input_ids=torch.tensor([prompt + word])).logits[0].log_softmax(-1)
        sums.append(sum(log_probs[len(prompt) - 1 + i, token] for i, token in enumerate(word)))
    found = score(llama, tokenizer, task, ["fine", "dull"]).log_probs[0]
    torch.testing.assert_close(found, torch.stack(sums).log_softmax(-1).float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("words", [("very good", "very bad"), ("good", "good one"), ("xa", "xb")])
def test_words_that_begin_alike_are_learnt(tokenizer, tmp_path, words):
    config = OFAConfig(epochs=100, lr=5e-2, lambda_sharp=0)
    model = build_llama(torch.float32)
    classifier = FewShotClassifier(model, words, TEMPLATE, config, tokenizer, progress=False)
    with pytest.warns(UserWarning, match="start with the same token"):
        classifier.fit(TEXTS, LABELS)
    assert classifier.score(TEXTS, LABELS) == 1 and classifier.task_.whole_words
    assert classifier.result_.history[-1]["cross_entropy"] < classifier.result_.history[0]["cross_entropy"]
    classifier.save(tmp_path)
    assert ofa.save.adapter.read_config(tmp_path)["task"]["whole_words"] is True


def test_many_intents(tokenizer):
    intents = [
        f"{first} {second}" for first in ("card", "cash", "top up") for second in ("fee", "limit", "lost")
    ]
    texts = [f"{text} {word}" for word in intents for text in ("please help:", "what about")]
    labels = [word for word in intents for _ in range(2)]
    config = OFAConfig(epochs=40, lr=5e-2, lambda_sharp=0, batch_size=6)
    model = build_llama(torch.float32)
    classifier = FewShotClassifier(model, None, TEMPLATE, config, tokenizer, progress=False)
    with pytest.warns(UserWarning, match="start with the same token"):
        classifier.fit(texts, labels)
    assert classifier.score(texts, labels) > 0.5 > 4 / len(intents)


def test_a_batch_in_parts_has_the_same_gradient(tokenizer, shots, monkeypatch):
    task = Task("t", TEMPLATE, ("very good", "bad"), whole_words=True)
    config = OFAConfig(epochs=2, batch_size=None, lr=1e-2, lambda_step=0.1, lambda_sharp=0.1)

    def run():
        model = build_llama()
        result = ofa.fit(model, tokenizer, task, shots, config, progress=False)
        return result.history, [norm.module.weight.detach() for norm in ofa.patch_model(model).norms]

    history, gammas = run()
    monkeypatch.setattr(memory, "ACTIVATION_BYTES", 60 * memory.bytes_per_token(Decoder.of(build_llama())))
    in_parts, split = run()
    for found, expected in zip(in_parts, history, strict=True):
        assert found == pytest.approx(expected, rel=1e-10)
    torch.testing.assert_close(split, gammas, rtol=1e-8, atol=1e-10)


def test_the_context_holds_the_word_too(tokenizer):
    """A text is cut so that all of a word's tokens still have a position."""
    task = Task("t", TEMPLATE, ("very good", "very bad"), whole_words=True)
    longest = max(map(len, task.word_ids(tokenizer)))
    model = build_llama(torch.float32)
    seen = []
    model.model.embed_tokens.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[-1]))
    with pytest.warns(UserWarning, match="longer than the context"):
        score(model, tokenizer, task, ["word " * 100])
    assert 64 - 5 <= max(seen) <= 64 - 1 and longest > 2
    shots = [{"text": "word " * 100, "label": 0}]
    with pytest.warns(UserWarning, match="longer than the context"):
        rows = features(tokenizer, task, shots, 64)
        ofa.fit(model, tokenizer, task, shots, OFAConfig(epochs=1), progress=False)
    assert 64 - 5 <= len(rows[0]["input_ids"]) <= 64 - 1


def test_in_transformers_trainer(tokenizer, shots, tmp_path):
    task = Task("t", TEMPLATE, ("very good", "bad"), whole_words=True)
    rows = features(tokenizer, task, shots, 64)
    batch, words = collate(rows), task.word_ids(tokenizer)
    prompts = [task.encode(tokenizer, shot["text"], 60).ids for shot in shots]
    expected = labelled(prompts, [words[shot["label"]] for shot in shots], torch.device("cpu"))
    assert all(torch.equal(batch[name], value) for name, value in expected.items())
    runner = hf_trainer(rows, tmp_path)
    assert isinstance(runner, OFATrainer)
    runner.train()
    losses = [entry["loss"] for entry in runner.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] and runner.evaluate()["eval_loss"] > 0
