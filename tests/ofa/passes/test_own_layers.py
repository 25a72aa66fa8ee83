import pytest
import torch

from ofa import patch_model
from ofa.decoder.view import Decoder
from ofa.passes.own_layers import ActivationPatch, attention_implementation, token_states
from tests.ofa.conftest import build_llama, make_batch, one_row


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("lengths", [(7, 5), (6, 6), (1,), (1, 4, 9)])
def test_agrees_with_the_model_itself(llama, side, lengths):
    patch_model(llama)
    batch = make_batch(lengths, side)
    states = token_states(Decoder.of(llama), batch)
    for i in range(len(lengths)):
        row = one_row(batch, i)
        out = llama.model(input_ids=row["input_ids"], output_hidden_states=True)
        expected = torch.stack([h[0, -1] for h in out.hidden_states[:-1]])
        torch.testing.assert_close(states.z[:-1, i], expected)
        torch.testing.assert_close(llama.model.norm(states.z[-1, i]), out.last_hidden_state[0, -1])
        torch.testing.assert_close(states.logits[i], llama(input_ids=row["input_ids"]).logits[0, -1])


def test_keys_of_earlier_tokens_are_marked(llama):
    batch = make_batch((4, 3), "left")
    states = token_states(Decoder.of(llama), batch)
    assert states.earlier.tolist() == [[True, True, True, False], [False, True, True, False]]
    assert states.keys[0].shape == (2, 2, 4, 6) and len(states.keys) == 3
    assert token_states(Decoder.of(llama), batch, record=False).keys == ()


def test_a_shared_prefix_changes_nothing(llama):
    batch = make_batch((9, 9))
    batch["input_ids"][1, :5] = batch["input_ids"][0, :5]
    whole = token_states(Decoder.of(llama), batch)
    head = {name: batch[name][:1, :5] for name in ("input_ids", "attention_mask")}
    tail = {name: batch[name][:, 5:] for name in ("input_ids", "attention_mask")}
    split = token_states(Decoder.of(llama), tail, prefix=token_states(Decoder.of(llama), head))
    torch.testing.assert_close(split.logits, whole.logits)
    torch.testing.assert_close(split.z, whole.z)
    torch.testing.assert_close(split.keys[2], whole.keys[2])


@pytest.mark.parametrize("side", ["left", "right"])
def test_an_activation_patch(llama, side):
    batch = make_batch((4, 7), side)
    plain = token_states(Decoder.of(llama), batch)
    for layer in range(3):
        own = token_states(Decoder.of(llama), batch, patch=ActivationPatch(layer, plain.z[layer + 1]))
        assert torch.equal(own.z, plain.z) and torch.equal(own.logits, plain.logits)
        other = token_states(Decoder.of(llama), batch, patch=ActivationPatch(layer, plain.z[layer + 1, 0]))
        torch.testing.assert_close(other.logits[0], plain.logits[0])
        assert torch.equal(other.z[: layer + 1], plain.z[: layer + 1])
        assert torch.equal(other.z[layer + 1, 1], plain.z[layer + 1, 0])
        # the keys and values of the layers below, and of other tokens, are untouched
        assert torch.equal(other.keys[layer], plain.keys[layer])
        assert (other.logits[1] - plain.logits[1]).abs().max() > 1e-3


def test_kept_keys_stay_in_their_places(llama):
    batch = make_batch((9,))
    head, tail = (
        {name: batch[name][:, part] for name in batch if name != "labels"} for part in (slice(5), slice(5, 9))
    )
    kept = token_states(Decoder.of(llama), head).keep([0, 3])
    states = token_states(Decoder.of(llama), tail, prefix=kept)
    seen = torch.ones(9, 9).tril()
    seen[5:, [1, 2, 4]] = 0
    out = llama(batch["input_ids"], attention_mask=seen.bool()[None, None])
    torch.testing.assert_close(states.logits[0], out.logits[0, -1])
    assert states.n_positions == 9 and states.earlier.shape[1] == states.keys[0].shape[2] == 6


def test_attention_setting_is_restored_after_an_error(llama):
    before = llama.config._attn_implementation
    with pytest.raises(KeyError), attention_implementation(Decoder.of(llama), "sdpa"):
        raise KeyError
    assert llama.config._attn_implementation == before


def test_the_models_own_attention_setting_does_not_matter():
    batch = make_batch()
    models = [build_llama(attn_implementation=name) for name in ("sdpa", "eager")]
    a, b = (token_states(Decoder.of(model), batch) for model in models)
    assert torch.equal(a.logits, b.logits)
    assert models[1].config._attn_implementation == "eager"


def test_bad_batches_are_refused(llama):
    batch = make_batch()
    with pytest.raises(ValueError, match=r"\[B, T\], got \(2, 7\) and \(2, 6\)"):
        token_states(Decoder.of(llama), {**batch, "attention_mask": batch["attention_mask"][:, 1:]})
    batch["attention_mask"][1] = 0
    with pytest.raises(ValueError, match=r"example 1 .* no real token"):
        token_states(Decoder.of(llama), batch)
