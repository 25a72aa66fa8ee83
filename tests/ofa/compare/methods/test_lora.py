from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from ofa.compare.methods import Setting
from ofa.compare.methods.lora import LoRA
from ofa.compare.methods.zero_shot import ZeroShot
from ofa.train.loop import NonFiniteError
from tests.ofa.conftest import TEXTS, build_llama


def setting_of(model, tokenizer, task, shots, **options) -> Setting:
    return Setting(model, tokenizer, task, shots, progress=False, **options)


def state_of(model):
    """Structure, attributes, hooks and modes, and the parameters' identity and flags."""
    modules = [
        (name, type(m), m.training, sorted(vars(m)), list(m._modules), len(m._forward_hooks))
        for name, m in model.named_modules()
    ]
    return (
        model.config.to_dict(),
        modules,
        [(name, id(p), p.dtype, p.requires_grad) for name, p in model.named_parameters()],
    )


def check_restores(method, model, setting):
    """Trains, also into an exception of the caller's and one of its own; compares what is left."""
    model.lm_head.weight.requires_grad_(False)
    model.train()
    state, bits = state_of(model), {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    with method.fit(setting) as fitted:
        assert state_of(model) != state and fitted.n_steps == setting.max_steps
    with pytest.raises(RuntimeError, match="inside"), method.fit(setting):
        raise RuntimeError("inside")
    with pytest.raises(ValueError, match="unknown label 7"):
        method.fit(
            setting_of(model, setting.tokenizer, setting.task, [{"text": "x", "label": 7}])
        ).__enter__()
    assert state_of(model) == state and torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, bits[name]) for name, value in model.state_dict().items())


def slow_logits(model, setting, text) -> torch.Tensor:
    """One prompt, no padding, transformers' own forward."""
    before = setting.task.demonstrations(setting.demonstrations)
    ids = setting.tokenizer(before + setting.task.render(text), return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return model(input_ids=ids).logits[0, -1]


def slow_loss(logits_of, setting) -> float:
    label_ids = setting.task.label_ids(setting.tokenizer)
    losses = [
        F.cross_entropy(logits_of(s["text"]), torch.tensor(label_ids[s["label"]])) for s in setting.shots
    ]
    return torch.stack(losses).mean().item()


def check_training(method, model, setting, rounding=0.0):
    """Untrained it is zero-shot, up to rounding; trained, the loss has fallen; the seed alone decides."""
    with ZeroShot().fit(setting) as fitted:
        zero_shot = fitted.score(TEXTS).log_probs
    loss = slow_loss(lambda text: slow_logits(model, setting, text), setting)
    none = setting_of(model, setting.tokenizer, setting.task, setting.shots, max_steps=0)
    with method.fit(none) as fitted:
        untrained = fitted.score(TEXTS).log_probs
    torch.testing.assert_close(untrained, zero_shot, rtol=rounding, atol=rounding)
    assert fitted.n_steps == 0
    runs = []
    for _ in range(2):
        with method.fit(setting) as fitted:
            assert slow_loss(lambda text: slow_logits(model, setting, text), setting) < 0.9 * loss
            runs.append(fitted.score(TEXTS).log_probs)
    assert torch.equal(*runs) and (runs[0] - zero_shot).abs().max() > 0.1


def test_training(llama, tokenizer, task, shots):
    check_training(LoRA(), llama, setting_of(llama, tokenizer, task, shots))


def test_the_seed_decides_the_initialisation(llama, tokenizer, task, shots):
    def first(seed):
        with LoRA().fit(setting_of(llama, tokenizer, task, shots, seed=seed, max_steps=0)):
            return llama.model.layers[0].self_attn.q_proj.lora_A["default"].weight.detach().clone()

    assert torch.equal(first(1), first(1)) and not torch.equal(first(1), first(2))


def test_the_demonstrations_precede_in_protocol_b(llama, tokenizer, task, shots):
    llama.config.max_position_embeddings = 256
    settings = [setting_of(llama, tokenizer, task, shots, protocol=p, max_steps=6) for p in "AB"]
    for setting in settings:
        with LoRA().fit(setting) as fitted:
            slow = torch.stack([slow_logits(llama, setting, text) for text in TEXTS])
            expected = slow[:, task.label_ids(tokenizer)].log_softmax(-1).float()
            torch.testing.assert_close(fitted.score(TEXTS).log_probs, expected, rtol=1e-5, atol=1e-5)


def test_restores(llama, tokenizer, task, shots):
    check_restores(LoRA(), llama, setting_of(llama, tokenizer, task, shots, max_steps=3))


def test_restores_when_training_fails(llama, tokenizer, task, shots):
    llama.model.norm.weight.data[0] = float("nan")
    state = state_of(llama)
    with pytest.raises(NonFiniteError):
        LoRA().fit(setting_of(llama, tokenizer, task, shots)).__enter__()
    assert state_of(llama) == state


@pytest.mark.filterwarnings("error")
def test_float32_in_a_bfloat16_model_and_quiet(tokenizer, task, shots, capfd):
    model = build_llama(torch.bfloat16)
    with LoRA().fit(setting_of(model, tokenizer, task, shots, max_steps=3)) as fitted:
        trained = [p for p in model.parameters() if p.requires_grad]
        assert {p.dtype for p in trained} == {torch.float32}
        # rank 8 on 24 -> 24 and 24 -> 12, in three layers
        assert fitted.n_trainable == sum(p.numel() for p in trained) == 3 * 8 * (24 + 24 + 24 + 12)
    assert capfd.readouterr() == ("", "")


def test_the_rank_is_that_of_the_options(llama, tokenizer, task, shots):
    method = replace(LoRA(), options=replace(LoRA().options, r=2, lora_alpha=6))
    with method.fit(setting_of(llama, tokenizer, task, shots, max_steps=1)) as fitted:
        assert fitted.n_trainable == 3 * 2 * (24 + 24 + 24 + 12)
        assert llama.model.layers[0].self_attn.q_proj.scaling == {"default": 3}


def test_no_shots_are_refused(llama, tokenizer, task):
    with pytest.raises(ValueError, match="at least one labelled example"):
        LoRA().fit(setting_of(llama, tokenizer, task, [])).__enter__()
