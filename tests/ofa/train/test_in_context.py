"""Jobs whose prompts stand behind the other shots, against batches and sets that are made by hand."""

import random
from dataclasses import replace

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

import ofa
from ofa import Job, OFAConfig
from ofa.decoder.view import Decoder
from ofa.passes import fast
from ofa.train import memory
from ofa_kernels import mix
from tests.ofa.conftest import build_llama
from tests.ofa.decoder.test_families import build, in_float64
from tests.ofa.train.jobs import JOBS, OTHER, PLAIN, SHOTS, WHOLE, assert_same_history

CONFIG = OFAConfig(0.1, 0.05, n_probes=2, seed=3, epochs=3, batch_size=4, lr=1e-2)
PUBLISHED = replace(CONFIG, n_probes=1, terms="paper_code")
CONTEXT = 256


def roomy(dtype=torch.float64):
    model = build_llama(dtype)
    model.config.max_position_embeddings = CONTEXT
    return model


def run(tokenizer, jobs, model=None):
    return ofa.fit_many(model or roomy(), tokenizer, jobs, progress=False)


def batch_by_hand(tokenizer, job, step):
    """The step's prompts, each behind all other shots: text by text, without what the package has for it."""
    n, (epoch, rows) = len(job.shots), list(job.config.schedule().batches(len(job.shots)))[step]
    order = list(range(n))
    random.Random(mix(job.config.seed, epoch)).shuffle(order)
    words = job.task.label_words
    prompts = []
    for i in rows:
        shown = [job.shots[j] for j in order if j != i]
        lines = [job.task.template.format(text=s["text"]) + f" {words[s['label']]}\n" for s in shown]
        prompts.append("".join(lines) + job.task.template.format(text=job.shots[i]["text"]))
    ids = [torch.tensor(tokenizer(prompt)["input_ids"]) for prompt in prompts]
    padded = pad_sequence(ids, batch_first=True, padding_value=-1)
    labels = [tokenizer(f"{job.task.template} {words[job.shots[i]['label']]}")["input_ids"][-1] for i in rows]
    return {
        "input_ids": padded.clamp(min=0),
        "attention_mask": (padded >= 0).long(),
        "labels": torch.tensor(labels),
        "example_ids": torch.tensor([epoch * n + i for i in rows]),
    }


@pytest.mark.parametrize("config", [CONFIG, PUBLISHED, replace(CONFIG, lambda_step=0, lambda_sharp=0)])
@pytest.mark.parametrize("step", [0, 1, 2, 4])
def test_a_step_is_that_of_a_batch_made_by_hand(tokenizer, config, step):
    """Two steps an epoch: the first ones of all three epochs, and one in the middle."""
    job = Job(PLAIN, SHOTS, config, demonstrations=True)
    (result,) = run(tokenizer, [job])
    model = roomy()
    if step:
        (before,) = run(tokenizer, [replace(job, max_steps=step)])
        norms = ofa.patch_model(model).norms
        for norm, gamma in zip(norms, before.gammas, strict=True):
            norm.module.weight.data.copy_(gamma)
    ofa.patch_model(model)
    found = ofa.objective(model, batch_by_hand(tokenizer, job, step), config, step=step)
    row = result.history[step]
    assert row["loss"] == pytest.approx(found.loss.item(), rel=1e-10)
    for name, value in found.terms().items():
        assert row[name] == (None if value is None else pytest.approx(value.item(), rel=1e-10)), name
    (bare,) = run(tokenizer, [replace(job, demonstrations=False)])
    assert abs(bare.history[step]["loss"] - row["loss"]) > 1e-3


SET = [
    Job(PLAIN, SHOTS, CONFIG, demonstrations=True),
    Job(PLAIN, SHOTS, CONFIG),
    *JOBS[:2],
    Job(WHOLE, SHOTS[1:], replace(CONFIG, epochs=2), demonstrations=True),
    Job(OTHER, SHOTS, replace(CONFIG, lambda_sharp=0, seed=9), max_steps=5, demonstrations=True),
    Job(PLAIN, SHOTS[:3], PUBLISHED, demonstrations=True),
    Job(PLAIN, SHOTS[:1], CONFIG, demonstrations=True),
]


@pytest.mark.parametrize("n_tokens", [1, 200, 10**6])
def test_jobs_with_and_without_become_in_a_set_what_they_become_alone(tokenizer, n_tokens, monkeypatch):
    monkeypatch.setattr(memory, "ACTIVATION_BYTES", n_tokens * memory.bytes_per_token(Decoder.of(roomy())))
    alone = [run(tokenizer, [job])[0] for job in SET]
    for result, truth in zip(run(tokenizer, SET), alone, strict=True):
        torch.testing.assert_close(result.gammas, truth.gammas, rtol=0, atol=1e-10)
        assert_same_history(result.history, truth.history)
    assert (alone[0].gammas[0] - alone[1].gammas[0]).abs().max() > 1e-3


def test_a_single_shot_is_trained_as_without(tokenizer):
    """But for its probes, whose example id counts the epochs."""
    config = replace(CONFIG, lambda_sharp=0)
    job = Job(PLAIN, SHOTS[:1], config, demonstrations=True)
    with_none, bare = run(tokenizer, [job])[0], run(tokenizer, [replace(job, demonstrations=False)])[0]
    assert all(torch.equal(*pair) for pair in zip(with_none.gammas, bare.gammas, strict=True))


def test_passes_hold_no_more_tokens_than_fit_the_memory(tokenizer, monkeypatch):
    """Four prompts of some 90 tokens a step, and room for two."""
    monkeypatch.setattr(memory, "ACTIVATION_BYTES", 200 * memory.bytes_per_token(Decoder.of(roomy())))
    seen, original = [], fast.stacked_pass

    def watching(decoder, batch, *more):
        seen.append((len(batch["input_ids"]), int(batch["attention_mask"].sum())))
        return original(decoder, batch, *more)

    monkeypatch.setattr("ofa.loss.by_job.stacked_pass", watching)
    run(tokenizer, [Job(PLAIN, SHOTS, CONFIG, demonstrations=True)])
    assert {n for n, _ in seen} == {2} and max(tokens for _, tokens in seen) <= 200


def test_gpt2_has_no_shared_passes(tokenizer):
    def fresh():
        return in_float64(build("gpt2"))

    jobs = [replace(job, shots=SHOTS[:3]) for job in SET[:2]]
    together = run(tokenizer, jobs, fresh())
    for result, job in zip(together, jobs, strict=True):
        (alone,) = run(tokenizer, [job], fresh())
        torch.testing.assert_close(result.gammas, alone.gammas, rtol=0, atol=1e-10)


def test_demonstrations_that_do_not_fit_name_the_job(tokenizer):
    jobs = [JOBS[0], Job(PLAIN, SHOTS, CONFIG, demonstrations=True)]
    with pytest.raises(ValueError, match=r"^job 1: .*what precedes it fill the context of 64 tokens"):
        run(tokenizer, jobs, build_llama())
