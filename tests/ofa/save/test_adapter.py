import json
import warnings

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

import ofa
from ofa.save.adapter import read_gammas
from tests.ofa.conftest import build_llama, make_batch

NORMS = ["input_layernorm", "post_attention_layernorm", "norm"]


def logits(model):
    batch = make_batch()
    with torch.no_grad():
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def disturb(weights):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in weights:
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator, dtype=torch.float32))


def adapted(dtype=torch.float32):
    model = build_llama(dtype)
    disturb([norm.module.weight for norm in ofa.patch_model(model).norms])
    return model


@pytest.fixture
def folder(tmp_path):
    ofa.save_adapter(adapted(), tmp_path / "adapter", {"note": 1})
    return tmp_path / "adapter"


def test_round_trip_patches_first_and_undo_takes_it_out(folder):
    model = build_llama(torch.float32)
    plain = logits(model)
    report = ofa.load_adapter(model, folder)
    assert torch.equal(logits(model), logits(adapted())) and not torch.equal(logits(model), plain)
    report.undo()
    assert torch.equal(logits(model), plain)


def test_files_are_pefts_with_our_record_beside_them(folder):
    assert sorted(p.name for p in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "ofa_config.json",
    ]
    tensors = load_file(folder / "adapter_model.safetensors")
    assert "base_model.model.model.layers.2.post_attention_layernorm.ln_tuning_layers.weight" in tensors
    assert "base_model.model.model.norm.ln_tuning_layers.weight" in tensors and len(tensors) == 7
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == "LN_TUNING" and sorted(config["target_modules"]) == sorted(NORMS)
    record = json.loads((folder / "ofa_config.json").read_text())
    assert record["note"] == 1 and {"name", "origin", "sha256", "dtype"} <= set(record["model"])


def test_all_its_files_can_be_read_by_the_same_people(folder):
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


@pytest.mark.usefixtures("reference_backend")
def test_peft_loads_ours_with_equal_logits(folder):
    ours = logits(adapted())
    model = peft.PeftModel.from_pretrained(build_llama(torch.float32), folder)
    assert torch.equal(logits(model), ours)
    assert torch.equal(logits(model.merge_and_unload()), ours)


@pytest.mark.usefixtures("reference_backend")
def test_peft_in_bfloat16_equals_ours_with_rounded_gamma(tmp_path):
    model = adapted(torch.bfloat16)
    ofa.save_adapter(model, tmp_path)
    with torch.no_grad():
        for norm in ofa.patch_model(model).norms:
            norm.module.weight.copy_(norm.module.weight.bfloat16())
    theirs = peft.PeftModel.from_pretrained(build_llama(torch.bfloat16), tmp_path)
    assert torch.equal(logits(theirs), logits(model))


@pytest.mark.usefixtures("reference_backend")
@pytest.mark.parametrize("targets", [NORMS, ["input_layernorm"]], ids=["all", "some"])
def test_ours_loads_pefts(targets, tmp_path):
    config = peft.LNTuningConfig(task_type="CAUSAL_LM", target_modules=targets)
    theirs = peft.get_peft_model(build_llama(torch.float32), config)
    disturb([p for p in theirs.parameters() if p.requires_grad])
    theirs.save_pretrained(tmp_path)
    model = build_llama(torch.float32)
    ofa.load_adapter(model, tmp_path)
    assert torch.equal(logits(model), logits(theirs))


def test_an_adapter_trained_inside_pefts_wrapper_is_the_active_one(tmp_path):
    config = peft.LNTuningConfig(task_type="CAUSAL_LM", target_modules=NORMS)
    wrapped = peft.get_peft_model(build_llama(torch.float32), config)
    disturb([norm.module.weight for norm in ofa.patch_model(wrapped).norms])
    ofa.save_adapter(wrapped, tmp_path)
    model = build_llama(torch.float32)
    ofa.load_adapter(model, tmp_path)
    assert torch.equal(logits(model), logits(wrapped))


def spoil_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def spoil_weights(folder, change):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


FIRST = "base_model.model.model.layers.0.input_layernorm.ln_tuning_layers.weight"
DAMAGE = {
    "no folder": (
        lambda f: [p.unlink() for p in f.iterdir()],
        FileNotFoundError,
        "adapter_config.json is missing",
    ),
    "no weights": (
        lambda f: (f / "adapter_model.safetensors").unlink(),
        FileNotFoundError,
        "adapter_model.safetensors is missing",
    ),
    "config cut short": (
        lambda f: (f / "adapter_config.json").write_text('{"peft_type": '),
        ValueError,
        "adapter_config.json is damaged",
    ),
    "other kind": (lambda f: spoil_config(f, peft_type="LORA"), ValueError, "LORA adapter; only LN_TUNING"),
    "weights cut short": (
        lambda f: (f / "adapter_model.safetensors").write_bytes(
            (f / "adapter_model.safetensors").read_bytes()[:-50]
        ),
        ValueError,
        "adapter_model.safetensors is damaged",
    ),
    "tensor missing": (lambda f: spoil_weights(f, lambda t: t.pop(FIRST)), ValueError, f"{FIRST} is missing"),
    "tensor unknown": (
        lambda f: spoil_weights(f, lambda t: t.update(extra=torch.zeros(2))),
        ValueError,
        "no place for the tensor extra",
    ),
    "wrong shape": (
        lambda f: spoil_weights(f, lambda t: t.update({FIRST: torch.ones(25)})),
        ValueError,
        rf"{FIRST} has shape \(25,\), and the model needs \(24,\)",
    ),
    "NaN": (
        lambda f: spoil_weights(f, lambda t: t[FIRST].fill_(float("nan"))),
        ValueError,
        f"{FIRST} holds NaN",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_adapters_are_refused_and_the_model_stays(damage, folder):
    spoil, error, message = DAMAGE[damage]
    spoil(folder)
    model = build_llama(torch.float32)
    with pytest.raises(error, match=message):
        ofa.load_adapter(model, folder)
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(logits(model), logits(build_llama(torch.float32)))


def test_the_wrong_base_model_is_refused(folder):
    with pytest.raises(ValueError, match=r"layers\.2\..* wrong base model"):
        ofa.load_adapter(build_llama(torch.float32, n_layers=2), folder)


def test_other_weights_of_the_same_shape_are_pointed_out(tmp_path):
    folders = [tmp_path / name for name in "ab"]
    for i, folder in enumerate(folders):
        model = build_llama(torch.float32)
        model.lm_head.weight.data += i
        model.save_pretrained(folder)
    first, second = (LlamaForCausalLM.from_pretrained(folder) for folder in folders)
    ofa.save_adapter(first, tmp_path / "adapter")
    with pytest.warns(UserWarning, match=r"was trained on .*/a \(SHA-256 .* this model is .*/b \("):
        ofa.load_adapter(second, tmp_path / "adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ofa.load_adapter(first, tmp_path / "adapter")


def test_nothing_is_written_for_a_gamma_with_nan(tmp_path):
    model = adapted()
    with torch.no_grad():
        model.model.norm.weight[3] = float("inf")
    with pytest.raises(ValueError, match="γ of norm holds NaN or infinite values; nothing was written"):
        ofa.save_adapter(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_gamma_alone_makes_no_classifier(folder):
    with pytest.raises(ValueError, match=r"use ofa\.load_adapter"):
        ofa.load(folder)


@pytest.mark.usefixtures("reference_backend")
def test_an_adapter_of_some_norms_leaves_nothing_of_the_one_before(folder, tmp_path):
    config = peft.LNTuningConfig(task_type="CAUSAL_LM", target_modules=["input_layernorm"])
    theirs = peft.get_peft_model(build_llama(torch.float32), config)
    disturb([p for p in theirs.parameters() if p.requires_grad])
    theirs.save_pretrained(tmp_path / "some")
    model = build_llama(torch.float32)
    ofa.load_adapter(model, folder)
    ofa.load_adapter(model, tmp_path / "some")
    assert torch.equal(logits(model), logits(theirs))


def test_gamma_is_read_without_a_change_of_the_model(tmp_path):
    config = peft.LNTuningConfig(task_type="CAUSAL_LM", target_modules=["input_layernorm"])
    theirs = peft.get_peft_model(build_llama(torch.float32), config)
    disturb([p for p in theirs.parameters() if p.requires_grad])
    theirs.save_pretrained(tmp_path)
    ofa.patch_model(theirs)
    model = build_llama(torch.float32)
    expected = [norm.module.weight for norm in ofa.patch_model(theirs).norms]
    for patched in (False, True):  # with other γ in it
        if patched:
            disturb([norm.module.weight for norm in ofa.patch_model(model).norms])
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        for found, gamma in zip(read_gammas(model, tmp_path), expected, strict=True):
            assert torch.equal(found, gamma)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert ("_ofa_patch" in model.model.__dict__) == patched


def test_weights_that_are_not_saved_are_named(tmp_path):
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])
    model = peft.get_peft_model(build_llama(torch.float32), config)
    ofa.patch_model(model)
    with pytest.warns(UserWarning, match="only γ is saved, not the model's LORA weights"):
        ofa.save_adapter(model, tmp_path)
