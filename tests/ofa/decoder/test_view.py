"""One view of every family: its parts are the model's own, and together they are the model."""

from functools import partial

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


@pytest.mark.parametrize("family", FAMILIES)
def test_norms_are_chosen_by_their_layer_and_role(family):
    decoder = Decoder.of(build(family))
    roles = [role for _, role, _ in decoder.named_norms()]
    assert decoder.trained_norms(1.0).all() and decoder.with_preconditioner("own") is decoder
    of_p = [role == decoder.family.role(decoder.family.preconditioner) for role in roles]
    assert decoder.trained_norms(1.0, "p").tolist() == of_p and sum(of_p) == len(decoder.layers)
    upper, per_layer = decoder.trained_norms(0.5).tolist(), (len(roles) - 1) // len(decoder.layers)
    lower = len(decoder.layers) // 2 * per_layer
    assert upper == [False] * lower + [True] * (len(roles) - lower)
    assert decoder.trained_norms(0.5, "p").tolist() == [False] * lower + of_p[lower:]
    if family == "olmo2":
        for ask in (partial(decoder.trained_norms, 1.0), decoder.with_preconditioner):
            with pytest.raises(ValueError, match="no norm stands before attention; there are post_attention"):
                ask("attention")
        return
    before = [role.startswith("before attention") for role in roles]
    assert decoder.trained_norms(1.0, "attention").tolist() == before and sum(before) == len(decoder.layers)
    other, z = decoder.with_preconditioner("attention"), torch.randn(2, decoder.config.hidden_size).double()
    assert other.lm is decoder.lm
    layer = decoder.layers[1]
    norm = decoder.norms_of(layer)[decoder.family.before_attention]
    expected = decoder.family.preconditioner_at(norm, z)
    assert torch.equal(other.preconditioner(layer, z), expected)
