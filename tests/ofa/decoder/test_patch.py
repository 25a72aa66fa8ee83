import copy

import peft
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from transformers import LlamaForSequenceClassification, OPTConfig, OPTForCausalLM

import ofa
import ofa_kernels
from ofa.decoder.norms import RMSNorm
from ofa.decoder.patch import base_gammas, borrowed, set_gammas
from ofa.decoder.view import Decoder
from ofa_kernels import rms_norm
from tests.ofa.conftest import build_llama, make_batch


def logits(model, batch):
    with torch.no_grad():
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("side", ["left", "right"])
def test_reference_backend_keeps_every_bit(dtype, side, monkeypatch):
    monkeypatch.setenv("OFA_BACKEND", "reference")
    model, batch = build_llama(dtype), make_batch(side=side)
    before = logits(model, batch)
    ofa.patch_model(model)
    assert torch.equal(logits(model, batch), before)


def test_triton_errs_at_most_twice_as_much_as_the_unpatched_model(monkeypatch):
    pytest.importorskip("triton", reason="triton is not installed")
    batch, model, exact = make_batch(), build_llama(torch.float32), build_llama(torch.float32).double()
    ofa.patch_model(exact)
    truth = logits(exact, batch)
    own_error = (logits(model, batch) - truth).norm()
    monkeypatch.setenv("OFA_BACKEND", "triton")
    ofa.patch_model(model)
    patched = logits(model, batch)
    assert 0 < (patched - truth).norm() <= 2 * own_error


def test_report_counts_and_describes(llama):
    report = ofa.patch_model(llama.bfloat16())
    assert report.n_trainable == 7 * 24
    assert report.n_parameters == sum(p.numel() for p in llama.parameters())
    table = str(report)
    assert "layers.*.post_attention_layernorm" in table and "preconditioner P" in table
    assert "bfloat16 -> float32" in table and "trainable: 168 of" in table


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_only_gamma_trains_and_keeps_its_precision(dtype):
    model = build_llama(dtype)
    weights = [norm.module.weight for norm in ofa.patch_model(model).norms]
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert {id(p) for p in trainable} == {id(w) for w in weights}
    assert {w.dtype for w in weights} == {torch.float64 if dtype == torch.float64 else torch.float32}


def test_undo_restores_classes_parameters_flags_and_keys():
    model = build_llama(torch.bfloat16)
    model.lm_head.requires_grad_(False)
    parameters = dict(model.named_parameters())
    flags = {name: p.requires_grad for name, p in parameters.items()}
    bits = {name: p.detach().clone() for name, p in parameters.items()}
    classes = {name: type(m) for name, m in model.named_modules()}
    report = ofa.patch_model(model)
    assert list(model.state_dict()) == list(bits) and type(model.model.norm) is RMSNorm
    with torch.no_grad():
        for norm in report.norms:
            norm.module.weight.add_(0.1)
    report.undo()
    report.undo()
    after = dict(model.named_parameters())
    assert all(after[name] is p and torch.equal(p, bits[name]) for name, p in parameters.items())
    assert {name: p.requires_grad for name, p in after.items()} == flags
    assert {name: type(m) for name, m in model.named_modules()} == classes


def test_patching_twice_changes_nothing(llama):
    report = ofa.patch_model(llama)
    weights = [norm.module.weight for norm in report.norms]
    assert ofa.patch_model(llama) is report
    assert all(norm.module.weight is w for norm, w in zip(report.norms, weights, strict=True))


def test_a_stale_report_does_not_undo_a_new_patch(llama):
    old = ofa.patch_model(llama)
    old.undo()
    new = ofa.patch_model(llama)
    old.undo()
    assert type(llama.model.norm) is RMSNorm
    new.undo()
    assert type(llama.model.norm) is not RMSNorm


def test_a_copy_is_a_patched_model_of_its_own(llama):
    ofa.patch_model(llama)
    twin = copy.deepcopy(llama)
    ofa.patch_model(twin).undo()
    assert type(twin.model.norm) is not RMSNorm and type(llama.model.norm) is RMSNorm


def test_patched_model_generates_with_its_cache():
    model, batch = build_llama(torch.float32), make_batch((6, 6))
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    ids, mask = batch["input_ids"], batch["attention_mask"]
    before = model.generate(input_ids=ids, attention_mask=mask, **options)
    ofa.patch_model(model)
    for use_cache in (True, False):
        after = model.generate(input_ids=ids, attention_mask=mask, use_cache=use_cache, **options)
        assert torch.equal(after, before)


@pytest.mark.usefixtures("reference_backend")
@pytest.mark.parametrize(
    "config",
    [
        peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]),
        peft.LNTuningConfig(
            task_type="CAUSAL_LM", target_modules=["input_layernorm", "post_attention_layernorm", "norm"]
        ),
    ],
    ids=["lora", "ln_tuning"],
)
def test_peft_wrapped_models_patch_and_restore(config):
    model = peft.get_peft_model(build_llama(torch.float32), config)
    batch = make_batch()
    before, flags = logits(model, batch), {n: p.requires_grad for n, p in model.named_parameters()}
    report = ofa.patch_model(model)
    assert torch.equal(logits(model, batch), before)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == report.n_trainable == 7 * 24
    with torch.no_grad():
        report.norms[0].module.weight.mul_(2)
    assert not torch.equal(logits(model, batch), before), "the active γ was not the one patched"
    report.undo()
    assert torch.equal(logits(model, batch), before)
    assert {n: p.requires_grad for n, p in model.named_parameters()} == flags


def test_wrapping_after_patching_is_refused():
    model = build_llama(torch.float32)
    ofa.patch_model(model)
    wrapped = peft.get_peft_model(
        model, peft.LNTuningConfig(task_type="CAUSAL_LM", target_modules=["input_layernorm"])
    )
    with pytest.raises(ValueError, match="wrap or cast, then patch"):
        ofa.patch_model(wrapped)


def test_unsupported_models_are_named():
    opt = OPTForCausalLM(OPTConfig(vocab_size=11, hidden_size=8, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(ValueError, match=r"OPTForCausalLM .*'opt'.* supported are .*: gemma2, gemma3_text"):
        ofa.patch_model(opt)
    headless = LlamaForSequenceClassification(build_llama().config)
    with pytest.raises(ValueError, match="LlamaForSequenceClassification"):
        ofa.patch_model(headless)


def test_an_unknown_norm_is_refused_and_nothing_is_changed(llama):
    llama.model.layers[1].input_layernorm = torch.nn.LayerNorm(24)
    with pytest.raises(ValueError, match=r"layers.1.input_layernorm is a LayerNorm"):
        ofa.patch_model(llama)
    assert not any(isinstance(module, RMSNorm) for *_, module in Decoder.of(llama).named_norms())
    assert all(p.requires_grad for p in llama.parameters())


def test_accelerates_hooks_call_the_new_norm_and_the_old_one_after_undo(monkeypatch):
    model, batch = build_llama(torch.bfloat16), make_batch()
    before = logits(model, batch)
    for *_, norm in Decoder.of(model).named_norms():
        add_hook_to_module(norm, AlignDevicesHook(io_same_device=True))
    calls = []
    monkeypatch.setattr(ofa_kernels, "rms_norm", lambda *args: calls.append(1) or rms_norm(*args))
    report = ofa.patch_model(model)
    assert torch.equal(logits(model, batch), before) and len(calls) == 7
    report.undo()
    assert torch.equal(logits(model, batch), before) and len(calls) == 7


def test_norms_that_would_not_listen_are_refused(llama):
    llama.model.norm.forward = lambda x: x
    with pytest.raises(ValueError, match="the forward of norm was replaced"):
        ofa.patch_model(llama)
    del llama.model.norm.forward
    llama.model.norm.to("meta")
    with pytest.raises(ValueError, match="the weight of norm is offloaded"):
        ofa.patch_model(llama)
    llama.model.norm = torch.nn.RMSNorm(24)
    with pytest.raises(ValueError, match="norm is a RMSNorm; only LlamaRMSNorm"):
        ofa.patch_model(llama)
    assert all(p.requires_grad for p in llama.parameters())


def test_patching_again_frees_gamma_and_freezes_what_came_since():
    model = build_llama(torch.float32)
    report = ofa.patch_model(model)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    lora = [p for n, p in wrapped.named_parameters() if "lora" in n]
    assert ofa.patch_model(wrapped) is report
    assert all(norm.module.weight.requires_grad for norm in report.norms)
    assert lora and not any(p.requires_grad for p in lora)
    report.undo()
    assert all(p.requires_grad for p in lora)


def test_a_gamma_that_was_cast_is_refused(llama):
    ofa.patch_model(llama)
    llama.bfloat16()
    with pytest.raises(ValueError, match="wrapped or cast"):
        ofa.patch_model(llama)


def test_virtual_tokens_are_refused():
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    wrapped = peft.get_peft_model(build_llama(torch.float32), config)
    with pytest.raises(ValueError, match="PROMPT_TUNING of PEFT can't be combined"):
        ofa.patch_model(wrapped)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_base_models_gamma_is_known_while_another_is_in_it(dtype):
    model = build_llama(dtype)
    expected = [norm.weight.detach().clone() for *_, norm in Decoder.of(model).named_norms()]
    unpatched = base_gammas(model)
    ofa.patch_model(model)
    set_gammas(model, [torch.rand(24) for _ in expected])
    for found in (unpatched, base_gammas(model)):
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == dtype and torch.equal(one, other)


@pytest.mark.parametrize("patched", [False, True])
def test_a_borrowed_model_is_given_back(patched):
    model = build_llama().train()
    model.lm_head.eval()
    model.lm_head.requires_grad_(False)
    if patched:
        report = ofa.patch_model(model)
        model.model.norm.weight.data.mul_(2)
        model.lm_head.requires_grad_(True)  # until the patch is undone
        report.norms[0].module.weight.requires_grad_(False)

    def state():
        parameters = {name: (id(p), p.requires_grad) for name, p in model.named_parameters()}
        return parameters, [(type(module), module.training) for module in model.modules()]

    before, numbers = state(), {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="in the midst"), borrowed(model) as lent:
        assert not any(module.training for module in model.modules())
        trained = [p for p in model.parameters() if p.requires_grad]
        assert {id(p) for p in trained} == {id(norm.module.weight) for norm in lent.norms}
        lent.norms[1].module.weight.data.zero_()
        raise RuntimeError("in the midst")
    assert state() == before
    assert all(torch.equal(t, numbers[name]) for name, t in model.state_dict().items())
    if patched:
        report.undo()
        flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        assert not flags.pop("lm_head.weight") and all(flags.values())
