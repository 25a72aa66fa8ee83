"""What methods are trained on and tested on: bare prompts in protocol A, prompts behind shots in B."""

from dataclasses import replace

import pytest
import torch

from ofa.compare.methods import METHODS
from ofa.data import batch as batches
from ofa.data.leave_one_out import leave_one_out
from ofa.decoder.view import Decoder
from ofa.train import job_gradients, memory
from tests.ofa.compare.methods.test_lora import setting_of, slow_logits
from tests.ofa.conftest import TEXTS

ON_PROMPTS = ("ln-tuning", "ofa", "paper-code", "lora", "ia3", "soft-prompt")
N_VIRTUAL = {"soft-prompt": 1}  # tokens that stand first


@pytest.fixture
def trained(monkeypatch):
    """The prompts of every pass of a training."""
    found, original = [], batches.labelled

    def spy(prompts, words, device):
        found.append([list(prompt) for prompt in prompts])
        return original(prompts, words, device)

    monkeypatch.setattr(batches, "labelled", spy)
    monkeypatch.setattr(job_gradients, "labelled", spy)
    return found


def method_of(name):
    method = METHODS[name]
    return replace(method, options=replace(method.options, epochs=3, batch_size=4))


def fitted_prompts(name, setting, trained):
    trained.clear()
    with method_of(name).fit(setting):
        return [[ids[N_VIRTUAL.get(name, 0) :] for ids in prompts] for prompts in trained]


@pytest.fixture
def setting(llama, tokenizer, task, shots):
    llama.config.max_position_embeddings = 256
    return setting_of(llama.float(), tokenizer, task, shots, protocol="B", seed=5)


@pytest.mark.parametrize("name", ON_PROMPTS)
def test_a_shot_is_trained_on_behind_the_others(name, setting, tokenizer, task, shots, trained):
    found = fitted_prompts(name, setting, trained)
    steps = method_of(name).options
    schedule = steps if hasattr(steps, "batches") else steps.schedule()
    expected = []
    for epoch, rows in replace(schedule, seed=5).batches(len(shots)):
        before = leave_one_out(task, shots, 5, epoch)
        texts = [before[i] + task.render(shots[i]["text"]) for i in rows]
        expected.append([tokenizer(text)["input_ids"] for text in texts])
    assert found == expected and len(found) == 6


def test_all_methods_of_a_seed_are_trained_on_the_same(setting, trained):
    first, *others = (fitted_prompts(name, setting, trained) for name in ON_PROMPTS)
    assert all(other == first for other in others)
    assert fitted_prompts("lora", replace(setting, seed=6), trained) != first


@pytest.mark.parametrize(("name", "protocol"), [(name, "A") for name in ON_PROMPTS] + [("i2cl", "B")])
def test_others_are_trained_on_bare_prompts(name, protocol, setting, tokenizer, task, trained):
    bare = {tuple(tokenizer(task.render(text))["input_ids"]) for text in TEXTS}
    found = fitted_prompts(name, replace(setting, protocol=protocol), trained)
    assert {tuple(ids) for prompts in found for ids in prompts} == bare


@pytest.mark.parametrize("name", ["ln-tuning", "ofa", "paper-code", "lora", "ia3"])
def test_all_shots_precede_a_test_prompt_in_the_order_of_the_draw(name, setting, tokenizer, task, shots):
    before = "".join(
        f"Review: {s['text']}\nSentiment: {task.label_words[s['label']]}\n" for s in setting.shots
    )
    assert task.demonstrations(setting.demonstrations) == before
    with method_of(name).fit(setting) as fitted:
        slow = torch.stack([slow_logits(setting.model, setting, text) for text in TEXTS])
        expected = slow[:, task.label_ids(tokenizer)].log_softmax(-1).float()
        torch.testing.assert_close(fitted.score(TEXTS).log_probs, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("protocol", ["A", "B"])
@pytest.mark.parametrize("name", ["lora", "ia3", "soft-prompt"])
def test_a_batch_that_is_too_large_is_run_in_parts(name, protocol, setting, trained, monkeypatch):
    setting = replace(setting, protocol=protocol)
    with method_of(name).fit(setting) as fitted:
        whole = fitted.score(TEXTS).log_probs
    sizes = {len(prompts) for prompts in trained}
    lengths = [len(ids) for prompts in trained for ids in prompts]
    trained.clear()
    limit = 2 * max(lengths)
    n_bytes = limit * memory.bytes_per_token(Decoder.of(setting.model))
    monkeypatch.setattr(memory, "ACTIVATION_BYTES", n_bytes)
    with method_of(name).fit(setting) as fitted:
        torch.testing.assert_close(fitted.score(TEXTS).log_probs, whole, rtol=1e-3, atol=1e-4)
    assert sizes == {4, 2} and {len(prompts) for prompts in trained} <= {1, 2, 3}
    assert all(sum(map(len, prompts)) <= limit for prompts in trained)


@pytest.mark.parametrize("name", ON_PROMPTS)
def test_demonstrations_that_do_not_fit_are_refused(name, setting):
    setting.model.config.max_position_embeddings = 64
    with pytest.raises(ValueError, match="what precedes it fill the context of 64 tokens"):
        method_of(name).fit(setting).__enter__()


@pytest.mark.parametrize("name", ON_PROMPTS)
@pytest.mark.parametrize("n_shots", [1, 2])
def test_few_shots_are_enough(name, n_shots, setting, shots):
    with method_of(name).fit(replace(setting, shots=shots[:n_shots], max_steps=2)) as fitted:
        assert fitted.n_steps == 2 and fitted.score(TEXTS).log_probs.isfinite().all()
