"""Each family from a tiny random configuration: patched logits, the trace, and a loss that falls."""

import warnings
from contextlib import nullcontext

import peft
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import ofa
from ofa.decoder.families import FAMILIES
from ofa.decoder.view import Decoder
from ofa.loss.sharpness import layer_sharpness, token_map
from ofa.passes.fast import stacked_pass, why_not_stacked
from ofa.passes.hf_attention import ONE_QUERY, SOFT_CAPPED
from ofa.passes.layer import Probes
from ofa.passes.own_layers import attention_implementation, token_states
from ofa_kernels.reference import jacobian_trace
from tests.ofa.conftest import make_batch, one_row
from tests.ofa.loss.test_sharpness import brute_force

OPTIONS = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "smollm3": {"no_rope_layers": [1, 0, 1], "pad_token_id": None},
    "granite": {
        "embedding_multiplier": 3.0,
        "logits_scaling": 2.0,
        "residual_multiplier": 0.4,
        "attention_multiplier": 0.3,
    },
    "phi3": {"pad_token_id": None, "partial_rotary_factor": 0.5, "hidden_size": 32},
    "gemma2": {
        "head_dim": 6,
        "query_pre_attn_scalar": 5,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
        "pad_token_id": None,
    },
    "gemma3_text": {
        "head_dim": 6,
        "query_pre_attn_scalar": 5,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "sliding_window": 64,
        "final_logit_softcapping": 3.0,
        "pad_token_id": None,
    },
    "olmo2": {"pad_token_id": None},
    "gpt2": {"n_inner": 40, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "gptj": {"rotary_dim": 4, "n_inner": 40, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
}
WITHOUT_STACKED_FORM = ("gpt2", "gptj")
# the norm that is P; a block's norms; which of the model's others are frozen
P = {
    **dict.fromkeys(OPTIONS, "post_attention_layernorm"),
    **dict.fromkeys(("gemma2", "gemma3_text"), "pre_feedforward_layernorm"),
    "olmo2": "post_feedforward_layernorm",
    "gpt2": "ln_2",
    "gptj": "ln_1",
}
N_NORMS = {**dict.fromkeys(OPTIONS, 2), "gemma2": 4, "gemma3_text": 4, "gptj": 1}
FROZEN_HEAD_NORMS = ("qwen3", "gemma3_text", "olmo2")


def build(family, dtype=torch.float64, **options):
    """Weights large enough that every layer does something, biases and norms of every kind among them."""
    torch.manual_seed(0)
    settings = {
        "vocab_size": 512, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "initializer_range": 0.3, "bos_token_id": None, "eos_token_id": None, "tie_word_embeddings": False,
    }  # fmt: skip
    config = AutoConfig.for_model(family, **{**settings, **OPTIONS[family], **options})
    model = AutoModelForCausalLM.from_config(config)
    if family == "gptj" and not hasattr(model.transformer, "rotary_emb"):
        with pytest.raises(ValueError, match=r"use transformers 5\.24 or later"):
            ofa.patch_model(model)
        pytest.skip("this transformers' GPT-J turns its keys inside its attention")
    for name, parameter in model.named_parameters():
        if "norm" in name or ("ln_" in name and name.endswith("weight")):
            parameter.data.uniform_(0.5, 1.5)
        elif name.endswith("bias"):
            parameter.data.normal_()
    return model.to(dtype).eval()


def in_float64(model):
    """Norms of heads compute in float32 in transformers, whatever the model's type."""
    family = FAMILIES[model.config.model_type]
    for module in model.modules():
        if type(module).__name__ == family.norm_class:
            module.__class__ = family.norm
    return model


def test_every_family_is_here():
    assert list(OPTIONS) == list(FAMILIES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", OPTIONS)
def test_patched_logits_are_equal_bit_for_bit_and_undo_restores(family, dtype, reference_backend):
    model, batch = build(family, dtype), make_batch((7, 5))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    before, state = model(**inputs).logits, {k: v.clone() for k, v in model.state_dict().items()}
    report = ofa.patch_model(model)
    gammas = [norm.module.weight for norm in report.norms]
    assert len(gammas) == 3 * N_NORMS[family] + 1 and all(gamma.requires_grad for gamma in gammas)
    frozen = [p for name, p in model.named_parameters() if "q_norm" in name or "k_norm" in name]
    assert not any(p.requires_grad for p in frozen) and bool(frozen) == (family in FROZEN_HEAD_NORMS)
    assert torch.equal(model(**inputs).logits, before)
    report.undo()
    assert torch.equal(model(**inputs).logits, before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", OPTIONS)
def test_the_stacked_form_is_the_models_own_layers(family, side):
    model = in_float64(build(family))
    weights = [norm.module.weight for norm in ofa.patch_model(model).norms]
    if family in WITHOUT_STACKED_FORM:
        assert why_not_stacked(Decoder.of(model)) == f"no stacked form of {family} is written"
        return
    assert why_not_stacked(Decoder.of(model)) is None
    batch, probes = make_batch((7, 5, 1), side), Probes(range(3), 4, 3)
    ran, states = stacked_pass(Decoder.of(model), batch, probes), token_states(Decoder.of(model), batch)
    oracle = layer_sharpness(Decoder.of(model), states, probes)
    pairs = [(ran.z, states.z), (ran.logits, states.logits), (-ran.products.mean(1), oracle.value)]
    for found, expected in pairs:
        assert (found - expected).norm() <= 1e-12 * expected.norm()
    gradients, truths = (
        torch.autograd.grad(sum(pair[i].sin().sum() for pair in pairs), weights) for i in (0, 1)
    )
    for found, expected in zip(gradients, truths, strict=True):
        assert (found - expected).norm() <= 1e-9 * expected.norm()


@pytest.mark.parametrize("family", OPTIONS)
def test_logits_are_the_models(family):
    model, batch = in_float64(build(family)), make_batch((7, 5, 1))
    if family == "gemma2":  # some versions of transformers run it with SDPA, which does not cap
        model.set_attn_implementation("eager")
    plain = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    expected = plain[torch.arange(3), torch.tensor([6, 4, 0])]
    # only the eager form caps scores, and its softmax is float32's
    close = {"rtol": 1e-5, "atol": 1e-5} if family == "gemma2" else {}
    torch.testing.assert_close(token_states(Decoder.of(model), batch).logits, expected, **close)


@pytest.mark.parametrize("family", OPTIONS)
def test_the_trace_is_that_of_the_whole_sequences_jacobian(family):
    model = in_float64(build(family))
    ofa.patch_model(model)
    model.requires_grad_(False)
    batch = make_batch((7, 5))
    states = token_states(Decoder.of(model), batch)
    with attention_implementation(Decoder.of(model), SOFT_CAPPED):
        expected = [brute_force(model, one_row(batch, i), P[family]) for i in range(2)]
    for t, layer in enumerate(Decoder.of(model).layers):
        z = states.z[t]
        with attention_implementation(Decoder.of(model), ONE_QUERY):
            p = FAMILIES[family].preconditioner_at(getattr(layer, P[family]), z)
            traces = -jacobian_trace(token_map(Decoder.of(model), states, t), z, p)
        for i in range(2):
            torch.testing.assert_close(traces[i], expected[i][t], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("family", OPTIONS)
def test_sharpness_is_the_trace_of_p(family):
    """Through probes, and with the norm of the family's own table."""
    model = in_float64(build(family))
    ofa.patch_model(model)
    model.requires_grad_(False)
    batch = make_batch((7,))
    with attention_implementation(Decoder.of(model), SOFT_CAPPED):
        expected = brute_force(model, one_row(batch, 0), P[family])
    found = ofa.sharpness(model, batch, n_probes=2000)
    assert ((found.value[:, 0] - expected).abs() < 4 * found.stderr[:, 0]).all()


@pytest.mark.parametrize("family", OPTIONS)
def test_five_steps_lower_the_loss(family, tokenizer, task, shots):
    model = build(family, torch.float32)
    config = ofa.OFAConfig(epochs=5, batch_size=None, lr=1e-2)
    losses = [row["loss"] for row in ofa.fit(model, tokenizer, task, shots, config, progress=False).history]
    assert len(losses) == 5 and losses[-1] < losses[0]


@pytest.mark.parametrize("family", ["mistral", "qwen2", "gemma3_text"])
def test_prompts_longer_than_the_window_are_refused(family):
    options = {"use_sliding_window": True, "max_window_layers": 1} if family == "qwen2" else {}
    model = build(family, sliding_window=6, **options)
    ofa.patch_model(model)
    for run in (token_states,) if family in WITHOUT_STACKED_FORM else (stacked_pass, token_states):
        run(Decoder.of(model), make_batch((6, 5)))
        with pytest.raises(ValueError, match="7 tokens is longer than the model's sliding window of 6"):
            run(Decoder.of(model), make_batch((7, 5)))


@pytest.mark.parametrize("family", OPTIONS)
def test_peft_loads_its_adapter_and_so_do_we(family, tmp_path, reference_backend):
    model, batch = build(family, torch.float32), make_batch((7, 5))
    for norm in ofa.patch_model(model).norms:
        torch.nn.init.normal_(norm.module.weight)
    ofa.save_adapter(model, tmp_path)
    ours, theirs = build(family, torch.float32), build(family, torch.float32)
    ofa.load_adapter(ours, tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Found missing adapter keys")
        theirs = peft.PeftModel.from_pretrained(theirs, tmp_path)
    expected = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    for loaded in (ours, theirs):
        found = loaded(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        assert torch.equal(found, expected)


@pytest.mark.parametrize("trained", [False, True])
def test_trained_biases_are_refused(trained, tmp_path):
    config = peft.LNTuningConfig(task_type="CAUSAL_LM", target_modules=["ln_1"])
    theirs = peft.get_peft_model(build("gpt2", torch.float32), config)
    if trained:
        theirs.base_model.transformer.h[0].ln_1.ln_tuning_layers["default"].bias.data += 1e-3
    theirs.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no biases") if trained else nullcontext():
        ofa.load_adapter(build("gpt2", torch.bfloat16), tmp_path)
