"""The section of many adapters: every part is run, and what fails hides nothing else."""

import pytest
import torch

from benchmarks.gpu import adapters
from benchmarks.gpu.card import Rehearsal
from benchmarks.gpu.section import Task


@pytest.fixture(autouse=True)
def own_memory(monkeypatch):
    """On a card the section has a process of its own, whose setting ends with it."""
    monkeypatch.setattr(adapters.memory, "ACTIVATION_BYTES", adapters.memory.ACTIVATION_BYTES)


def test_every_part_is_run_and_shown():
    found = list(adapters.rows(Rehearsal(), Task("out")))
    assert [row["kind"] for row in found] == ["norm"] * 4 + ["step"] * 4 + ["answers"] * 2
    assert all(row["seconds"] and row["note"] == "" for row in found)
    norms, steps, answers = adapters.tables(found)
    assert all(len(row) == len(header) for _, header, cells in (norms, steps, answers) for row in cells)
    assert [row[1] for row in steps[2]] == ["1", "2"] * 2 and [row[0] for row in answers[2]] == ["1", "3"]
    assert adapters.finding(found).count("2 jobs") == 2


def test_a_part_that_fails_hides_no_other(monkeypatch):
    def failing(*_):
        raise RuntimeError("no room\nat all")

    monkeypatch.setattr(adapters, "lockstep_of", failing)
    found = list(adapters.rows(Rehearsal(), Task("out")))
    notes = {row["kind"]: row["note"] for row in found}
    assert notes == {"norm": "", "step": "raises RuntimeError: no room", "answers": ""}
    assert len(adapters.tables(found)) == 3
    assert adapters.finding(found) == "no two numbers of jobs were timed"


def test_a_timed_step_trains_no_job():
    lm = adapters.model_of(Rehearsal()).eval()
    lockstep = adapters.lockstep_of(lm, adapters.CONFIGS[adapters.OFA_1], 2, 4, 64)
    before = lockstep.start.clone()
    lockstep.advance()
    assert torch.equal(lockstep.stack.gammas, before[:, None].expand_as(lockstep.stack.gammas))
    assert lockstep.n_taken == 2
