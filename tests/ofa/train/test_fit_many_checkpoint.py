"""Sets that survive: interrupted at any step, killed, out of disk."""

import errno
import os
import signal
from dataclasses import replace

import pytest
import torch

import ofa
from ofa import Job, OFAConfig
from ofa.decoder.view import Decoder
from ofa.train import checkpoint as module
from ofa.train import memory
from ofa.train.checkpoint import CheckpointError
from ofa.train.lockstep import Lockstep
from tests.ofa.conftest import build_llama
from tests.ofa.train.jobs import JOBS, PLAIN, SHOTS, WHOLE, assert_same_bits

# three more: one that ends early, one whose passes are its own, one whose prompts differ by epoch
WILD = Job(PLAIN, SHOTS, OFAConfig(0.1, 0.05, epochs=9, batch_size=3, lr=1e200))
PUBLISHED = Job(PLAIN, SHOTS[:3], OFAConfig(0.1, 0.1, epochs=2, batch_size=2, lr=1e-2, terms="paper_code"))
CONFIG = OFAConfig(0.1, 0.05, epochs=4, batch_size=2, lr=1e-2, seed=5)
IN_CONTEXT = Job(PLAIN, SHOTS[:3], CONFIG, demonstrations=True)
SET = [WILD, *JOBS, PUBLISHED, IN_CONTEXT]


@pytest.fixture(autouse=True)
def room_for_some(monkeypatch):
    """So that jobs wait, join and leave."""
    decoder = Decoder.of(build_llama(torch.float32))
    monkeypatch.setattr(memory, "ACTIVATION_BYTES", 70 * memory.bytes_per_token(decoder))


def run(tokenizer, path, jobs=SET, model=None):
    model = build_llama(torch.float32) if model is None else model
    return ofa.fit_many(model, tokenizer, jobs, progress=False, checkpoint=path)


@pytest.fixture
def undisturbed(tokenizer, room_for_some):
    return run(tokenizer, None)


def before_a_step(monkeypatch, number, action):
    """Do something before a step of the set, counted from 1 in every run."""
    original, steps = Lockstep.advance, []

    def advance(lockstep):
        steps.append(lockstep)
        if steps.count(lockstep) == number:
            action()
        original(lockstep)

    monkeypatch.setattr(Lockstep, "advance", advance)
    return steps


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def test_interrupted_after_every_step_it_ends_with_the_same_bits(
    tokenizer, tmp_path, monkeypatch, undisturbed, ctrl_c
):
    path, n_interrupted = tmp_path / "set.safetensors", 0
    before_a_step(monkeypatch, 1, press_ctrl_c)
    while True:
        try:
            results = run(tokenizer, path)
            break
        except KeyboardInterrupt as interrupt:
            assert "goes on from there" in str(interrupt)
            n_interrupted += 1
    assert n_interrupted > 15
    assert_same_bits(results, undisturbed)
    # it was interrupted between its last good step and the one that ended it
    assert results[0].error is not None and len(results[0].history) == 1
    assert signal.getsignal(signal.SIGINT) is ctrl_c


@pytest.mark.parametrize("step", [2, 5, 11, 13])
def test_stopped_anywhere_it_ends_with_the_same_bits(step, tokenizer, tmp_path, monkeypatch, undisturbed):
    def crash():
        raise RuntimeError("the power went off")

    path = tmp_path / "set.safetensors"
    with monkeypatch.context() as patch:
        before_a_step(patch, step, crash)
        with pytest.raises(RuntimeError, match="power"):
            run(tokenizer, path)
    assert path.exists() == (step > 10), "a checkpoint is written every ten steps"
    assert_same_bits(run(tokenizer, path), undisturbed)


def test_ctrl_c_says_what_was_done(tokenizer, tmp_path, monkeypatch, ctrl_c):
    before_a_step(monkeypatch, 3, press_ctrl_c)
    with pytest.raises(KeyboardInterrupt, match=r"^stopped after 6 of 14 steps; it is kept in .*goes on"):
        run(tokenizer, tmp_path / "a.safetensors", [JOBS[0], JOBS[4]])
    with pytest.raises(KeyboardInterrupt, match=r"^stopped after 3 of 9 steps$"):
        run(tokenizer, None, JOBS[:1])


def test_a_finished_set_is_not_run_again(tokenizer, tmp_path, monkeypatch, undisturbed):
    path = tmp_path / "set.safetensors"
    run(tokenizer, path)
    monkeypatch.setattr(Lockstep, "advance", None)
    assert_same_bits(run(tokenizer, path), undisturbed)


CHANGES = {
    "a shot": lambda jobs: [replace(jobs[0], shots=SHOTS[::-1]), *jobs[1:]],
    "a learning rate": lambda jobs: [replace(jobs[0], config=replace(jobs[0].config, lr=0.5)), *jobs[1:]],
    "a task": lambda jobs: [*jobs[:-1], replace(jobs[-1], task=WHOLE)],
    "where a job ends": lambda jobs: [replace(jobs[0], max_steps=3), *jobs[1:]],
    "what precedes a prompt": lambda jobs: [jobs[0], replace(jobs[1], demonstrations=True)],
    "the order": lambda jobs: jobs[::-1],
    "a job less": lambda jobs: jobs[:-1],
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_sets_checkpoint_is_refused(change, tokenizer, tmp_path):
    path, jobs = tmp_path / "set.safetensors", [JOBS[0], JOBS[4]]
    run(tokenizer, path, jobs)
    with pytest.raises(CheckpointError, match="of a run with other examples, settings or weights"):
        run(tokenizer, path, CHANGES[change](jobs))


def test_other_weights_and_damaged_files_are_refused(tokenizer, tmp_path):
    path, jobs = tmp_path / "set.safetensors", [JOBS[0], JOBS[4]]
    run(tokenizer, path, jobs)
    captured = [replace(job, config=replace(job.config, cuda_graph=True)) for job in jobs]
    run(tokenizer, path, captured)  # which changes no number
    model = build_llama(torch.float32)
    model.model.norm.weight.data[0] += 1
    with pytest.raises(CheckpointError, match="of a run with other"):
        run(tokenizer, path, jobs, model)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="is damaged"):
        run(tokenizer, path, jobs)


def test_a_full_disk_leaves_the_last_good_checkpoint(tokenizer, tmp_path, monkeypatch, undisturbed):
    path, synced = tmp_path / "set.safetensors", []

    def full(descriptor):
        synced.append(descriptor)
        if len(synced) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "fsync", full)
        with pytest.raises(OSError, match=r"step \d+ could not be written.*No space left.*earlier"):
            run(tokenizer, path)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert_same_bits(run(tokenizer, path), undisturbed)
