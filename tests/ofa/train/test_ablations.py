"""Jobs whose objective is read otherwise: gradients and weights against a form written out, in float64."""

import math
from dataclasses import replace

import pytest
import torch

import ofa
from ofa import Job, OFAConfig
from ofa.ablation import Ablation
from ofa.data.batch import encoded
from ofa.decoder.view import Decoder
from ofa.loss.objective import objective
from ofa.loss.sharpness import layer_sharpness
from ofa.passes.layer import Probes
from ofa.passes.own_layers import token_states
from ofa.train import memory
from ofa.train.course import Course
from ofa.train.job_gradients import shared_passes
from ofa_kernels import mix, step_ratio
from tests.ofa.conftest import build_llama
from tests.ofa.train.jobs import JOBS, PLAIN, SHOTS, assert_same

CONFIG = OFAConfig(0.3, -0.2, n_probes=2, seed=3, epochs=4, batch_size=3, lr=1e-2)
ABLATIONS = [
    Ablation(label_smoothing=0.1),
    Ablation(ratio_form="log", first_layer=2),
    Ablation(trace_form="positive", p_norm="attention"),
    Ablation(trace_form="relative", lambda_scale="gradient"),
    Ablation(trained_norms="p", pull=0.5),
    Ablation(lambda_schedule="decaying"),
    Ablation(trained_norms="attention", lambda_scale="gradient", lambda_schedule="decaying"),
]


def job(**ablation):
    return Job(PLAIN, SHOTS, replace(CONFIG, ablation=Ablation(**ablation)))


def run(tokenizer, jobs, build=build_llama):
    return ofa.fit_many(build(), tokenizer, jobs, progress=False)


def first_gradient(tokenizer, one):
    """The gradient of a job's first step, flat, as `fit_many` has it."""
    model = build_llama()
    gammas = torch.stack([norm.module.weight.detach() for norm in ofa.patch_model(model).norms])[:, None]
    decoder = Decoder.of(model)
    _, gradient = shared_passes(decoder)([Course.of(decoder, tokenizer, one)], gammas)
    return gradient[:, 0]


def terms(tokenizer, one):
    """Gradients [norms, N] of the cross-entropy, J and H of a job's first batch, by `objective`."""
    model = build_llama()
    weights = [norm.module.weight for norm in ofa.patch_model(model).norms]
    _, rows, _ = one.config.schedule().steps(len(one.shots))[0]
    batch = encoded(tokenizer, one.task, one.shots, 512).batch(rows, torch.device("cpu"))
    found = objective(model, batch, replace(one.config, ablation=Ablation()))
    return [
        torch.stack(torch.autograd.grad(term, weights, retain_graph=True, materialize_grads=True))
        for term in found.terms().values()
    ]


def test_ablated_jobs_change_nothing_for_others_and_are_what_they_are_alone(tokenizer):
    jobs = [job(**vars(ablation)) for ablation in ABLATIONS]
    mixed = [JOBS[0], *jobs[:4], JOBS[1], *jobs[4:], JOBS[5]]
    together = run(tokenizer, mixed)
    alone = [run(tokenizer, [one])[0] for one in mixed]
    assert_same(together, [(result.gammas, result.history) for result in alone])
    plain = run(tokenizer, [job()])[0].gammas
    for result in together[1:5]:
        assert max((a - b).abs().max() for a, b in zip(result.gammas, plain, strict=True)) > 1e-4


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_a_batch_in_parts_has_the_same_gradient(tokenizer, ablation, monkeypatch):
    if ablation.trace_form == "relative":
        ablation = replace(ablation, trace_form="plain")  # relative to the examples of the pass
    whole = first_gradient(tokenizer, job(**vars(ablation)))
    monkeypatch.setattr(memory, "ACTIVATION_BYTES", 1)
    torch.testing.assert_close(
        first_gradient(tokenizer, job(**vars(ablation))), whole, rtol=1e-10, atol=1e-12
    )


def test_lengths_of_gradients_are_what_the_weights_say(tokenizer):
    one = job(lambda_scale="gradient")
    ce, ratio, sharp = terms(tokenizer, one)
    expected = ce + 0.3 * ratio * (ce.norm() / ratio.norm()) - 0.2 * sharp * (ce.norm() / sharp.norm())
    torch.testing.assert_close(first_gradient(tokenizer, one), expected, rtol=1e-10, atol=1e-12)


def test_lengths_are_of_what_is_trained(tokenizer):
    one = job(lambda_scale="gradient", trained_norms="p")
    ce, ratio, sharp = (part[1::2] for part in terms(tokenizer, one))
    expected = ce + 0.3 * ratio * (ce.norm() / ratio.norm()) - 0.2 * sharp * (ce.norm() / sharp.norm())
    found = first_gradient(tokenizer, one)
    torch.testing.assert_close(found[1::2], expected, rtol=1e-10, atol=1e-12)
    assert not found[0::2].any()


@pytest.mark.parametrize(
    ("which", "wanted"),
    [
        ("p", lambda name: "post_attention" in name),
        ("attention", lambda name: "input_layernorm" in name),
    ],
)
def test_only_the_chosen_norms_are_trained(tokenizer, which, wanted):
    model = build_llama()
    names = [name for name, *_ in Decoder.of(model).named_norms()]
    start = [norm.module.weight.detach().clone() for norm in ofa.patch_model(model).norms]
    (result,) = run(tokenizer, [job(trained_norms=which)])
    moved = {
        name
        for name, before, after in zip(names, start, result.gammas, strict=True)
        if not torch.equal(before, after)
    }
    assert moved == {name for name in names if wanted(name)} and len(moved) < len(names)


def test_weights_that_decay_follow_half_a_cosine(tokenizer):
    (result,) = run(tokenizer, [job(lambda_schedule="decaying")])
    n_steps = len(result.history)
    for row in result.history:
        left = (1 + math.cos(math.pi * row["step"] / n_steps)) / 2
        expected = row["cross_entropy"] + left * (0.3 * row["step_ratio"] - 0.2 * row["sharpness"])
        assert row["loss"] == pytest.approx(expected, rel=1e-10)
    assert n_steps > 4


def test_the_pull_is_the_gradient_of_its_square(tokenizer):
    """Two steps of AdamW by hand; in the first γ is where it began."""
    one = Job(
        PLAIN,
        SHOTS,
        OFAConfig(0, 0, epochs=3, batch_size=None, lr=1e-2, ablation=Ablation(pull=50.0)),
        max_steps=3,
    )
    (result,) = run(tokenizer, [one])
    model = build_llama()
    weights = [norm.module.weight for norm in ofa.patch_model(model).norms]
    start = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.AdamW(weights, weight_decay=one.config.weight_decay)
    examples = encoded(tokenizer, PLAIN, SHOTS, 512)
    for step, (_, rows, lr) in enumerate(one.config.schedule(3).steps(len(SHOTS))):
        batch = examples.batch(rows, torch.device("cpu"))
        loss = objective(model, batch, OFAConfig(0, 0), step).loss
        loss = loss + 25 * sum(((w - s) ** 2).sum() for w, s in zip(weights, start, strict=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
    torch.testing.assert_close(result.gammas, [weight.detach() for weight in weights], rtol=0, atol=1e-10)


def test_p_of_another_norm_is_the_trace_of_its_own_layers(tokenizer):
    """The stacked tangents against vmap(jvp) through the model's layers, with the same probes."""
    one = Job(
        PLAIN,
        SHOTS,
        OFAConfig(0, 0.7, n_probes=2, batch_size=None, epochs=1, ablation=Ablation(p_norm="attention")),
    )
    (result,) = run(tokenizer, [one])
    model = build_llama()
    ofa.patch_model(model)
    decoder = Decoder.of(model).with_preconditioner("attention")
    _, rows, _ = one.config.schedule().steps(len(SHOTS))[0]
    batch = encoded(tokenizer, PLAIN, SHOTS, 512).batch(rows, torch.device("cpu"))
    probes = Probes(range(1, len(decoder.layers)), 2, mix(0, 0), batch["example_ids"])
    truth = layer_sharpness(decoder, token_states(decoder, batch), probes).value.mean()
    assert result.history[0]["sharpness"] == pytest.approx(truth.item(), rel=1e-9)
    (own,) = run(tokenizer, [replace(one, config=replace(one.config, ablation=Ablation()))])
    assert own.history[0]["sharpness"] != pytest.approx(truth.item(), rel=1e-3)


def test_terms_begin_at_the_layer_that_is_named(tokenizer):
    one = job(first_layer=2, ratio_form="log")
    (result,) = run(tokenizer, [one])
    model = build_llama()
    ofa.patch_model(model)
    _, rows, _ = one.config.schedule().steps(len(SHOTS))[0]
    batch = encoded(tokenizer, PLAIN, SHOTS, 512).batch(rows, torch.device("cpu"))
    _, ratios = step_ratio(token_states(Decoder.of(model), batch).z, per_step=True)
    assert result.history[0]["step_ratio"] == pytest.approx(ratios[1:].log().sum(0).mean().item(), rel=1e-9)
    found = ofa.sharpness(model, batch, 2, mix(3, 0)).value[2:].mean()
    assert result.history[0]["sharpness"] == pytest.approx(found.item(), rel=1e-9)


def test_what_does_not_know_them_refuses_them(tokenizer):
    config = replace(CONFIG, ablation=Ablation(pull=1.0))
    with pytest.raises(ValueError, match=r"only ofa\.fit_many trains with an ablation"):
        ofa.fit(build_llama(), tokenizer, PLAIN, SHOTS, config, progress=False)
    with pytest.raises(ValueError, match=r"only ofa\.fit_many trains with an ablation"):
        replace(OFAConfig.paper_code(), ablation=Ablation(pull=1.0))
    with pytest.raises(ValueError, match=r"first_layer must be below the model's \d layers, got 40"):
        run(tokenizer, [job(first_layer=40)])
    with pytest.raises(ValueError, match=r"ablation must be an ofa.ablation.Ablation, got 'upper'"):
        OFAConfig(ablation="upper")


def test_settings_name_an_ablation_only_where_there_is_one():
    assert "ablation" not in OFAConfig().settings()
    assert replace(CONFIG, ablation=Ablation(pull=1.0)).settings()["ablation"]["pull"] == 1.0
