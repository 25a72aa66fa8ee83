import pytest
import torch

from ofa.compare.methods import i2cl
from ofa.compare.methods.i2cl import (
    I2CL,
    calibrate,
    context_vectors,
    initial_scalars,
    injection,
    noisy,
    outputs_changed,
)
from ofa.compare.methods.zero_shot import ZeroShot
from ofa.decoder.view import Decoder
from tests.ofa.compare.methods.test_lora import check_restores, setting_of, slow_logits, slow_loss
from tests.ofa.conftest import TEXTS, build_llama


@pytest.fixture
def setting(llama, tokenizer, task, shots):
    return setting_of(llama, tokenizer, task, shots)


def slow_vectors(setting) -> torch.Tensor:
    """One demonstration, one layer and one part at a time, through transformers."""
    result = torch.zeros(3, 2, 24, dtype=torch.float64)
    for i, layer in enumerate(setting.model.model.layers):
        for part, module in enumerate((layer.self_attn, layer.mlp)):
            for shot in setting.shots:
                found = []
                handle = module.register_forward_hook(lambda _, __, output, found=found: found.append(output))
                text = f"{setting.task.render(shot['text'])} {setting.task.label_words[shot['label']]}"
                with torch.no_grad():
                    setting.model(**setting.tokenizer(text, return_tensors="pt"))
                handle.remove()
                output = found[0] if part else found[0][0]
                result[i, part] += output[0, -1] / len(setting.shots)
    return result


def test_context_vectors(setting):
    torch.testing.assert_close(context_vectors(setting), slow_vectors(setting))


def test_nothing_mixed_in_is_zero_shot(setting, llama):
    vectors = context_vectors(setting)
    with ZeroShot().fit(setting) as fitted:
        expected = fitted.score(TEXTS).log_probs
    scalars = torch.tensor([0.0, 1.0]).expand(3, 2, 2)
    with outputs_changed(Decoder.of(llama), injection(vectors, scalars)):
        assert torch.equal(setting.scorer()(TEXTS).log_probs, expected)
    with outputs_changed(Decoder.of(llama), injection(vectors, initial_scalars(vectors))):
        assert (setting.scorer()(TEXTS).log_probs - expected).abs().max() > 1e-3


def test_every_scalar_has_its_place(llama):
    """A block written out, at every token."""
    vectors = torch.arange(3 * 2 * 24, dtype=torch.float64).view(3, 2, 24) / 100
    scalars = torch.arange(12, dtype=torch.float64).view(3, 2, 2) / 10
    x = torch.randn(2, 5, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rotary = llama.model.rotary_emb(x, torch.arange(5)[None])
    for i, layer in enumerate(llama.model.layers):
        ((a0, a1), (m0, m1)), (attention, mlp) = scalars[i], vectors[i]
        h = x + a1 * layer.self_attn(layer.input_layernorm(x), rotary)[0] + a0 * attention
        expected = h + m1 * layer.mlp(layer.post_attention_layernorm(h)) + m0 * mlp
        with outputs_changed(Decoder.of(llama), injection(vectors, scalars)):
            torch.testing.assert_close(layer(x, position_embeddings=rotary), expected)


def test_the_noise_is_relative_to_each_tokens_norm():
    output = torch.ones(2, 50, 400, dtype=torch.float64) * torch.tensor([1.0, 1000.0])[:, None, None]
    changed = noisy(lambda _, __, output: output, torch.Generator().manual_seed(0))(0, 0, output)
    deviation = (changed - output).std((1, 2)) / output.norm(dim=-1)[:, 0]
    torch.testing.assert_close(deviation, torch.full_like(deviation, 1e-3), rtol=0.05, atol=0)


def test_training_lowers_the_loss(setting, llama):
    vectors = context_vectors(setting)
    scalars = initial_scalars(vectors)
    change = injection(vectors, scalars)
    bits = {name: value.clone() for name, value in llama.state_dict().items()}

    def loss() -> float:
        with outputs_changed(Decoder.of(llama), change):
            return slow_loss(lambda text: slow_logits(llama, setting, text), setting)

    before, vectors_before = loss(), vectors.clone()
    assert calibrate(setting, vectors, scalars, I2CL().options) == 100 * 3
    assert loss() < 0.9 * before
    assert (scalars != initial_scalars(vectors)).all() and torch.equal(vectors, vectors_before)
    assert all(torch.equal(value, bits[name]) for name, value in llama.state_dict().items())
    assert all(parameter.grad is None for parameter in llama.parameters())


def test_noise_in_training_only_and_from_the_seed(llama, tokenizer, task, shots, monkeypatch):
    def fit(seed):
        with I2CL().fit(setting_of(llama, tokenizer, task, shots, seed=seed, max_steps=4)) as fitted:
            scores = fitted.score(TEXTS).log_probs
            assert torch.equal(fitted.score(TEXTS).log_probs, scores)
            return scores

    noised = fit(0)
    assert torch.equal(fit(0), noised) and not torch.equal(fit(1), noised)
    monkeypatch.setattr(i2cl, "NOISE", 0.0)
    assert not torch.equal(fit(0), noised)


@pytest.mark.parametrize("protocol", ["A", "B"])
def test_scores(llama, tokenizer, task, shots, protocol):
    llama.config.max_position_embeddings = 256
    setting = setting_of(llama, tokenizer, task, shots, protocol=protocol, max_steps=6)
    with I2CL().fit(setting) as fitted:
        assert fitted.n_trainable == 4 * 3 and fitted.n_steps == 6
        # the model itself computes with the injection
        slow = torch.stack([slow_logits(llama, setting, text) for text in TEXTS])
        expected = slow[:, task.label_ids(tokenizer)].log_softmax(-1).float()
        torch.testing.assert_close(fitted.score(TEXTS).log_probs, expected, rtol=1e-5, atol=1e-5)
        single = torch.cat([fitted.score([text]).log_probs for text in TEXTS])
    torch.testing.assert_close(single, expected, rtol=1e-5, atol=1e-5)


def test_restores(llama, tokenizer, task, shots):
    check_restores(I2CL(), llama, setting_of(llama, tokenizer, task, shots, max_steps=3))


def test_float32_scalars_in_a_bfloat16_model(tokenizer, task, shots):
    model = build_llama(torch.bfloat16)
    setting = setting_of(model, tokenizer, task, shots, max_steps=3)
    assert initial_scalars(context_vectors(setting)).dtype == torch.float32
    with I2CL().fit(setting) as fitted:
        assert fitted.score(TEXTS).log_probs.isfinite().all()


def test_no_shots_are_refused(llama, tokenizer, task):
    with pytest.raises(ValueError, match="at least one labelled example"):
        I2CL().fit(setting_of(llama, tokenizer, task, [])).__enter__()
