"""One view of every family: its parts are the model's own, and together they are the model."""

import peft
import pytest
import torch

import ofa
from ofa.decoder.families import FAMILIES
from ofa.decoder.view import Decoder
from tests.ofa.conftest import build_llama, make_batch
from tests.ofa.decoder.test_families import build


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_together_are_the_model(family):
    model, batch = build(family), make_batch((7, 7))
    decoder = Decoder.of(model)
    ids = batch["input_ids"]
    positions = torch.arange(7).expand(2, 7)
    hidden = decoder.embed(ids, positions)
    turns = decoder.rotary(hidden, positions)
    assert set(turns) == set(decoder.rotary_kinds) and len(decoder.rotary_kinds) == len(decoder.layers)
    recorded = model(
        **{name: batch[name] for name in ("input_ids", "attention_mask")}, output_hidden_states=True
    )
    torch.testing.assert_close(hidden, recorded.hidden_states[0], rtol=1e-12, atol=1e-12)
    # the last of transformers' states is behind the final norm
    logits = decoder.logits(recorded.hidden_states[-1])
    torch.testing.assert_close(logits, recorded.logits, rtol=1e-12, atol=1e-12)
    assert decoder.device == recorded.logits.device and decoder.max_tokens >= 7
    names = [name for name, *_ in decoder.named_norms()]
    assert len(names) == len(set(names)) == len(decoder.family.roles) * len(decoder.layers) + 1
    for name, _, norm in decoder.named_norms():
        assert decoder.stack.get_submodule(name) is norm


def test_the_view_looks_into_pefts_wrapper():
    model = build_llama()
    wrapped = peft.get_peft_model(model, peft.LNTuningConfig(target_modules=["input_layernorm"]))
    decoder = Decoder.of(wrapped)
    assert decoder.lm is model and decoder == Decoder.of(model)
    copies = {name: norm for name, _, norm in decoder.named_norms() if "input_layernorm" in name}
    assert all(norm.weight.requires_grad for norm in copies.values())


def test_the_norm_of_p_is_one_of_the_blocks():
    assert all(family.preconditioner in family.roles for family in FAMILIES.values())


@pytest.mark.parametrize("call", [Decoder.of, ofa.patch_model])
def test_what_is_no_supported_model_is_named(call):
    with pytest.raises(ValueError, match=r"Linear \(model type None\) is not supported; supported are"):
        call(torch.nn.Linear(2, 2))
