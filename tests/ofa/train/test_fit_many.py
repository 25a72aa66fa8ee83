"""Many jobs in shared passes against `fit`, one job after the other, in float64."""

import random
import threading

import pytest
import torch

import ofa
from ofa import Job, OFAConfig, Task
from ofa.decoder.view import Decoder
from ofa.passes import fast
from ofa.train import job_gradients, memory
from ofa.train.lockstep import Lockstep
from tests.ofa.conftest import build_llama
from tests.ofa.decoder.test_families import OPTIONS, build, in_float64
from tests.ofa.train.jobs import JOBS, OTHER, PLAIN, SHOTS, TEMPLATE, alone, assert_same, assert_same_bits

ORDERS = [list(range(7)), [6, 5, 4, 3, 2, 1, 0], random.Random(1).sample(range(7), 7)]


def run(model, tokenizer, jobs=JOBS, **options):
    return ofa.fit_many(model, tokenizer, jobs, progress=False, **options)


def allow_tokens(monkeypatch, n_tokens):
    n_bytes = n_tokens * memory.bytes_per_token(Decoder.of(build_llama()))
    monkeypatch.setattr(memory, "ACTIVATION_BYTES", n_bytes)


def watch_passes(monkeypatch):
    """The examples and tokens of every shared pass."""
    seen, original = [], job_gradients.job_objectives

    def watching(decoder, batch, weights, jobs):
        seen.append(([job.n_examples for job in jobs], int(batch["attention_mask"].sum())))
        return original(decoder, batch, weights, jobs)

    monkeypatch.setattr(job_gradients, "job_objectives", watching)
    return seen


@pytest.fixture(scope="module")
def expected(tokenizer):
    return alone(build_llama, tokenizer)


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("n_tokens", [1, 60, 250, 10**6])
def test_jobs_become_what_they_become_alone(tokenizer, expected, order, n_tokens, monkeypatch):
    allow_tokens(monkeypatch, n_tokens)
    passes = watch_passes(monkeypatch)
    results = run(build_llama(), tokenizer, [JOBS[i] for i in order])
    assert_same(results, [expected[i] for i in order])
    assert all(tokens <= n_tokens or sizes == [1] for sizes, tokens in passes)
    shared = any(len(sizes) > 1 for sizes, _ in passes)
    assert shared if n_tokens >= 250 else n_tokens == 60 or not shared


@pytest.mark.parametrize("family", OPTIONS)
def test_every_family(family, tokenizer):
    def fresh():
        return in_float64(build(family))

    assert_same(run(fresh(), tokenizer), alone(fresh, tokenizer))


def test_one_job_is_a_set_too(tokenizer, expected):
    for job, truth in zip(JOBS, expected, strict=True):
        assert_same(run(build_llama(), tokenizer, [job]), [truth])
    assert run(build_llama(), tokenizer, []) == []


def test_equal_jobs_are_trained_equally(tokenizer):
    results = run(build_llama(), tokenizer, [JOBS[0]] * 3)
    for result in results[1:]:
        torch.testing.assert_close(result.gammas, results[0].gammas, rtol=0, atol=1e-13)


def test_jobs_with_the_authors_terms_are_trained_beside_the_others(tokenizer):
    published = OFAConfig(0.1, 0.1, epochs=2, batch_size=2, lr=1e-2, terms="paper_code")
    jobs = [JOBS[0], Job(PLAIN, SHOTS[:3], published), JOBS[1], Job(OTHER, SHOTS, published, max_steps=2)]
    assert_same(run(build_llama(), tokenizer, jobs), alone(build_llama, tokenizer, jobs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_other_types_are_as_exact_as_fit(dtype, tokenizer):
    """Against the truth in float64, of the same rounded weights."""

    def errors(found, n):
        truths = [truth[n]["cross_entropy"] for _, truth in exact]
        return sum(abs(history[n]["cross_entropy"] - t) for history, t in zip(found, truths, strict=True))

    exact = alone(lambda: build_llama(dtype).double(), tokenizer)
    results = run(build_llama(dtype), tokenizer)
    found = [result.history for result in results]
    single = [history for _, history in alone(lambda: build_llama(dtype), tokenizer)]
    assert {gamma.dtype for result in results for gamma in result.gammas} == {torch.float32}
    for n in (0, -1):
        assert errors(found, n) <= 2 * errors(single, n)


def test_jobs_begin_with_the_gammas_that_the_model_has(tokenizer):
    def adapted():
        model = build_llama()
        for norm in ofa.patch_model(model).norms:
            norm.module.weight.data.mul_(1.5)
        return model

    assert_same(run(adapted(), tokenizer, JOBS[:2]), alone(adapted, tokenizer, JOBS[:2]))


def test_steps_without_sharpness_have_no_probes(tokenizer, monkeypatch):
    seen, original = [], fast.Layer.__call__

    def watching(layer, x, at, probes, final):
        seen.append(0 if probes is None else probes.n_probes)
        return original(layer, x, at, probes, final)

    monkeypatch.setattr(fast.Layer, "__call__", watching)
    run(build_llama(), tokenizer, [JOBS[1], JOBS[4]])
    assert set(seen) == {0}
    seen.clear()
    run(build_llama(), tokenizer, [JOBS[3]])
    assert seen == [0, 1, 1, 0, 0, 0] * 3


def test_waiting_jobs_join_as_others_leave(tokenizer, monkeypatch):
    """There is room for the largest batches of the jobs at work, and a job waits for those before it."""
    jobs = [Job(PLAIN, SHOTS, OFAConfig(0, 0, epochs=n, batch_size=1)) for n in (1, 2, 1)]
    jobs.insert(1, Job(PLAIN, SHOTS, OFAConfig(0, 0, epochs=1, batch_size=None)))
    lengths = [len(ids) for ids in prompts(tokenizer)]
    allow_tokens(monkeypatch, sum(lengths) + max(lengths))
    passes, at_work, original = watch_passes(monkeypatch), [], Lockstep._gradients

    def watching(lockstep):
        at_work.append(len(lockstep.active))
        return original(lockstep)

    monkeypatch.setattr(Lockstep, "_gradients", watching)
    results = run(build_llama(), tokenizer, jobs)
    assert [len(result.history) for result in results] == [6, 1, 12, 6]
    # the large one leaves after a step, so the others join one step after the first has begun
    assert [sizes for sizes, _ in passes] == [[1, 6], *[[1, 1, 1]] * 5, [1, 1], *[[1]] * 6]
    assert_same(results, alone(build_llama, tokenizer, jobs))
    allow_tokens(monkeypatch, max(lengths))
    at_work.clear()
    run(build_llama(), tokenizer, jobs[1:])
    assert at_work == [1] * 19, "one after the other, the first of which is too large by itself"


def prompts(tokenizer):
    return [PLAIN.encode(tokenizer, shot["text"], 64).ids for shot in SHOTS]


def test_results_say_how_many_texts_were_cut_and_share_the_time(tokenizer):
    long = [*SHOTS, {"text": "word " * 200, "label": 1}]
    jobs = [JOBS[0], Job(PLAIN, long, OFAConfig(epochs=1))]
    with pytest.warns(UserWarning, match="1 of 7 texts were longer than the context"):
        results = run(build_llama(), tokenizer, jobs)
    assert [result.n_truncated for result in results] == [0, 1]
    assert all(result.seconds > 0 for result in results)


def test_the_bar_shows_jobs_and_losses(tokenizer, capsys):
    ofa.fit_many(build_llama(), tokenizer, JOBS[:2], progress=True)
    shown = capsys.readouterr().err
    assert "adapting" in shown and "11/11" in shown and "2 of 2 jobs done" in shown and "worst" in shown


def test_sets_are_trained_in_several_threads(tokenizer):
    model, found = build_llama(), {}
    ofa.patch_model(model)
    expected = run(model, tokenizer)

    def work(i):
        found[i] = run(model, tokenizer)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(3):
        assert_same_bits(found[i], expected)


BAD = {
    "no job": ("a job", TypeError, "expected an ofa.Job, got str"),
    "no shots": (Job(PLAIN, []), ValueError, "at least one labelled example"),
    "a label": (Job(PLAIN, [{"text": "fine", "label": 2}]), ValueError, "unknown label 2"),
    "an empty text": (Job(PLAIN, [{"text": " ", "label": 1}]), ValueError, "a text is empty"),
    "no text": (Job(PLAIN, [{"text": 3, "label": 1}]), TypeError, "must be strings"),
    "label words": (Job(Task("t", TEMPLATE, ("good", "goodness")), SHOTS), ValueError, "same token"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_job_is_named_before_anything_runs(bad, tokenizer, monkeypatch):
    job, kind, message = BAD[bad]
    monkeypatch.setattr(Lockstep, "advance", None)
    model = build_llama()
    with pytest.raises(kind, match=f"^job 2: .*{message}"):
        run(model, tokenizer, [*JOBS[:2], job, *JOBS[2:]])
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_what_the_model_can_not_do_is_named_before_anything_runs(tokenizer, monkeypatch):
    monkeypatch.setattr(Lockstep, "advance", None)
    with pytest.raises(ValueError, match=r"^job 0: .*at least two layers"):
        run(build_llama(n_layers=1), tokenizer)
    with pytest.raises(ValueError, match=r"^job 0: a prompt of .* sliding window of 8"):
        run(build("mistral", sliding_window=8), tokenizer)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"max_steps": 0}, ValueError, "max_steps must be an integer of at least 1, got 0"),
        ({"config": None}, TypeError, "config must be an ofa.OFAConfig, got NoneType"),
        ({"task": "reviews"}, TypeError, "task must be an ofa.Task, got str"),
    ],
)
def test_what_is_no_job_is_refused(options, kind, message):
    with pytest.raises(kind, match=message):
        Job(**{"task": PLAIN, "shots": SHOTS, **options})


def everything(model):
    """All of a model that training might change."""
    stack = Decoder.of(model).stack
    return (
        {name: (id(p), p.requires_grad, p.grad is None) for name, p in model.named_parameters()},
        {name: value.clone() for name, value in model.state_dict().items()},
        [(type(module), module.training) for module in model.modules()],
        stack.__dict__.get("_ofa_patch"),
    )


def crash(lockstep):
    raise RuntimeError("the power went off")


def interrupt(lockstep):
    raise KeyboardInterrupt


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("patched", [False, True])
@pytest.mark.parametrize("ending", [None, crash, interrupt])
def test_the_model_is_given_back_as_it_was(ending, patched, family, tokenizer, monkeypatch):
    model = build(family).train()
    Decoder.of(model).layers[1].eval()
    if patched:
        report = ofa.patch_model(model)
        report.norms[2].module.weight.data.mul_(1.1)
        report.norms[1].module.weight.requires_grad_(False)
        Decoder.of(model).layers[0].mlp.requires_grad_(True)
    before = everything(model)
    if ending is not None:
        original, steps = Lockstep.advance, []

        def advance(lockstep):
            original(lockstep)
            steps.append(1)
            if len(steps) == 2:
                ending(lockstep)

        monkeypatch.setattr(Lockstep, "advance", advance)
        with pytest.raises((RuntimeError, KeyboardInterrupt)):
            run(model, tokenizer)
    else:
        run(model, tokenizer)
    after = everything(model)
    assert all(torch.equal(value, after[1][name]) for name, value in before[1].items())
    assert [before[i] for i in (0, 2, 3)] == [after[i] for i in (0, 2, 3)]
