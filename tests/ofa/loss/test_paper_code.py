"""The authors' objective against a transcription that runs layers by hand and draws the same noise."""

import math

import pytest
import torch

import ofa
from benchmarks.authors_step import authors_loss, frozen_gammas
from ofa.config import OFAConfig
from ofa.loss.objective import objective
from ofa_kernels.probes import mix
from tests.ofa.conftest import build_llama, make_batch

CONFIG = OFAConfig.paper_code(seed=5)


def run_by_hand(model, ids, shifts):
    """States [T+1] of one unpadded prompt, the last after the final norm; layer i is given shifts[i] more."""
    decoder = model.model
    hidden = decoder.embed_tokens(ids[None])
    rotary = decoder.rotary_emb(hidden, torch.arange(len(ids))[None])
    states = [hidden[0]]
    for layer, shift in zip(decoder.layers, shifts, strict=True):
        hidden = layer(hidden + shift, attention_mask=None, position_embeddings=rotary)
        states.append(hidden[0])
    states[-1] = decoder.norm(states[-1])
    return states


def slow_terms(model, gammas, ids, label, seed):
    """(CE, J, H) of one prompt, number by number."""
    n_layers, eps = len(gammas), 1e-3
    clean = run_by_hand(model, ids, [0.0] * n_layers)
    log_probs = (model.lm_head.weight @ clean[-1][-1]).log_softmax(0)
    h = [state[-1] for state in clean]
    j = 0.0
    for t in range(2, n_layers):
        j = j + (h[t] - h[t + 1]).pow(2).mean() / (h[t] - h[t - 1]).pow(2).mean()
    generator = torch.Generator().manual_seed(seed)
    noise = [
        torch.randn(1, *clean[0].shape, generator=generator, dtype=h[0].dtype)[0] for _ in range(n_layers)
    ]
    noisy = run_by_hand(model, ids, [eps * n * g for n, g in zip(noise, gammas, strict=True)])
    sharp = []
    for i in range(1, n_layers):
        d = (noisy[i + 1][-1] - noisy[i][-1]) - (h[i + 1] - h[i])
        product = sum(eps * noise[i][-1][c] * d[c] for c in range(len(d))) / eps
        sharp.append(torch.log1p(torch.exp(-product)))
    return -log_probs[label], j, sum(sharp) / len(sharp)


@pytest.mark.parametrize("side", ["left", "right"])
def test_terms_and_gradients_are_the_authors(side):
    model = build_llama(n_layers=4)
    gammas = [layer.post_attention_layernorm.weight.detach().clone() for layer in model.model.layers]
    weights = [norm.module.weight for norm in ofa.patch_model(model).norms]
    with torch.no_grad():
        for weight in weights:  # trained: the frozen ones must stay in the shifts
            weight.add_(0.1 * torch.randn_like(weight))
    batch = make_batch((6,), side)
    terms = objective(model, batch, CONFIG, step=3)
    slow = slow_terms(model, gammas, batch["input_ids"][0], batch["labels"][0], mix(5, 3))
    for found, expected in zip((terms.cross_entropy, terms.step_ratio, terms.sharpness), slow, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    loss = slow[0] + 1e-2 * slow[1] + 1e-3 * slow[2]
    torch.testing.assert_close(terms.loss, loss, rtol=1e-12, atol=0)
    truths = torch.autograd.grad(loss, weights)
    for found, expected in zip(torch.autograd.grad(terms.loss, weights), truths, strict=True):
        assert (found - expected).norm() <= 1e-8 * expected.norm()


def test_the_timed_transcription_computes_the_same():
    """With ragged prompts too, where the product of noise and difference is a matrix."""
    model = build_llama(torch.float32, n_layers=4)
    gammas = frozen_gammas(model)
    ofa.patch_model(model)
    batch = make_batch((6, 4))
    expected = objective(model, batch, CONFIG, step=0).loss
    torch.manual_seed(mix(5, 0))  # the global generator then draws what a new one of this seed does
    torch.testing.assert_close(authors_loss(model, batch, gammas), expected, rtol=1e-5, atol=0)


def test_preset_and_schedule_are_as_published():
    assert (CONFIG.lr, CONFIG.weight_decay, CONFIG.epochs, CONFIG.batch_size) == (1e-3, 1e-3, 60, 1)
    assert (CONFIG.lambda_step, CONFIG.lambda_sharp) == (1e-2, 1e-3)
    n = 10
    warmup, total = int(0.05 * 60 * n), 60 * n
    factor = CONFIG.schedule().factor(n)
    for step in (0, 1, warmup - 1, warmup, warmup + 1, 300, total - 1):
        expected = step / warmup if step < warmup else (1 + math.cos(math.pi * step / total)) / 2
        assert factor(step) == pytest.approx(expected)


def test_a_run_too_short_to_warm_up_divides_by_nothing():
    assert OFAConfig(epochs=1, batch_size=1, terms="paper_code").schedule().factor(3)(0) == 1.0


def test_fit_takes_the_preset(tokenizer, task, shots):
    model = build_llama(torch.float32)
    result = ofa.fit(model, tokenizer, task, shots, CONFIG, progress=False, max_steps=4)
    assert len(result.history) == 4 and all(row["sharpness"] > 0 for row in result.history)
    assert result.history[0]["lr"] == 0 and result.history[3]["lr"] == pytest.approx(1e-3 * 3 / 18)


def test_unknown_terms_are_refused():
    with pytest.raises(ValueError, match="terms must be one of"):
        OFAConfig(terms="paper")


def test_a_model_of_two_layers_has_no_ratio_yet():
    """J begins at t = 2, so that two layers have none of its terms; one layer has no sharpness either."""
    two, one = build_llama(n_layers=2), build_llama(n_layers=1)
    for model in (two, one):
        ofa.patch_model(model)
    assert ofa.objective(two, make_batch(), ofa.OFAConfig.paper_code()).step_ratio == 0
    with pytest.raises(ValueError, match="at least two layers"):
        ofa.objective(one, make_batch(), ofa.OFAConfig.paper_code())
