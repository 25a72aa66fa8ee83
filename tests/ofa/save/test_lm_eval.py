"""What lm-evaluation-harness sees in an adapter is what `predict` sees, prediction by prediction."""

import json
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from tokenizers.processors import TemplateProcessing

import ofa
from ofa.scoring import score
from tests.ofa.conftest import LABELS, TEXTS, build_llama

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install lm-eval")

TEMPLATE = "Review: {text}\nSentiment:"
QUERIES = (*TEXTS, "a dull evening", "its plot never ends", "funny", "a moving story, well played")
ANSWERS = (*LABELS, 0, 0, 1, 1)


@pytest.fixture(params=["", "<s> "], ids=["no BOS", "BOS"])
def base(request, tokenizer, tmp_path) -> str:
    """A float32 model and its tokenizer, which puts a BOS token before every prompt or doesn't."""
    tokenizer = deepcopy(tokenizer)
    # lm-eval needs one of the two, used or not
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "<s>"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{request.param}$A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    folder = tmp_path / "base"
    build_llama(torch.float32, vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
    """(accuracy, [texts, words] log-probabilities over the label words) by lm-eval."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)

    def run(task, labels=ANSWERS, **model):
        rows = [{"text": text, "label": label} for text, label in zip(QUERIES, labels, strict=True)]
        file = tmp_path / "test.jsonl"
        file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        output = lm_eval.simple_evaluate(
            "hf",
            model,
            tasks=[ofa.lm_eval_task(task, file)],
            device="cpu",
            batch_size=4,
            bootstrap_iters=0,
            task_manager=lm_eval.tasks.TaskManager(include_defaults=False),
        )
        samples = output["samples"][task.name]
        sums = torch.tensor([[log_prob for log_prob, _ in s["filtered_resps"]] for s in samples])
        return output["results"][task.name]["acc,none"], sums.log_softmax(-1)

    return run


@pytest.mark.parametrize(
    ("words", "whole"),
    [(("bad", "good"), False), (("bad plot", "good jokes"), True)],
    ids=["one token", "two tokens"],
)
def test_it_predicts_what_we_predict(base, evaluate, tmp_path, words, whole):
    config = ofa.OFAConfig(epochs=20, lr=5e-2)
    classifier = ofa.FewShotClassifier(base, words, TEMPLATE, config, dtype=torch.float32, progress=False)
    classifier.fit(TEXTS, LABELS)
    classifier.save(tmp_path / "adapter")
    ofa.export_merged(classifier.model_, classifier.tokenizer_, tmp_path / "merged")
    task = replace(classifier.task_, whole_words=whole)
    ours = score(classifier.model_, classifier.tokenizer_, task, QUERIES)
    assert whole or ours.predictions.tolist() == classifier.predict(QUERIES).tolist()
    assert set(ours.predictions.tolist()) == {0, 1} and 0 < ours.accuracy(ANSWERS) < 1

    for model in (
        {"pretrained": base, "peft": str(tmp_path / "adapter")},
        {"pretrained": str(tmp_path / "merged")},
    ):
        accuracy, log_probs = evaluate(task, **model)
        assert log_probs.argmax(-1).tolist() == ours.predictions.tolist()
        assert accuracy == ours.accuracy(ANSWERS)
        torch.testing.assert_close(log_probs, ours.log_probs, rtol=1e-4, atol=1e-4)
    _, unadapted = evaluate(task, pretrained=base)
    assert unadapted.argmax(-1).tolist() != ours.predictions.tolist()


def test_labels_may_be_words(base, evaluate, task):
    by_number = evaluate(task, pretrained=base)
    by_word = evaluate(task, [task.label_words[answer] for answer in ANSWERS], pretrained=base)
    assert by_word[0] == by_number[0] and 0 < by_number[0] < 1


@pytest.mark.parametrize("template", ["{{text}}:", "{% if %}{# no #} {{ x }} {text}\n{'Sentiment':"])
def test_braces_of_a_template_are_not_jinjas(template):
    task = ofa.Task("braces", template, ("bad", "good"))
    text = "{{ text }} stays {text}"
    prompt = lm_eval.utils.apply_template(ofa.lm_eval_task(task, "x.jsonl")["doc_to_text"], {"text": text})
    assert prompt == task.render(text)
