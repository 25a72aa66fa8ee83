"""The training step in a graph: its loss is an eager step's, and the step's number selects its probes."""

import pytest

from benchmarks.gpu import step
from benchmarks.gpu.card import Rehearsal
from benchmarks.gpu.section import Task
from benchmarks.step_cost import AUTHORS, CE, OFA_1, PEFT


@pytest.fixture
def card():
    return Rehearsal()


def test_each_replay_has_the_probes_of_its_step(card):
    row = step.graph_row(card, OFA_1, step.batch_of(card))
    assert row["note"] == "" and row["loss"] == row["eager_loss"]
    assert row["of_other_probes"] == 0, "another step's loss is another number, or the seed is not read"


def test_a_replay_that_computes_something_else_is_noted(card, monkeypatch):
    take = step.Captured.take

    def wrong(self, *arguments, **options):
        values = take(self, *arguments, **options)
        return {**values, "loss": values["loss"] + 1}

    monkeypatch.setattr(step.Captured, "take", wrong)
    assert "the replay's loss is" in step.graph_row(card, CE, step.batch_of(card))["note"]


def test_what_is_timed_is_a_replay(card, monkeypatch):
    captured, replayed = [], []

    def graph(run):
        captured.append(run)
        return lambda: replayed.append(run()) or None

    monkeypatch.setattr(card, "graph", graph)
    step.graph_row(card, CE, step.batch_of(card))
    assert len(captured) == 1 and len(replayed) == 2


def test_a_contender_that_fails_hides_no_other(card, monkeypatch):
    eager = step.eager_row

    def failing(card, name, batch):
        if name == PEFT:
            raise RuntimeError("no such wrapper\nat all")
        return eager(card, name, batch)

    monkeypatch.setattr(step, "eager_row", failing)
    monkeypatch.setattr(step, "ORDER", (PEFT, AUTHORS))
    monkeypatch.setattr(
        step, "graph_row", lambda *_: {"kind": "step", "name": CE, "how": "graph", "seconds": [], "note": ""}
    )
    first, second, *_ = step.rows(card, Task("out"))
    assert first["note"] == "raises RuntimeError: no such wrapper" and not first["seconds"]
    assert second["name"] == AUTHORS and second["seconds"]
    step.tables([first, second])
