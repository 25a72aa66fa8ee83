"""The layer in transformers' kernel mapping: a tiny Llama, kernelized from the installed package."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from ofa_kernels.layers import RMSNorm

kernels = pytest.importorskip("kernels", reason="the package kernels is not installed")

MODES = {
    "inference": kernels.Mode.INFERENCE,
    "training": kernels.Mode.TRAINING,
    "compiled inference": kernels.Mode.INFERENCE | kernels.Mode.TORCH_COMPILE,
    "compiled training": kernels.Mode.TRAINING | kernels.Mode.TORCH_COMPILE,
}
TOKENS = torch.arange(14).reshape(2, 7) % 11


class Repository:
    """What `kernels` asks for a layer; it validates what `load` returns."""

    layer_name = "RMSNorm"

    def load(self):
        return RMSNorm


@pytest.fixture(autouse=True)
def reference_backend(monkeypatch):
    """The backend with the bits of LlamaRMSNorm."""
    monkeypatch.setenv("OFA_BACKEND", "reference")


@pytest.fixture
def named(monkeypatch):
    """The name that transformers' decorator gives, where transformers takes the installed `kernels`."""
    monkeypatch.setattr(LlamaRMSNorm, "kernel_layer_name", "RMSNorm", raising=False)


@pytest.fixture
def plain():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=11,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        rms_norm_eps=1e-2,
    )
    model = LlamaForCausalLM(config)
    for module in norms(model):
        module.weight.data.uniform_(0.5, 1.5)
    return model


def norms(model):
    return [module for module in model.modules() if isinstance(module, LlamaRMSNorm)]


def kernelized(plain, mode):
    model = copy.deepcopy(plain)
    with kernels.use_kernel_mapping({"RMSNorm": {"cpu": Repository()}}, inherit_mapping=False):
        kernels.kernelize(model.train(kernels.Mode.TRAINING in mode), mode=mode, device="cpu")
    # a layer that doesn't fit the mode is left as it was, in silence
    assert all(module.forward.__func__ is RMSNorm.forward for module in norms(model))
    return model


def logits_and_gradients(model, call=None):
    logits = (model if call is None else call)(TOKENS, use_cache=False).logits
    return logits, torch.autograd.grad(logits.pow(2).mean(), list(model.parameters()))


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_logits_bit_for_bit_and_the_gradients(plain, named, mode):
    expected, expected_gradients = logits_and_gradients(plain.train(kernels.Mode.TRAINING in mode))
    found, gradients = logits_and_gradients(kernelized(plain, mode))
    assert torch.equal(found, expected)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-5, atol=1e-6)


def test_compiles_without_a_graph_break(plain, named):
    model = kernelized(plain, MODES["compiled training"])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found, expected = logits_and_gradients(model, compiled), logits_and_gradients(plain)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_kernel_serves_the_layer_where_none_is_ruled_out(plain, named, monkeypatch):
    monkeypatch.delenv("OFA_BACKEND")
    found = kernelized(plain, MODES["inference"])(TOKENS).logits
    torch.testing.assert_close(found, plain(TOKENS).logits, rtol=1e-4, atol=1e-5)
