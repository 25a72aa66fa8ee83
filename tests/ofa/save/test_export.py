import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import ofa
from ofa.cli import app
from tests.ofa.conftest import build_llama, make_batch


def adapted(dtype):
    model = build_llama(dtype)
    for norm in ofa.patch_model(model).norms:
        nn.init.uniform_(norm.module.weight, 0.5, 1.5)
    return model


def logits(model):
    batch = make_batch((7, 5))
    with torch.no_grad():
        return model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def test_plain_transformers_gives_the_same_logits(tokenizer, tmp_path, reference_backend):
    model = adapted(torch.float32)
    ofa.export_merged(model, tokenizer, tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(plain.model.norm).__name__ == "LlamaRMSNorm" and plain.dtype == torch.float32
    assert torch.equal(logits(plain), logits(model))
    text = "dull jokes"
    assert AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_in_bfloat16_gamma_is_rounded_once(tokenizer, tmp_path, reference_backend):
    model = adapted(torch.bfloat16)
    ofa.export_merged(model, tokenizer, tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert plain.dtype == torch.bfloat16
    for norm in ofa.patch_model(model).norms:
        rounded = norm.module.weight.data.bfloat16()
        assert torch.equal(plain.model.get_submodule(norm.name).weight, rounded)
        norm.module.weight.data = rounded.float()
    # `.to(bfloat16)` rounds the frequencies of a model that was not loaded in it
    model.model.rotary_emb = plain.model.rotary_emb
    assert torch.equal(logits(plain), logits(model))


def test_wrapped_models_are_refused(tokenizer, tmp_path):
    from peft import LNTuningConfig, get_peft_model

    wrapped = get_peft_model(build_llama(torch.float32), LNTuningConfig(target_modules=["norm"]))
    with pytest.raises(ValueError, match="merge_and_unload"):
        ofa.export_merged(wrapped, tokenizer, tmp_path)


def test_the_command(tmp_path, model_folder, shots):
    config = ofa.OFAConfig(epochs=2)
    words, template = ["bad", "good"], "Review: {text}\nSentiment:"
    classifier = ofa.FewShotClassifier(
        model_folder, words, template, config, dtype=torch.float32, progress=False
    )
    classifier.fit([s["text"] for s in shots], [s["label"] for s in shots])
    classifier.save(tmp_path / "adapter")
    done = CliRunner().invoke(app, ["export", str(tmp_path / "adapter"), str(tmp_path / "plain")])
    assert done.exit_code == 0, done.output
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    torch.testing.assert_close(logits(plain), logits(classifier.model_), rtol=1e-4, atol=1e-4)
