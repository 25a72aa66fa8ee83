import pytest
import torch

from ofa.compare.methods import label_anchor
from ofa.compare.methods.icl import InContext
from ofa.compare.methods.label_anchor import LabelAnchor, anchors
from tests.ofa.compare.methods.test_lora import setting_of, state_of
from tests.ofa.conftest import TEXTS


@pytest.fixture
def setting(llama, tokenizer, task, shots):
    llama.config.max_position_embeddings = 256
    return setting_of(llama, tokenizer, task, shots[:3])


def slow(setting, text) -> torch.Tensor:
    """Demonstrations and query in one pass of transformers; a mask hides what is no anchor from the query."""
    model, tokenizer, task = setting.model, setting.tokenizer, setting.task
    ids, kept = anchors(setting)
    query = tokenizer(task.render(text))["input_ids"]
    n, total = len(ids), len(ids) + len(query)
    seen = torch.ones(total, total).tril()
    seen[n:, [i for i in range(n) if i not in kept]] = 0
    with torch.no_grad():
        logits = model(torch.tensor([ids + query]), attention_mask=seen.bool()[None, None]).logits
    return logits[0, -1, task.label_ids(tokenizer)].log_softmax(-1).float()


def test_only_the_anchors_are_seen(setting):
    with LabelAnchor().fit(setting) as fitted:
        log_probs = fitted.score(TEXTS).log_probs
        single = torch.cat([fitted.score([text]).log_probs for text in TEXTS])
    expected = torch.stack([slow(setting, text) for text in TEXTS])
    torch.testing.assert_close(log_probs, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(single, expected, rtol=1e-5, atol=1e-5)


def test_keeping_everything_is_in_context_learning(setting, monkeypatch):
    with InContext().fit(setting) as fitted:
        in_context = fitted.score(TEXTS).log_probs
    with LabelAnchor().fit(setting) as fitted:
        assert (fitted.score(TEXTS).log_probs - in_context).abs().max() > 1e-3
    ids, _ = anchors(setting)
    monkeypatch.setattr(label_anchor, "anchors", lambda _: (ids, list(range(len(ids)))))
    with LabelAnchor().fit(setting) as fitted:
        torch.testing.assert_close(fitted.score(TEXTS).log_probs, in_context)


def test_what_is_an_anchor(setting):
    ids, kept = anchors(setting)
    text = setting.tokenizer.decode([ids[i] for i in kept])
    assert text == "Review:\nSentiment: good\nReview:\nSentiment: bad\nReview:\nSentiment: good\n"
    with LabelAnchor().fit(setting) as fitted:
        assert fitted.notes == {"tokens": len(ids), "kept_tokens": len(kept)}


def test_the_first_token_is_kept_though_it_is_text(llama, tokenizer, task, shots):
    bare = type(task)("bare", "{text} =>", task.label_words)
    ids, kept = anchors(setting_of(llama, tokenizer, bare, shots[:1]))
    assert tokenizer.decode([ids[i] for i in kept]) == tokenizer.decode(ids[:1]) + "=> good\n"


def test_a_prompt_that_merges_with_the_demonstrations_is_refused(setting, monkeypatch):
    ids, kept = anchors(setting)
    monkeypatch.setattr(label_anchor, "anchors", lambda _: ([*ids[:-1], 5], kept))
    with LabelAnchor().fit(setting) as fitted, pytest.raises(ValueError, match="begin with a word"):
        fitted.score(TEXTS)


def test_the_model_stays_as_it_is(setting, llama):
    state, bits = state_of(llama), {name: value.clone() for name, value in llama.state_dict().items()}
    with pytest.raises(RuntimeError), LabelAnchor().fit(setting) as fitted:
        assert fitted.n_trainable == fitted.n_steps == 0
        fitted.score(TEXTS)
        raise RuntimeError
    assert state_of(llama) == state
    assert all(torch.equal(value, bits[name]) for name, value in llama.state_dict().items())


def test_no_shots_are_refused(llama, tokenizer, task):
    with pytest.raises(ValueError, match="at least one labelled example"):
        LabelAnchor().fit(setting_of(llama, tokenizer, task, [])).__enter__()
