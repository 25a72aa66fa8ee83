import math
import statistics

import pytest

from tools.ablation.results import check, results

REFERENCE = "ln-tuning:lr=0.003+epochs=30"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"dtype": "bfloat16"}, "^dtype is float32 (18 of 19 cells), bfloat16 (1 of 19 cells)"),
        ({"model": "other"}, "^model is"),
        ({"model_sha256": "1"}, "^model_sha256 is"),
        ({"protocol": "B"}, "^protocol is A (18 of 19 cells), B"),
        ({"max_steps": 3}, "^max_steps is"),
        ({"n_test": 100}, "^a: n_test is 400 (3 of 4 cells), 100 (1 of 4 cells)"),
        ({"data_sha256": "z"}, "^a: data_sha256 is"),
        ({"shots": 1}, "^a: shots is"),
    ],
)
def test_cells_of_other_runs_are_refused_with_what_differs(run, cell, change, told):
    rows = run(REFERENCE, 0)
    check([*rows, cell("ofa", "a", 100, 0.5)])
    with pytest.raises(ValueError, match=told.replace("(", r"\(").replace(")", r"\)")):
        check([*rows, cell("ofa", "a", 100, 0.5, **change)])


def test_tasks_may_have_test_sets_of_different_sizes(run):
    check([row | {"n_test": 400 - ord(row["task"])} for row in run(REFERENCE, 0)])


def test_a_cell_that_is_there_twice_is_refused(run):
    rows = run(REFERENCE, 0)
    with pytest.raises(ValueError, match=r"a, ln-tuning:lr=0.003.epochs=30, 100: is there 2 times"):
        check([*rows, rows[0]])


def test_a_planted_difference_is_found_on_the_common_cells_alone(run, cell):
    other = run("ofa", 2.0, (100, 101), "abc")
    other[0]["accuracy"] += 0.06
    elsewhere = [cell("ofa", "a", 103, 0.0), cell("ofa", "z", 100, 1.0)]
    reference, found = results([*other, *elsewhere, *run(REFERENCE, 0)], REFERENCE)
    assert reference.variation.name == REFERENCE and reference.against().difference == 0
    assert found.rows == other and found.draws == (100, 101)
    assert found.counted == "6 of 14", "the folder has seven tasks, with z"
    pair = found.against()
    assert pair.difference == pytest.approx(0.02 + 0.06 / 6)
    assert pair.by_task == pytest.approx(statistics.stdev([0.05, 0.02, 0.02]) / math.sqrt(3))
    assert pair.by_seed == pytest.approx(statistics.stdev([0.04, 0.02]) / math.sqrt(2))
    assert pair.by_cell == pytest.approx(statistics.stdev([0.08, *[0.02] * 5]) / math.sqrt(6))
