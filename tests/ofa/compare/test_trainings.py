"""Cells of LN-tuning and OFA that are trained as one set, and scored one after the other."""

import json
import os
import signal
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice, product

import pytest
import torch

from ofa.compare import trainings as module
from ofa.compare.cells import Cell, Common, compare, plan, run_cell
from ofa.compare.metrics import metrics
from ofa.compare.plots import plot_comparison
from ofa.compare.statistics import in_set
from ofa.compare.tables import accuracy_table
from ofa.decoder.patch import patch_model, set_gammas
from ofa.scoring import score
from ofa.train.fit_many import fit_many
from ofa.train.lockstep import Lockstep
from ofa.train.step import NonFiniteError
from tests.ofa.compare.test_cells import SOURCE, planned

METHODS = ("zero-shot", "ln-tuning", "ofa:lr=0.03", "paper-code:epochs=2")
METHODS_OF_MEMBERS = ("ln-tuning:lr=0.03+batch_size=1", "ln-tuning:lr=0.03+batch_size=1+n_members=3")
IN_SETS = ("ln-tuning", "ofa:lr=0.03")


@pytest.fixture
def sets(monkeypatch):
    """The jobs of every set that is trained."""
    found, fit_many = [], module.fit_many

    def spy(model, tokenizer, jobs, *more):
        found.append(jobs)
        return fit_many(model, tokenizer, jobs, *more)

    monkeypatch.setattr(module, "fit_many", spy)
    return found


def numbers(row):
    return {name: value for name, value in row.items() if "seconds" not in name and "together" not in name}


def test_cells_of_a_set_have_the_numbers_of_trainings_alone(model, tokenizer, pool, tmp_path, sets):
    cells = planned(pool, methods=METHODS, protocols="AB")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows = [row for row, _ in compare(model, tokenizer, cells, tmp_path)]
    assert [Cell.of(row) for row in rows] == [cell for _, cell in cells]
    chosen = [[(job.config.seed, job.demonstrations, job.config.lr) for job in jobs] for jobs in sets]
    assert chosen == [[*product((0, 1), (False, True), (1e-3, 0.03))]], "each protocol has its own trainings"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [path.name for path in tmp_path.iterdir()] == ["cells.jsonl"]
    for row, (_, cell) in zip(rows, cells, strict=True):
        alone = numbers(run_cell(model, tokenizer, pool, cell))
        if cell.method != "zero-shot":
            assert row["seconds_fit"] > 0
            assert row.pop("notes") == alone.pop("notes") == {}
            assert numbers(row) == pytest.approx(alone, abs=1e-4), cell
        assert row["n_trained_together"] == (8 if cell.method in IN_SETS else 1)
        assert in_set(row) == (cell.method in IN_SETS)


def test_a_run_killed_between_two_cells_trains_nothing_again(model, tokenizer, pool, tmp_path, sets):
    cells = planned(pool, methods=METHODS)
    undisturbed = [row for row, _ in compare(model, tokenizer, cells, tmp_path / "undisturbed")]
    sets.clear()
    list(islice(compare(model, tokenizer, cells, tmp_path / "killed"), 2))
    assert len(sets) == 1
    rows = [row for row, _ in compare(model, tokenizer, cells, tmp_path / "killed")]
    assert len(sets) == 1 and [*map(numbers, rows)] == [*map(numbers, undisturbed)]
    assert [row["n_trained_together"] for row in rows] == [1, 4, 4, 1] * 2
    assert [path.name for path in (tmp_path / "killed").iterdir()] == ["cells.jsonl"]


def test_what_is_finished_joins_no_set(model, tokenizer, pool, tmp_path, sets):
    first = planned(pool, methods=["ln-tuning"], seeds=[0])
    assert [row["n_trained_together"] for row, _ in compare(model, tokenizer, first, tmp_path)] == [1]
    assert not sets, "one training is no set"
    rows = [row for row, _ in compare(model, tokenizer, planned(pool, methods=IN_SETS), tmp_path)]
    assert [row["n_trained_together"] for row in rows] == [1, 3, 3, 3]


def test_each_task_has_a_set_of_its_own(model, tokenizer, pool, tmp_path, sets):
    other = replace(pool, task=replace(pool.task, name="other"), rows=pool.test, test=pool.rows)
    common = Common.of(SOURCE, torch.float32, 2)
    cells = plan([pool, other], IN_SETS, "A", range(2), common)
    rows = [row for row, _ in compare(model, tokenizer, cells, tmp_path)]
    assert [{job.task.name for job in jobs} for jobs in sets] == [{"reviews"}, {"other"}]
    for row, (owner, cell) in zip(rows, cells, strict=True):
        alone = run_cell(model, tokenizer, owner, cell)
        assert row["n_trained_together"] == 4
        assert row["calibration_error"] == pytest.approx(alone["calibration_error"], abs=1e-4), cell


def test_members_are_trained_in_the_set_and_averaged(model, tokenizer, pool, tmp_path, sets):
    cells = planned(pool, methods=METHODS_OF_MEMBERS, seeds=[4], max_steps=5)
    (single, mean) = (row for row, _ in compare(model, tokenizer, cells, tmp_path))
    assert [[job.config.seed for job in jobs] for jobs in sets] == [[4, 4, 5, 6]]
    assert (single["n_steps"], mean["n_steps"]) == (5, 15) and mean["n_trained_together"] == 4
    jobs = sets[0][1:]
    gammas = [result.gammas for result in fit_many(model, tokenizer, jobs, progress=False)]
    average = [torch.stack(of_norm).mean(0) for of_norm in zip(*gammas, strict=True)]
    report = patch_model(model)
    set_gammas(model, average)
    scores = score(model, tokenizer, pool.task, [row["text"] for row in pool.test])
    report.undo()
    expected = metrics(scores, [row["label"] for row in pool.test])
    assert mean["log_loss"] == pytest.approx(expected["log_loss"], abs=1e-6)
    assert mean["log_loss"] != pytest.approx(single["log_loss"], abs=1e-6)
    alone = run_cell(model, tokenizer, *cells[1])
    assert alone["log_loss"] == pytest.approx(expected["log_loss"], abs=1e-6)


def test_processes_have_sets_of_their_own(model, tokenizer, pool, tmp_path, sets):
    cells = planned(pool, methods=IN_SETS, seeds=range(3))
    for i in range(2):
        list(compare(model, tokenizer, cells, tmp_path, (i, 2)))
    assert [len(jobs) for jobs in sets] == [3, 3]
    assert {path.name for path in tmp_path.iterdir()} == {"cells-0.jsonl", "cells-1.jsonl"}


def test_a_training_that_fails_is_an_error_in_its_turn(model, tokenizer, pool, tmp_path, sets):
    cells = planned(pool, methods=["ln-tuning", "ofa:lambda_step=1e39", "ofa"])
    for done in (1, 0):
        with pytest.raises(NonFiniteError, match="the term loss is inf"):
            list(compare(model, tokenizer, cells, tmp_path))
        lines = (tmp_path / "cells.jsonl").read_text().splitlines()
        assert [json.loads(line)["method"] for line in lines] == ["ln-tuning"], done
    assert [len(jobs) for jobs in sets] == [6, 2], "what succeeded was kept"


@pytest.fixture
def advances(monkeypatch, ctrl_c):
    """The steps of sets; Ctrl-C comes in the third."""
    found, advance = [], Lockstep.advance

    def spy(self):
        advance(self)
        found.append(self.n_taken)
        if len(found) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Lockstep, "advance", spy)
    return found


def test_a_set_that_was_stopped_goes_on(model, tokenizer, pool, tmp_path, advances):
    cells = planned(pool, methods=IN_SETS, max_steps=5)
    with pytest.raises(KeyboardInterrupt, match="stopped after 12 of 20 steps; it is kept in"):
        list(compare(model, tokenizer, cells, tmp_path / "stopped"))
    rows = [row for row, _ in compare(model, tokenizer, cells, tmp_path / "stopped")]
    assert advances == [4, 8, 12, 16, 20]
    assert all("stopped" in row.pop("notes")["seconds_fit"] for row in rows)
    undisturbed = [row for row, _ in compare(model, tokenizer, cells, tmp_path / "undisturbed")]
    assert not any(row.pop("notes") for row in undisturbed)
    assert [*map(numbers, rows)] == [*map(numbers, undisturbed)]


def test_a_set_that_was_stopped_is_not_in_the_way_of_another(model, tokenizer, pool, tmp_path, advances):
    with pytest.raises(KeyboardInterrupt):
        list(compare(model, tokenizer, planned(pool, methods=IN_SETS, max_steps=5), tmp_path))
    (left,) = (tmp_path / "cells-trained").iterdir()
    rows = [row for row, _ in compare(model, tokenizer, planned(pool, methods=IN_SETS, seeds=[7]), tmp_path)]
    assert [row["n_trained_together"] for row in rows] == [2, 2] and not left.exists()


def test_whoever_watches_is_told_the_size_and_says_whether_to_show_a_bar(
    model,
    tokenizer,
    pool,
    tmp_path,
    monkeypatch,
):
    seen, fit_many = [], module.fit_many

    @contextmanager
    def watch(n_trainings):
        seen.append(n_trainings)
        yield True
        seen.append("left")

    def spy(model, tokenizer, jobs, progress, checkpoint):
        seen.append(progress)
        return fit_many(model, tokenizer, jobs, False, checkpoint)

    monkeypatch.setattr(module, "fit_many", spy)
    list(
        compare(
            model, tokenizer, planned(pool, methods=IN_SETS), tmp_path, watch=module.Watch(training=watch)
        )
    )
    assert seen == [4, True, "left"]


def row(n_together, seconds):
    return {
        "task": "a", "method": "ofa", "protocol": "A", "seed": n_together, "shots": 5, "model": "m",
        "accuracy": 0.5, "n_test": 100, "seconds_fit": seconds, "seconds_eval": 1.0, "n_trainable": 10,
    } | ({"n_trained_together": n_together} if n_together else {})  # fmt: skip


@pytest.mark.parametrize(
    ("sizes", "shown"),
    [
        ((0, 1), "3.0"),
        ((4, 8), "3.0 in a set"),
        ((0, 4), "2.0, 4.0 in a set"),
        ((1, 0, 8), "3.0, 6.0 in a set"),
    ],
)
def test_tables_never_mix_the_times_of_sets_with_others(sizes, shown, tmp_path):
    rows = [row(n, 2.0 * (i + 1)) for i, n in enumerate(sizes)]
    assert accuracy_table(rows, "A").rows[0][3] == shown
    plot_comparison(rows, tmp_path / "plot.svg")
