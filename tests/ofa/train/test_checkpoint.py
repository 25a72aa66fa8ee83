"""Runs that survive: killed, interrupted, out of disk, NaN."""

import errno
import json
import multiprocessing
import os
import random
import signal
import threading
import time

import pytest
import torch
from safetensors import safe_open

import ofa
from ofa.config import OFAConfig
from ofa.loss.objective import Objective, objective
from ofa.train import checkpoint as module
from ofa.train import fit as trainer
from ofa.train.checkpoint import CheckpointError
from ofa.train.loop import NonFiniteError
from tests.ofa.conftest import build_llama

CONFIG = OFAConfig(epochs=20, batch_size=2, lr=1e-2, lambda_step=0.1, lambda_sharp=0.1)  # 60 steps


def gammas(model):
    return torch.cat([norm.module.weight.detach() for norm in ofa.patch_model(model).norms])


def run(tokenizer, task, shots, path, config=CONFIG, **options):
    model = build_llama(torch.float32)
    result = ofa.fit(model, tokenizer, task, shots, config, progress=False, checkpoint=path, **options)
    return result.history, gammas(model)


def stop_at(monkeypatch, step, action):
    def stopping(model, batch, cfg, at):
        if at == step:
            return action(model, batch, cfg, at)
        return objective(model, batch, cfg, at)

    monkeypatch.setattr(trainer, "objective", stopping)


@pytest.fixture
def undisturbed(tokenizer, task, shots):
    return run(tokenizer, task, shots, None)


def child(tokenizer, task, shots, path, started):
    torch.set_num_threads(1)
    started.set()
    run(tokenizer, task, shots, path)


def test_twenty_kills_end_with_the_same_bits(tokenizer, task, shots, tmp_path):
    torch_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        begin = time.perf_counter()
        expected = run(tokenizer, task, shots, None)
        seconds = time.perf_counter() - begin  # so that kills hit everywhere, on a slow machine too
        path, draw = tmp_path / "run.safetensors", random.Random(0)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.ofa.train.test_checkpoint"])
        n_killed, steps = 0, []
        while n_killed < 20:
            started = context.Event()
            process = context.Process(target=child, args=(tokenizer, task, shots, path, started))
            process.start()
            assert started.wait(120)
            time.sleep(draw.uniform(0.0, seconds))
            process.kill()
            process.join()
            n_killed += 1
            steps.append(path.exists() and path.stat().st_mtime_ns)
            if len(run_history(path)) == 60:  # it was faster; kill another run
                assert torch.equal(run(tokenizer, task, shots, path)[1], expected[1])
                path.unlink()
        history, weights = run(tokenizer, task, shots, path)
        assert history == expected[0] and torch.equal(weights, expected[1])
        assert len(set(steps)) > 3, "no kill hit a run that had got anywhere"
    finally:
        torch.set_num_threads(torch_threads)


def run_history(path):
    if not path.exists():
        return []
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["history"])


def test_ctrl_c_finishes_the_step_and_says_how_to_go_on(
    tokenizer, task, shots, tmp_path, monkeypatch, undisturbed, ctrl_c
):
    path = tmp_path / "run.safetensors"

    def interrupt(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return objective(*arguments)

    with monkeypatch.context() as patch:
        stop_at(patch, 13, interrupt)
        with pytest.raises(KeyboardInterrupt, match=r"after 14 of [0-9]+ steps; it is kept in .*goes on"):
            run(tokenizer, task, shots, path)
    assert len(run_history(path)) == 14
    history, weights = run(tokenizer, task, shots, path)
    assert history == undisturbed[0] and torch.equal(weights, undisturbed[1])
    assert signal.getsignal(signal.SIGINT) is ctrl_c


def test_ctrl_c_without_a_checkpoint_stops_too(tokenizer, task, shots, monkeypatch, ctrl_c):
    stop_at(monkeypatch, 2, lambda *a: (os.kill(os.getpid(), signal.SIGINT), objective(*a))[1])
    with pytest.raises(KeyboardInterrupt, match=r"^stopped after 3 of [0-9]+ steps$"):
        run(tokenizer, task, shots, None)


def test_an_ignored_ctrl_c_stays_ignored(tokenizer, task, shots, monkeypatch, ctrl_c):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop_at(monkeypatch, 2, lambda *a: (os.kill(os.getpid(), signal.SIGINT), objective(*a))[1])
    try:
        run(tokenizer, task, shots, None)
    except KeyboardInterrupt:  # which would end the tests, not fail one
        pytest.fail("the run was stopped")
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_nan_leaves_the_last_good_checkpoint(tokenizer, task, shots, tmp_path, monkeypatch, undisturbed):
    path = tmp_path / "run.safetensors"

    def broken(*arguments):
        terms = objective(*arguments)
        return Objective(terms.loss * float("nan"), terms.cross_entropy, terms.step_ratio, terms.sharpness)

    with monkeypatch.context() as patch:
        stop_at(patch, 25, broken)
        with pytest.raises(NonFiniteError, match="step 25: the term loss is nan"):
            run(tokenizer, task, shots, path)
    assert len(run_history(path)) == 20
    assert torch.equal(run(tokenizer, task, shots, path)[1], undisturbed[1])


def test_a_full_disk_leaves_the_last_good_checkpoint(
    tokenizer, task, shots, tmp_path, monkeypatch, undisturbed
):
    path, synced = tmp_path / "run.safetensors", []

    def full(descriptor):
        synced.append(descriptor)
        if len(synced) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "fsync", full)
        with pytest.raises(OSError, match=r"step 30 could not be written.*No space left.*earlier") as caught:
            run(tokenizer, task, shots, path)
    assert caught.value.errno == errno.ENOSPC
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name] and len(run_history(path)) == 20
    assert torch.equal(run(tokenizer, task, shots, path)[1], undisturbed[1])


def test_a_finished_run_is_not_run_again(tokenizer, task, shots, tmp_path, monkeypatch, undisturbed):
    path = tmp_path / "run.safetensors"
    run(tokenizer, task, shots, path)
    monkeypatch.setattr(trainer, "objective", None)
    history, weights = run(tokenizer, task, shots, path)
    assert history == undisturbed[0] and torch.equal(weights, undisturbed[1])


def test_another_runs_checkpoint_is_refused(tokenizer, task, shots, tmp_path):
    path = tmp_path / "run.safetensors"
    run(tokenizer, task, shots, path, max_steps=4)
    before = path.read_bytes()
    for change in (shots[1:], [*shots[:5], {"text": "another", "label": 0}]):
        with pytest.raises(CheckpointError, match="of a run with other examples, settings or weights"):
            run(tokenizer, task, change, path)
    with pytest.raises(CheckpointError, match="of a run with other"):
        run(tokenizer, task, shots, path, OFAConfig(epochs=20, batch_size=2, lr=1e-3))
    path.write_bytes(before[: len(before) // 2])
    with pytest.raises(CheckpointError, match="is damaged"):
        run(tokenizer, task, shots, path)


def test_training_works_outside_the_main_thread(tokenizer, task, shots, tmp_path, undisturbed):
    found = []
    thread = threading.Thread(
        target=lambda: found.append(run(tokenizer, task, shots, tmp_path / "a.safetensors"))
    )
    thread.start()
    thread.join()
    assert torch.equal(found[0][1], undisturbed[1])
