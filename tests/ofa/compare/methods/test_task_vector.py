import random

import pytest
import torch

from ofa.compare.methods.task_vector import TaskVector, choose_layer
from tests.ofa.compare.methods.test_lora import setting_of, state_of
from tests.ofa.conftest import TEXTS


@pytest.fixture
def setting(llama, tokenizer, task, shots):
    llama.config.max_position_embeddings = 256
    return setting_of(llama, tokenizer, task, shots)


def run(setting, text, demonstrations=(), layer=None, vector=None):
    """One prompt through transformers: every layer's last output, log-probabilities of the label words."""
    model, task, found = setting.model, setting.task, []

    def hook(module, args, output):
        if layer is not None and module is model.model.layers[layer]:
            output[0, -1] = vector
        found.append(output[0, -1].clone())

    hooks = [block.register_forward_hook(hook) for block in model.model.layers]
    ids = setting.tokenizer(task.demonstrations(demonstrations) + task.render(text))["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -1, task.label_ids(setting.tokenizer)]
    for handle in hooks:
        handle.remove()
    return found, logits.log_softmax(-1).float()


def slow_layer(setting, shots, query) -> int:
    """The most right predictions over five folds, then the highest log-probability; shot by shot."""
    merit = []
    for layer in range(3):
        n_right, total = 0, 0.0
        for i, shot in enumerate(shots):
            shown = [other for j, other in enumerate(shots) if j % 5 != i % 5]
            vector = run(setting, query, shown)[0][layer]
            log_probs = run(setting, shot["text"], (), layer, vector)[1]
            n_right += int(log_probs.argmax() == shot["label"])
            total += log_probs[shot["label"]].item()
        merit.append((n_right, total))
    return merit.index(max(merit))


@pytest.mark.parametrize("protocol", ["A", "B"])
@pytest.mark.parametrize("seed", [0, 1])
def test_agrees_with_a_slow_version(llama, tokenizer, task, shots, seed, protocol):
    llama.config.max_position_embeddings = 256
    setting = setting_of(llama, tokenizer, task, shots, seed=seed, protocol=protocol)
    asked = random.Random(seed).randrange(len(shots))
    others, query = shots[:asked] + shots[asked + 1 :], shots[asked]["text"]
    layer = slow_layer(setting, others, query)
    vector = run(setting, query, others)[0][layer]
    before = shots if protocol == "B" else ()
    expected = torch.stack([run(setting, text, before, layer, vector)[1] for text in TEXTS])
    with TaskVector().fit(setting) as fitted:
        assert fitted.notes == {"layer": layer, "labels_for_layer": 5}
        torch.testing.assert_close(fitted.score(TEXTS).log_probs, expected, rtol=1e-5, atol=1e-5)
        single = torch.cat([fitted.score([text]).log_probs for text in TEXTS])
    torch.testing.assert_close(single, expected, rtol=1e-5, atol=1e-5)


def test_folds_of_several_shots(setting, shots):
    many = [
        {"text": f"{s['text']} {end}", "label": s["label"]} for end in ("at first", "again") for s in shots
    ]
    assert choose_layer(setting, many, "so so") == slow_layer(setting, many, "so so")


def test_the_query_does_not_bring_its_label(setting, shots):
    asked = random.Random(0).randrange(len(shots))
    turned = [{**s, "label": 1 - s["label"]} if i == asked else s for i, s in enumerate(shots)]
    scores = []
    for labelled in (shots, turned):
        with TaskVector().fit(setting_of(setting.model, setting.tokenizer, setting.task, labelled)) as fitted:
            scores.append(fitted.score(TEXTS).log_probs)
    assert torch.equal(*scores)


def test_the_model_stays_as_it_is(setting, llama):
    state, bits = state_of(llama), {name: value.clone() for name, value in llama.state_dict().items()}
    generator, own = torch.get_rng_state(), random.getstate()
    with pytest.raises(RuntimeError), TaskVector().fit(setting) as fitted:
        assert fitted.n_trainable == fitted.n_steps == 0
        fitted.score(TEXTS)
        raise RuntimeError
    assert state_of(llama) == state
    assert all(torch.equal(value, bits[name]) for name, value in llama.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator) and random.getstate() == own


def test_few_or_mislabelled_shots_are_refused(llama, tokenizer, task, shots):
    with pytest.raises(ValueError, match="at least three labelled examples"):
        TaskVector().fit(setting_of(llama, tokenizer, task, shots[:2])).__enter__()
    with pytest.raises(ValueError, match="unknown label 5"):
        TaskVector().fit(setting_of(llama, tokenizer, task, [*shots, {"text": "x", "label": 5}])).__enter__()
