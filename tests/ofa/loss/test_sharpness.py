import pytest
import torch

import ofa
from ofa.decoder.view import Decoder
from ofa.loss.sharpness import token_map
from ofa.passes.hf_attention import ONE_QUERY
from ofa.passes.own_layers import attention_implementation, token_states
from ofa_kernels.reference import jacobian_trace, preconditioner
from tests.ofa.conftest import build_llama, make_batch, one_row

N_LAYERS = 3


def brute_force(model, row, norm="post_attention_layernorm") -> torch.Tensor:
    """-tr(J_f P) [layers] from the Jacobian of the whole sequence's layer map, its last-token block."""
    ids = row["input_ids"]
    positions = torch.arange(ids.shape[1])[None]
    decoder = Decoder.of(model)
    hidden = decoder.embed(ids, positions)
    turns, traces = decoder.rotary(hidden, positions), []
    for layer, kind in zip(decoder.layers, decoder.rotary_kinds, strict=True):
        turn = turns[kind]

        def f(z, layer=layer, turn=turn):
            return layer(z[None], attention_mask=None, position_embeddings=turn)[0] - z

        z = hidden[0].detach()
        jacobian = torch.autograd.functional.jacobian(f, z)[-1, :, -1, :]  # [D, D]
        traces.append(-(jacobian.diagonal() * preconditioner_of(getattr(layer, norm), z[-1])).sum())
        hidden = layer(hidden, attention_mask=None, position_embeddings=turn)
    return torch.stack(traces).detach()


def preconditioner_of(norm, z):
    """γ / σ(z), by the kind of the norm."""
    if isinstance(norm, torch.nn.LayerNorm):
        return norm.weight / (z.var(correction=0) + norm.eps).sqrt()
    eps = norm.eps if "Gemma" in type(norm).__name__ else norm.variance_epsilon
    gamma = 1 + norm.weight if "Gemma" in type(norm).__name__ else norm.weight
    return gamma / (z.pow(2).mean() + eps).sqrt()


@pytest.fixture
def patched(llama):
    ofa.patch_model(llama)
    return llama.requires_grad_(False)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_tokens_own_map_has_exactly_the_sequences_trace(patched, side):
    """No probes: what Hutchinson estimates is the quantity meant, to the last digits."""
    batch = make_batch((7, 5), side)
    states = token_states(Decoder.of(patched), batch)
    for t, layer in enumerate(patched.model.layers):
        norm, z = layer.post_attention_layernorm, states.z[t]
        with attention_implementation(Decoder.of(patched), ONE_QUERY):
            f = token_map(Decoder.of(patched), states, t)
            torch.testing.assert_close(f(z), states.z[t + 1] - z, rtol=1e-10, atol=1e-12)
            p = preconditioner(z, norm.weight, norm.variance_epsilon)
            traces = -jacobian_trace(f, z, p)
        for i in range(2):
            expected = brute_force(patched, one_row(batch, i))[t]
            torch.testing.assert_close(traces[i], expected, rtol=1e-10, atol=1e-12)


def test_it_is_the_trace(patched):
    batch = make_batch()
    estimate = ofa.sharpness(patched, batch, n_probes=4000)
    truth = torch.stack([brute_force(patched, one_row(batch, i)) for i in range(2)], dim=1)
    assert estimate.value.shape == estimate.stderr.shape == (N_LAYERS, 2)
    assert ((estimate.value - truth).abs() <= 4 * estimate.stderr).all()
    assert (estimate.stderr < 0.2 * truth.abs().max()).all(), "an error bar this wide shows nothing"


def test_standard_error_shrinks_with_the_root_of_the_probes(patched):
    few, many = (ofa.sharpness(patched, make_batch(), n_probes=n).stderr for n in (250, 4000))
    ratio = few / many
    # the relative error of a standard deviation from n samples is about sqrt(kurtosis-like / 4n)
    torch.testing.assert_close(ratio, torch.full_like(ratio, 4.0), rtol=0.25, atol=0)


def test_error_bars_cover(patched):
    """Over many seeds the mean of 8 probes lies within two standard errors about as often as it should."""
    batch = make_batch((6,))
    truth = brute_force(patched, one_row(batch, 0))
    hits = []
    for seed in range(60):
        estimate = ofa.sharpness(patched, batch, n_probes=8, seed=seed)
        hits.append((estimate.value[:, 0] - truth).abs() <= 2 * estimate.stderr[:, 0])
    share = torch.stack(hits).double().mean()
    assert 0.85 < share < 0.99  # Student's t with 7 degrees of freedom: 0.914


def test_jvp_and_finite_differences_agree(patched):
    batch = make_batch()
    exact = ofa.sharpness(patched, batch, n_probes=4)
    approximate = ofa.sharpness(patched, batch, n_probes=4, method="fd", fd_eps=1e-8)
    torch.testing.assert_close(approximate.value, exact.value, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(approximate.stderr, exact.stderr, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("lengths", [(7, 5), (4, 9, 1, 6)])
def test_a_batch_gives_what_its_examples_give_alone(patched, side, lengths):
    batch = make_batch(lengths, side)
    together = ofa.sharpness(patched, batch, n_probes=3, seed=5)
    alone = [ofa.sharpness(patched, one_row(batch, i), n_probes=3, seed=5) for i in range(len(lengths))]
    torch.testing.assert_close(together.value, torch.cat([a.value for a in alone], dim=1))
    torch.testing.assert_close(together.stderr, torch.cat([a.stderr for a in alone], dim=1))


def test_probes_follow_the_seed_and_the_example(patched):
    batch = make_batch()
    base = ofa.sharpness(patched, batch, n_probes=2, seed=1).value
    assert torch.equal(ofa.sharpness(patched, batch, n_probes=2, seed=1).value, base)
    assert not torch.isclose(ofa.sharpness(patched, batch, n_probes=2, seed=2).value, base).any()
    other = {**batch, "example_ids": torch.tensor([0, 7])}
    moved = torch.isclose(ofa.sharpness(patched, other, n_probes=2, seed=1).value, base)
    assert moved[:, 0].all() and not moved[:, 1].any()


def test_one_probe_has_no_error_bar(patched):
    assert ofa.sharpness(patched, make_batch(), n_probes=1).stderr.isnan().all()


def test_triton_and_reference_agree(monkeypatch):
    pytest.importorskip("triton", reason="triton is not installed")
    model, batch = build_llama(), make_batch()
    weights = [norm.module.weight for norm in ofa.patch_model(model).norms]

    def run(backend):
        monkeypatch.setenv("OFA_BACKEND", backend)
        value = ofa.sharpness(model, batch, n_probes=2).value
        return [value, *torch.autograd.grad(value.mean(), weights, allow_unused=True)[:-1]]

    for fused, truth in zip(run("triton"), run("reference"), strict=True):
        torch.testing.assert_close(fused, truth, rtol=1e-10, atol=1e-12)


def test_bfloat16_stays_near_float32():
    values = []
    for dtype in (torch.float32, torch.bfloat16):
        model = build_llama(torch.bfloat16).to(dtype)  # the same weights
        ofa.patch_model(model)
        values.append(ofa.sharpness(model, make_batch(), n_probes=64).value.float())
    assert (values[0] - values[1]).norm() <= 0.1 * values[0].norm()


def test_the_one_query_attention_serves_no_whole_model(patched):
    patched.config._attn_implementation = ONE_QUERY
    with pytest.raises(RuntimeError, match="serve its own passes"):
        patched(input_ids=torch.tensor([[1, 2, 3]]), attention_mask=torch.tensor([[0, 1, 1]]))
