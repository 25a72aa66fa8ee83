import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import ofa
from ofa.config import OFAConfig
from ofa.loss import objective as objective_module
from ofa.loss.objective import objective
from ofa_kernels.probes import mix
from tests.ofa.conftest import build_llama, make_batch

CONFIG = OFAConfig(lambda_step=0.3, lambda_sharp=0.2, n_probes=3, seed=4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_gradient_of_every_norm_against_central_differences(llama, side):
    batch = make_batch(side=side)
    weights = [norm.module.weight for norm in ofa.patch_model(llama).norms]
    gradients = torch.autograd.grad(objective(llama, batch, CONFIG, step=2).loss, weights)
    h = 1e-5
    for weight, gradient in zip(weights, gradients, strict=True):
        numeric = torch.zeros_like(weight)
        for i in range(weight.numel()):
            losses = []
            for sign in (1, -1):
                with torch.no_grad():
                    weight[i] += sign * h
                    losses.append(objective(llama, batch, CONFIG, step=2).loss)
                    weight[i] -= sign * h
            numeric[i] = (losses[0] - losses[1]) / (2 * h)
        assert (gradient - numeric).norm() <= 1e-6 * numeric.norm()


def test_the_loss_is_its_weighted_terms(llama):
    ofa.patch_model(llama)
    batch = make_batch()
    terms = objective(llama, batch, CONFIG, step=7)
    logits = llama(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    last = logits[torch.arange(2), torch.tensor([6, 4])]
    torch.testing.assert_close(terms.cross_entropy, F.cross_entropy(last, batch["labels"]))
    sharp = ofa.sharpness(llama, batch, n_probes=3, seed=mix(4, 7)).value[1:].mean()
    torch.testing.assert_close(terms.sharpness, sharp)
    torch.testing.assert_close(
        terms.loss, terms.cross_entropy + 0.3 * terms.step_ratio + 0.2 * terms.sharpness
    )


def test_a_loss_over_labels_is_over_their_tokens(llama):
    ofa.patch_model(llama)
    batch, config = make_batch(), replace(CONFIG, loss_over="labels")
    with pytest.raises(ValueError, match=r"batch with `classes` \[B, C\], as ofa\.features and ofa\.collate"):
        objective(llama, batch, config)
    with torch.no_grad():
        logits = llama(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    tokens = [[int(label), 3, 77] for label in batch["labels"]]
    own = [logits[i, place, tokens[i]].log_softmax(-1)[0] for i, place in enumerate((6, 4))]
    found = objective(llama, {**batch, "classes": torch.tensor(tokens)}, config, step=7)
    torch.testing.assert_close(found.cross_entropy.detach(), -torch.stack(own).mean())
    over_vocabulary = objective(llama, batch, CONFIG, step=7)
    for name in ("step_ratio", "sharpness"):
        assert torch.equal(getattr(found, name), getattr(over_vocabulary, name))
    # words of several tokens have no classes
    none = {**batch, "classes": torch.empty(2, 0, dtype=torch.int64)}
    assert torch.equal(objective(llama, none, config, step=7).loss, over_vocabulary.loss)


def test_zero_weights_do_no_extra_work(llama, monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("was computed though its weight is 0")

    module = objective_module  # the name ofa.objective is the function
    monkeypatch.setattr(sys.modules["ofa.passes.layer"].ofa_kernels, "rms_norm_jvp", forbidden)
    monkeypatch.setattr(module.ofa_kernels, "step_ratio", forbidden)
    ofa.patch_model(llama)
    terms = objective(llama, make_batch(), OFAConfig(lambda_step=0, lambda_sharp=0))
    assert terms.step_ratio is None and terms.sharpness is None
    assert torch.equal(terms.loss, terms.cross_entropy)


def test_sharpness_every_k_steps_weighs_k_times(llama):
    ofa.patch_model(llama)
    batch, config = make_batch(), OFAConfig(lambda_step=0, lambda_sharp=0.5, sharpness_every=3)
    skipped, counted = objective(llama, batch, config, step=4), objective(llama, batch, config, step=6)
    assert skipped.sharpness is None and torch.equal(skipped.loss, skipped.cross_entropy)
    torch.testing.assert_close(counted.loss, counted.cross_entropy + 1.5 * counted.sharpness)


def test_gradient_in_bfloat16_is_finite_and_float32():
    model = build_llama(torch.bfloat16)
    weights = [norm.module.weight for norm in ofa.patch_model(model).norms]
    terms = objective(model, make_batch(), CONFIG)
    gradients = torch.autograd.grad(terms.loss, weights)
    assert terms.loss.dtype == torch.float32
    assert all(g.dtype == torch.float32 and torch.isfinite(g).all() and g.any() for g in gradients)


@pytest.mark.parametrize("lambda_sharp", [0.0, 0.2])
def test_families_without_a_stacked_form_get_the_same(llama, monkeypatch, lambda_sharp):
    weights = [norm.module.weight for norm in ofa.patch_model(llama).norms]
    config = OFAConfig(lambda_step=0.3, lambda_sharp=lambda_sharp, n_probes=3)

    def run():
        terms = objective(llama, make_batch(), config, step=1)
        return [terms.loss, *torch.autograd.grad(terms.loss, weights)]

    stacked = run()
    monkeypatch.setattr(objective_module, "why_not_stacked", lambda model: "no form is written")
    monkeypatch.setattr(objective_module, "stacked_pass", None)
    for found, expected in zip(run(), stacked, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("field", ["n_probes", "sharpness_every", "epochs", "batch_size"])
def test_nonsense_settings_are_refused(field):
    with pytest.raises(ValueError, match=f"{field} must be an integer of at least 1, got 0"):
        OFAConfig(**{field: 0})


@pytest.mark.parametrize(
    "setting", [{"lr": float("nan")}, {"lambda_sharp": float("inf")}, {"weight_decay": -1}]
)
def test_numbers_that_are_none_are_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        OFAConfig(**setting)


def test_probes_that_the_authors_code_would_ignore_are_refused():
    for field in ("n_probes", "sharpness_every"):
        with pytest.raises(ValueError, match=f"so {field} must be 1 .* got 2"):
            replace(OFAConfig.paper_code(), **{field: 2})


def test_one_layer_has_no_sharpness_term():
    model = build_llama(n_layers=1)
    with pytest.raises(ValueError, match="at least two layers"):
        objective(model, make_batch(), OFAConfig(lambda_step=0))
