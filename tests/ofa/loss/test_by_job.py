"""The losses of several jobs from one pass, against `objective` for each of them, in float64."""

import sys

import pytest
import torch

import ofa
from ofa.config import OFAConfig
from ofa.decoder.patch import set_gammas
from ofa.decoder.view import Decoder
from ofa.loss.by_job import JobExamples, job_objectives
from ofa.loss.objective import objective
from ofa.passes.row_weights import RowWeights
from tests.ofa.conftest import build_llama
from tests.ofa.passes.test_row_weights import drawn, words_of_three_tokens

WITH_PROBES = [
    JobExamples(OFAConfig(0.3, 0.2, n_probes=2, seed=4), 7, 2),
    JobExamples(OFAConfig(0.0, 0.5, n_probes=2, seed=-(2**65), sharpness_every=3), 6, 1),
    JobExamples(OFAConfig(0.1, -0.1, n_probes=2, seed=4), 0, 2),
]
WITHOUT = [
    JobExamples(OFAConfig(0.3, 0.0), 7, 2),
    JobExamples(OFAConfig(0.0, 0.0), 6, 1),
    JobExamples(OFAConfig(0.2, 0.5, sharpness_every=3), 1, 2),
]
IDS = torch.tensor([5, 0, 0, 3, 1])
JOBS = {"with probes": WITH_PROBES, "without": WITHOUT, "plain": [JobExamples(OFAConfig(0, 0), 0, 5)]}
NAMES = ("loss", "cross_entropy", "step_ratio", "sharpness")


def places(jobs):
    """Where each job's examples stand in the batch."""
    ends = torch.tensor([job.n_examples for job in jobs]).cumsum(0).tolist()
    return [slice(end - job.n_examples, end) for end, job in zip(ends, jobs, strict=True)]


def shared(model, jobs, gammas):
    which = torch.tensor([2 - a for a, job in enumerate(jobs) for _ in range(job.n_examples)])
    batch = {**words_of_three_tokens(), "example_ids": IDS}
    return job_objectives(Decoder.of(model), batch, RowWeights(gammas, which), jobs)


@pytest.mark.parametrize("jobs", JOBS)
def test_losses_terms_and_gradients_are_those_of_each_job_alone(jobs):
    jobs, model = JOBS[jobs], build_llama()
    weights, gammas = [norm.module.weight for norm in ofa.patch_model(model).norms], drawn(model, 3)
    found = shared(model, jobs, gammas)
    batch = {**words_of_three_tokens(), "example_ids": IDS}
    for a, (job, at) in enumerate(zip(jobs, places(jobs), strict=True)):
        set_gammas(model, [gamma[2 - a] for gamma in gammas])
        own = {name: value[at] for name, value in batch.items()}
        truth = objective(model, own, job.config, job.step)
        for name in NAMES:
            value, expected = getattr(found, name), getattr(truth, name)
            assert (expected is None) == (value is None or value[a] == 0)
            if expected is not None:
                torch.testing.assert_close(value[a], expected, rtol=1e-12, atol=1e-12)
        gradients = torch.autograd.grad(found.loss[a], gammas, retain_graph=True)
        truths = torch.autograd.grad(truth.loss, weights)
        for gradient, expected in zip(gradients, truths, strict=True):
            assert (gradient[2 - a] - expected).norm() <= 1e-11 * expected.norm()
            gradient[2 - a] = 0
            assert not gradient.any(), "a job's loss depends on another job's γ"


def test_what_is_not_a_number_stays_in_its_job():
    """γ of one job are infinite; values and gradients of the others keep every bit."""
    model = build_llama()
    gammas = drawn(model, 3)
    found = shared(model, WITH_PROBES, gammas)
    expected = torch.autograd.grad(found.loss.sum(), gammas)
    with torch.no_grad():
        gammas[2][1] = float("inf")
    broken = shared(model, WITH_PROBES, gammas)
    gradients = torch.autograd.grad(broken.loss.sum(), gammas)
    assert not broken.loss[1].isfinite()
    for name in NAMES:
        assert torch.equal(getattr(broken, name)[[0, 2]], getattr(found, name)[[0, 2]])
    assert not all(gradient[1].isfinite().all() for gradient in gradients)
    for gradient, truth in zip(gradients, expected, strict=True):
        assert torch.equal(gradient[[0, 2]], truth[[0, 2]])


def test_zero_weights_do_no_extra_work(monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("was computed though its weight is 0")

    model = build_llama()
    kernels = sys.modules["ofa.passes.layer"].ofa_kernels
    monkeypatch.setattr(kernels, "rms_norm_jvp", forbidden)
    terms = shared(model, WITHOUT, drawn(model, 3))
    assert terms.step_ratio is not None and terms.sharpness is None
    seen, original = [], kernels.step_ratio

    def watching(states, per_step):
        seen.append(states.shape[1])
        return original(states, per_step)

    monkeypatch.setattr(kernels, "step_ratio", watching)
    shared(model, WITHOUT, drawn(model, 3))
    assert seen == [4], "J of the examples that ask for it, and of no others"
    monkeypatch.setattr(kernels, "step_ratio", forbidden)
    shared(model, JOBS["plain"], drawn(model, 3))


def test_a_pass_has_one_number_of_probes():
    model = build_llama()
    with pytest.raises(ValueError, match="too many values"):
        shared(model, [WITH_PROBES[0], WITHOUT[1], WITH_PROBES[2]], drawn(model, 3))
