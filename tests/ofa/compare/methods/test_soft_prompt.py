from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from ofa import scoring
from ofa.compare.methods.soft_prompt import SoftPrompt
from ofa.config import Schedule
from tests.ofa.compare.methods.test_lora import check_restores, setting_of, slow_loss
from tests.ofa.conftest import TEXTS, build_llama


def slow_logits(model, words, setting, text) -> torch.Tensor:
    """One prompt behind the virtual token's embedding, no padding, transformers' own forward."""
    before = setting.task.demonstrations(setting.demonstrations)
    ids = setting.tokenizer(before + setting.task.render(text))["input_ids"]
    virtual = model.model.embed_tokens.virtual.to(words.dtype)
    with torch.no_grad():
        return model(inputs_embeds=torch.cat([virtual, words[ids]])[None]).logits[0, -1]


@pytest.mark.parametrize("protocol", ["A", "B"])
def test_scores(llama, tokenizer, task, shots, protocol, monkeypatch):
    monkeypatch.setattr(scoring, "ROWS_PER_BATCH", 4)
    llama.config.max_position_embeddings = 256
    words = llama.model.embed_tokens.weight
    setting = setting_of(llama, tokenizer, task, shots, protocol=protocol, max_steps=6)
    with SoftPrompt().fit(setting) as fitted:
        slow = torch.stack([slow_logits(llama, words, setting, text) for text in TEXTS])
        expected = slow[:, task.label_ids(tokenizer)].log_softmax(-1).float()
        torch.testing.assert_close(fitted.score(TEXTS).log_probs, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(fitted.score(TEXTS[:1]).log_probs, expected[:1], rtol=1e-5, atol=1e-5)


def test_training(llama, tokenizer, task, shots):
    words, losses, scores = llama.model.embed_tokens.weight, [], []
    for max_steps in (0, None, None):
        setting = setting_of(llama, tokenizer, task, shots, max_steps=max_steps)
        with SoftPrompt().fit(setting) as fitted:
            assert fitted.n_steps == (100 if max_steps is None else 0)
            losses.append(slow_loss(lambda text, s=setting: slow_logits(llama, words, s, text), setting))
            scores.append(fitted.score(TEXTS).log_probs)
    assert losses[1] < 0.9 * losses[0]
    assert torch.equal(scores[1], scores[2]) and (scores[1] - scores[0]).abs().max() > 0.1


def test_training_is_that_of_a_slow_loop(llama, tokenizer, task, shots):
    words, label_ids = llama.model.embed_tokens.weight, torch.tensor(task.label_ids(tokenizer))
    setting = setting_of(llama, tokenizer, task, shots, seed=3, max_steps=8)
    with SoftPrompt().fit(replace(setting, max_steps=0)):
        slow = llama.model.embed_tokens.virtual.detach().clone().requires_grad_()
    schedule = Schedule(lr=0.1, weight_decay=1e-3, epochs=50, batch_size=4, seed=3)
    optimizer = torch.optim.AdamW([slow], lr=0.1, weight_decay=1e-3)
    for step, (_, rows) in zip(range(8), schedule.batches(len(shots)), strict=False):
        optimizer.param_groups[0]["lr"] = 0.1 * schedule.factor(len(shots))(step)
        optimizer.zero_grad()
        for i in rows:
            ids = tokenizer(task.render(shots[i]["text"]))["input_ids"]
            logits = llama(inputs_embeds=torch.cat([slow.to(words.dtype), words[ids]])[None]).logits[0, -1]
            (F.cross_entropy(logits, label_ids[shots[i]["label"]]) / len(rows)).backward()
        optimizer.step()
    with SoftPrompt().fit(setting):
        torch.testing.assert_close(llama.model.embed_tokens.virtual, slow, rtol=1e-4, atol=1e-4)


def test_the_virtual_token_counts_towards_the_context(llama, tokenizer, task, shots):
    longest = max(len(tokenizer(task.render(text))["input_ids"]) for text in TEXTS)
    llama.config.max_position_embeddings = longest + 1
    with SoftPrompt().fit(setting_of(llama, tokenizer, task, shots, max_steps=0)) as fitted:
        assert fitted.score(TEXTS).n_truncated == 0
        llama.config.max_position_embeddings = longest
        with pytest.warns(UserWarning, match="longer than the context"):
            assert fitted.score(TEXTS).n_truncated > 0


def test_restores(llama, tokenizer, task, shots):
    check_restores(SoftPrompt(), llama, setting_of(llama, tokenizer, task, shots, max_steps=3))


@pytest.mark.filterwarnings("error")
def test_float32_in_a_bfloat16_model_and_quiet(tokenizer, task, shots, capfd):
    model = build_llama(torch.bfloat16)
    with SoftPrompt().fit(setting_of(model, tokenizer, task, shots, max_steps=3)) as fitted:
        (trained,) = (p for p in model.parameters() if p.requires_grad)
        assert trained.dtype == torch.float32 and fitted.n_trainable == trained.numel() == 24
    assert capfd.readouterr() == ("", "")
