"""The stacked form against the model's own layers under vmap(jvp), in float64."""

import pytest
import torch
from torch import nn

import ofa
from ofa.decoder.view import Decoder
from ofa.loss.sharpness import layer_sharpness
from ofa.passes.fast import stacked_pass, why_not_stacked
from ofa.passes.layer import Probes
from ofa.passes.own_layers import token_states
from tests.ofa.conftest import build_llama, make_batch, one_row

LAYERS = range(3)


def patched(**options):
    model = build_llama(**options)
    return model, [norm.module.weight for norm in ofa.patch_model(model).norms]


def biased(**options):
    """Every linear with a bias, which torch's own initialisation leaves at zero."""
    model, weights = patched(attention_bias=True, mlp_bias=True, **options)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return model, weights


def both_ways(model, batch, n_probes, seed=3):
    """(z, logits, H [layers, B]) stacked, and by the oracle."""
    probes = Probes(LAYERS, n_probes, seed, batch.get("example_ids"))
    ran, states = stacked_pass(Decoder.of(model), batch, probes), token_states(Decoder.of(model), batch)
    oracle = layer_sharpness(Decoder.of(model), states, probes)
    stacked = ran.z, ran.logits, -ran.products.mean(1)
    return stacked, (states.z, states.logits, oracle.value)


def scalar(z, logits, sharpness):
    """Something that depends on all of them unevenly."""
    generator = torch.Generator().manual_seed(0)
    weigh = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in (z, logits, sharpness)]
    return sum((t * w).sum() for t, w in zip((z, logits, sharpness), weigh, strict=True))


def other_activation(**options):
    return patched(hidden_act="gelu", **options)


@pytest.mark.parametrize("build", [patched, biased, other_activation])
@pytest.mark.parametrize("n_probes", [1, 8])
@pytest.mark.parametrize("side", ["left", "right"])
def test_values_and_gradients_are_the_oracles(build, side, n_probes):
    model, weights = build()
    stacked, oracle = both_ways(model, make_batch((7, 5, 1, 6), side), n_probes)
    for found, expected in zip(stacked, oracle, strict=True):
        assert (found - expected).norm() <= 1e-12 * expected.norm()
    gradients = torch.autograd.grad(scalar(*stacked), weights)
    truths = torch.autograd.grad(scalar(*oracle), weights)
    for found, expected in zip(gradients, truths, strict=True):
        assert (found - expected).norm() <= 1e-9 * expected.norm()


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_gives_what_its_examples_give_alone(side):
    model, weights = patched()
    lengths = (7, 5, 2)
    batch = {**make_batch(lengths, side), "example_ids": torch.tensor([0, 1, 2])}

    def run(batch):
        ran = stacked_pass(Decoder.of(model), batch, Probes(LAYERS, 2, 1, batch["example_ids"]))
        loss = ran.logits[:, 5].sum() + ran.products.sum()
        return ran.z, ran.products, torch.autograd.grad(loss, weights)

    z, products, gradients = run(batch)
    alone = [run(one_row(batch, i)) for i in range(len(lengths))]
    torch.testing.assert_close(z, torch.cat([a[0] for a in alone], 1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(products, torch.cat([a[1] for a in alone], 2), rtol=1e-12, atol=1e-12)
    for i, gradient in enumerate(gradients):
        expected = sum(a[2][i] for a in alone)
        assert (gradient - expected).norm() <= 1e-12 * expected.norm()


def test_without_probes_the_states_are_the_same():
    model, _ = patched()
    batch = make_batch((7, 5))
    plain, probed = (
        stacked_pass(Decoder.of(model), batch),
        stacked_pass(Decoder.of(model), batch, Probes([1], 4, 0)),
    )
    assert plain.products is None and probed.products.shape == (1, 4, 2)
    torch.testing.assert_close(plain.z, probed.z, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(plain.logits, probed.logits, rtol=1e-13, atol=1e-13)


def test_gradient_checkpointing_changes_nothing():
    model, weights = patched()
    batch = make_batch((7, 5))

    def run():
        ran = stacked_pass(Decoder.of(model), batch, Probes([1, 2], 3, 0))
        loss = ran.logits.sum() + ran.products.sum() + ran.z.pow(2).sum()
        return [ran.products, *torch.autograd.grad(loss, weights)]

    plain = run()
    calls = []
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.model.layers[1].mlp.gate_proj.register_forward_hook(lambda *_: calls.append(1))
    for found, expected in zip(run(), plain, strict=True):
        assert torch.equal(found, expected)
    assert len(calls) == 2, "the layer was not run again in the backward pass"


def test_inside_peft_the_active_weights_and_adapters_count():
    from peft import LNTuningConfig, LoraConfig, get_peft_model

    batch = make_batch((7, 5))
    for config in (
        LNTuningConfig(target_modules=["input_layernorm", "post_attention_layernorm", "norm"]),
        LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False),
    ):
        model = get_peft_model(build_llama(), config).double().eval()
        for norm in ofa.patch_model(model).norms:
            nn.init.uniform_(norm.module.weight, 0.5, 1.5)
        stacked, oracle = both_ways(model, batch, 2)
        for found, expected in zip(stacked, oracle, strict=True):
            assert (found - expected).norm() <= 1e-12 * expected.norm()


def test_what_is_not_written_out_is_named():
    model, _ = patched()
    assert why_not_stacked(Decoder.of(model)) is None
    layer = model.model.layers[0]
    layer._hf_hook = object()
    assert "accelerate" in why_not_stacked(Decoder.of(model))
    del layer._hf_hook

    class Foreign(nn.Module):
        bias = torch.zeros(40)

    layer.mlp.up_proj = Foreign()
    assert "a Foreign adds a bias" in why_not_stacked(Decoder.of(model))
    model, _ = patched(attention_dropout=0.1)
    assert why_not_stacked(Decoder.of(model)) is None
    assert why_not_stacked(Decoder.of(model.train())) == "dropout is on"
    with pytest.raises(ValueError, match=r"call model.eval\(\)"):
        ofa.sharpness(model, make_batch())
