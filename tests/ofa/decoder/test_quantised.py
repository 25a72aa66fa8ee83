"""γ trained between quantised linears, against the same model with its weights dequantised."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import ofa
from ofa.decoder.quantised import check_derivatives
from ofa.decoder.view import Decoder
from ofa.loss.sharpness import layer_sharpness
from ofa.passes.fast import stacked_pass, why_not_stacked
from ofa.passes.layer import Probes
from ofa.passes.own_layers import token_states
from tests.ofa.conftest import build_llama, make_batch

PROBES = Probes([1, 2], 3, 0)
CONFIG = ofa.OFAConfig(lambda_step=1.0, lambda_sharp=1.0, n_probes=2)
# products in float32, summed in another order
ROUNDING = 2e-5


def of_torchao(**options):
    """(quantised to 8 bits, dequantised): weights [N, K] of one scale a row."""
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    model = build_llama(torch.float32, **options)
    torchao.quantize_(model.model, torchao.Int8WeightOnlyConfig())
    dequantised = copy.deepcopy(model)
    for linear in linears(dequantised):
        linear.weight = nn.Parameter(linear.weight.dequantize())
    return model, dequantised


def of_bitsandbytes(folder, bits, **options):
    """(quantised by transformers as it loads, dequantised)."""
    bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    build_llama(torch.float32, **options).save_pretrained(folder)
    settings = {"load_in_8bit": True}
    if bits == 4:
        settings = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    model, dequantised = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map="cpu", **quantised)
        for quantised in ({"quantization_config": BitsAndBytesConfig(**settings)}, {})
    )
    for linear, plain in zip(linears(model), linears(dequantised), strict=True):
        if bits == 4:
            values = bnb.functional.dequantize_4bit(linear.weight.data, linear.weight.quant_state)
        else:
            values = linear.weight.data * linear.weight.SCB[:, None] / 127
        plain.weight = nn.Parameter(values.float())
    return model.eval(), dequantised.eval()


def linears(model):
    return [module for module in model.model.modules() if isinstance(module, nn.Linear)]


def stacked(model):
    ran = stacked_pass(Decoder.of(model), make_batch((7, 5)), PROBES)
    return ran.z, ran.logits, ran.products


def own_layers(model):
    states = token_states(Decoder.of(model), make_batch((7, 5)))
    return states.z, states.logits, layer_sharpness(Decoder.of(model), states, PROBES).value


def the_loss(model):
    return (ofa.objective(model, make_batch((7, 5)), CONFIG).loss,)


def without_sharpness(model):
    states = token_states(Decoder.of(model), make_batch((7, 5)))
    return states.z, states.logits


def errors(run, model, dequantised):
    """Relative errors of what `run` returns, and of the gradients of γ."""
    values, gradients = [], []
    for lm in (model, dequantised):
        weights = [norm.module.weight for norm in ofa.patch_model(lm).norms]
        values.append(run(lm))
        gradients.append(torch.autograd.grad(sum(value.pow(2).sum() for value in values[-1]), weights))
    return tuple(
        max(((a - b).norm() / b.norm()).item() for a, b in zip(*both, strict=True))
        for both in (values, gradients)
    )


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("run", [stacked, own_layers, the_loss])
def test_torchao(run, biases):
    model, dequantised = of_torchao(attention_bias=biases, mlp_bias=biases)
    assert type(linears(model)[0].weight) is not nn.Parameter
    assert why_not_stacked(Decoder.of(model)) is None
    assert max(errors(run, model, dequantised)) < ROUNDING


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("run", [stacked, the_loss, without_sharpness])
def test_four_bits_of_bitsandbytes(run, biases, tmp_path):
    model, dequantised = of_bitsandbytes(tmp_path, 4, attention_bias=biases, mlp_bias=biases)
    assert linears(model)[0].weight.dtype == torch.uint8
    assert why_not_stacked(Decoder.of(model)) is None
    ofa.patch_model(model)
    with torch.no_grad():  # what is measured first must not cost the gradients
        run(model)
    assert max(errors(run, model, dequantised)) < ROUNDING


@pytest.mark.parametrize("run", [stacked, without_sharpness])
def test_eight_bits_of_bitsandbytes_round_the_activations_too(run, tmp_path):
    model, dequantised = of_bitsandbytes(tmp_path, 8)
    assert linears(model)[0].weight.dtype == torch.int8
    values, gradients = errors(run, model, dequantised)
    # every linear's rows are rounded to 1/127 of their largest number, seven linears in each of three layers
    assert values < 0.1 and gradients < 0.3


@pytest.mark.parametrize("bits", [4, 8])
def test_tangents_through_the_layers_of_bitsandbytes_are_refused(bits, tmp_path):
    model, _ = of_bitsandbytes(tmp_path, bits)
    ofa.patch_model(model)
    with pytest.raises(ValueError, match=r"q_proj .* no forward-mode derivative"):
        own_layers(model)


def test_patching_keeps_weights_from_being_packed(tmp_path):
    model, _ = of_bitsandbytes(tmp_path, 4)
    flags = [linear.support_avx512bf16_for_cpu for linear in linears(model)]
    report = ofa.patch_model(model)
    assert not any(linear.support_avx512bf16_for_cpu for linear in linears(model))
    report.undo()
    assert [linear.support_avx512bf16_for_cpu for linear in linears(model)] == flags


def test_weights_packed_for_inference_are_refused(tmp_path):
    model, _ = of_bitsandbytes(tmp_path, 4)
    check_derivatives(model, own_layers=False)
    # set by hand: not every CPU packs, and a forward would read past the end of a weight that isn't packed
    linears(model)[3].weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(ValueError, match=r"packed model.layers.0.self_attn.o_proj"):
        check_derivatives(model, own_layers=False)


def test_no_plain_copy_is_written_of_what_is_none(tokenizer, tmp_path):
    model, _ = of_torchao()
    with pytest.raises(ValueError, match=r"quantised or sharded .* save_adapter"):
        ofa.export_merged(model, tokenizer, tmp_path)


@pytest.mark.parametrize("library", ["torchao", "bitsandbytes"])
def test_fit_trains_gamma_alone(library, tokenizer, task, shots, tmp_path):
    model, _ = of_torchao() if library == "torchao" else of_bitsandbytes(tmp_path, 4)
    stored = [getattr(linear.weight, "qdata", linear.weight.data) for linear in linears(model)]
    before = [weight.clone() for weight in stored]
    cfg = ofa.OFAConfig(epochs=8, lr=1e-2, batch_size=None)
    history = ofa.fit(model, tokenizer, task, shots, cfg, progress=False).history
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]
    assert all(map(torch.equal, stored, before))
