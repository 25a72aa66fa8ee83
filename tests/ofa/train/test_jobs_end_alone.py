"""A job that meets a NaN, or what can't be divided by, ends alone with its last good γ."""

import math

import pytest
import torch

import ofa
from ofa import Job, OFAConfig
from ofa.loss import objective as objective_module
from ofa.loss.objective import Objective, objective
from ofa.train import course, job_gradients
from ofa.train import fit as trainer
from ofa.train.loop import NonFiniteError
from tests.ofa.conftest import build_llama
from tests.ofa.train.jobs import JOBS, PLAIN, SHOTS, alone, assert_same, assert_same_history, gammas_of

CONFIG = OFAConfig(0.1, 0.05, epochs=4, batch_size=3, lr=1e-2, seed=77)  # 8 steps
NAMES = ("cross_entropy", "step_ratio", "sharpness", "loss")
TERMS = ["cross_entropy", "step_ratio", "sharpness", "loss", "gradient"]


def broken(terms, name, at=None, value=math.nan):
    """A term (or the gradient only) of one job of a pass, or of the only one, is no number."""
    parts = {part: getattr(terms, part) for part in NAMES}
    changed = "loss" if name == "gradient" else name
    whole = parts[changed]
    hit = whole if at is None else whole[at]
    # the root of 0 is 0 and its slope infinite
    hit = hit + (hit - hit).sqrt() if name == "gradient" else hit + value
    parts[changed] = hit if at is None else whole.index_copy(0, torch.tensor([at]), hit[None])
    return Objective(parts.pop("loss"), *parts.values())


def break_in_a_set(monkeypatch, step, name, seed=77, value=math.nan):
    original = job_gradients.job_objectives

    def breaking(decoder, batch, weights, jobs):
        terms = original(decoder, batch, weights, jobs)
        for a, job in enumerate(jobs):
            if job.config.seed == seed and job.step == step:
                terms = broken(terms, name, a, value)
        return terms

    monkeypatch.setattr(job_gradients, "job_objectives", breaking)


def break_alone(monkeypatch, step, name, seed=77, value=math.nan):
    def breaking(model, batch, cfg, at):
        terms = objective(model, batch, cfg, at)
        return broken(terms, name, value=value) if cfg.seed == seed and at == step else terms

    monkeypatch.setattr(trainer, "objective", breaking)


@pytest.fixture(scope="module")
def expected(tokenizer):
    return alone(build_llama, tokenizer)


def until(step, tokenizer):
    """The history of the steps before."""
    if not step:
        return []
    return ofa.fit(build_llama(), tokenizer, PLAIN, SHOTS, CONFIG, progress=False, max_steps=step).history


@pytest.mark.parametrize("step", [0, 5])
@pytest.mark.parametrize("name", TERMS)
def test_it_ends_as_fit_ends_and_the_others_are_untouched(name, step, tokenizer, expected, monkeypatch):
    value = math.nan if step else math.inf
    break_in_a_set(monkeypatch, step, name, value=value)
    break_alone(monkeypatch, step, name, value=value)
    model = build_llama()
    with pytest.raises(NonFiniteError, match=f"step {step}: the term {name} is (nan|inf)") as caught:
        ofa.fit(model, tokenizer, PLAIN, SHOTS, CONFIG, progress=False)
    jobs = [*JOBS[:3], Job(PLAIN, SHOTS, CONFIG), *JOBS[3:]]
    results = ofa.fit_many(build_llama(), tokenizer, jobs, progress=False)
    ended = results.pop(3)
    assert type(ended.error) is NonFiniteError and str(ended.error) == str(caught.value)
    torch.testing.assert_close(ended.gammas, gammas_of(model), rtol=0, atol=1e-10)
    assert_same_history(ended.history, until(step, tokenizer))
    assert_same(results, expected)


def test_numbers_that_grow_without_limit_stay_in_their_job(tokenizer, expected):
    """Nothing is put in: the job's states overflow in the pass that the others are in."""
    wild = Job(PLAIN, SHOTS, OFAConfig(0.1, 0.05, epochs=9, batch_size=3, lr=1e200))
    model = build_llama()
    with pytest.raises(NonFiniteError) as caught:
        ofa.fit(model, tokenizer, wild.task, wild.shots, wild.config, progress=False)
    *results, ended = ofa.fit_many(build_llama(), tokenizer, [*JOBS, wild], progress=False)
    assert type(ended.error) is NonFiniteError and str(ended.error) == str(caught.value)
    for found, truth in zip(ended.gammas, gammas_of(model), strict=True):
        torch.testing.assert_close(found, truth, rtol=1e-10, atol=0)
    assert_same(results, expected)


@pytest.mark.parametrize("stacked", [True, False])
def test_a_step_ratio_that_divides_by_zero_ends_its_job_alone(tokenizer, stacked, monkeypatch):
    if not stacked:
        monkeypatch.setattr(course, "why_not_stacked", lambda decoder: "not here")
        monkeypatch.setattr(objective_module, "why_not_stacked", lambda decoder: "not here")

    def still():
        """Its middle layer adds nothing, so that J divides by zero; other jobs do without J."""
        model = build_llama()
        for linear in (model.model.layers[1].self_attn.o_proj, model.model.layers[1].mlp.down_proj):
            linear.weight.data.zero_()
        return model

    jobs = [JOBS[1], JOBS[0], JOBS[3], JOBS[4], JOBS[5]]
    first, *ended, last = ofa.fit_many(still(), tokenizer, jobs, progress=False)
    others = [first, ended.pop(1), last]
    assert_same(others, alone(still, tokenizer, [jobs[0], jobs[2], jobs[4]]))
    model = still()
    for result in ended:
        assert type(result.error) is ValueError and "divides by zero" in str(result.error)
        assert result.history == []
        assert all(torch.equal(*pair) for pair in zip(result.gammas, gammas_of(model), strict=True))


def test_a_set_whose_jobs_all_end_early_is_finished(tokenizer, monkeypatch):
    break_in_a_set(monkeypatch, 1, "loss")
    results = ofa.fit_many(build_llama(), tokenizer, [Job(PLAIN, SHOTS, CONFIG)] * 2, progress=False)
    assert [type(result.error) for result in results] == [NonFiniteError] * 2
