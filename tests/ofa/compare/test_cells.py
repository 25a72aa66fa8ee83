import json
from dataclasses import replace
from itertools import islice

import pytest
import torch

import ofa
import ofa.compare.cells as module
from ofa.compare.cells import Cell, Common, Pool, compare, plan, read_cells, run_cell
from ofa.compare.methods import Setting
from ofa.compare.methods.norm_tuning import terms_at
from ofa.data.batch import labelled
from ofa.data.task import Task
from ofa.decoder.view import Decoder
from ofa.models import Source
from ofa.passes.own_layers import token_states
from ofa_kernels import mix, step_ratio

METHODS = ("zero-shot", "icl", "ln-tuning", "ofa")
SOURCE = Source("tiny", "test", "0" * 64)


def planned(pool, **options):
    settings = {"methods": METHODS, "protocols": "A", "seeds": range(2), "max_steps": 2, **options}
    common = Common.of(SOURCE, torch.float32, settings.pop("max_steps"))
    return plan([pool], common=common, **settings)


def test_a_killed_run_repeats_no_finished_cell(model, tokenizer, pool, tmp_path, monkeypatch):
    cells = planned(pool)
    first = [row for row, _ in islice(compare(model, tokenizer, cells, tmp_path), 3)]
    path = tmp_path / "cells.jsonl"
    with path.open("a") as file:
        file.write('{"task": "reviews", "met')  # the kill came in the middle of a line
    ran = []

    def spy(model, tokenizer, pool, cell, *more):
        ran.append((cell.method, cell.seed))
        return run_cell(model, tokenizer, pool, cell, *more)

    monkeypatch.setattr(module, "run_cell", spy)
    rows = list(compare(model, tokenizer, cells, tmp_path))
    assert [is_new for _, is_new in rows] == [False] * 3 + [True] * 5
    # zero-shot of the second seed is that of the first
    assert ran == [("ofa", 0), ("icl", 1), ("ln-tuning", 1), ("ofa", 1)]
    assert [row for row, _ in rows[:3]] == first
    lines = path.read_text().splitlines()
    assert len(lines) == len(cells) and [json.loads(line) for line in lines] == [row for row, _ in rows]
    assert all(not is_new for _, is_new in compare(model, tokenizer, cells, tmp_path))


def test_processes_split_the_cells_and_files_merge_them(model, tokenizer, pool, tmp_path):
    cells = planned(pool)
    for i in range(3):
        list(compare(model, tokenizer, cells, tmp_path, (i, 3)))
    rows = read_cells(tmp_path)
    assert len(rows) == len(cells) and {Cell.of(row) for row in rows} == {cell for _, cell in cells}
    assert len(list(tmp_path.glob("cells-*.jsonl"))) == 3


def test_whatever_decides_a_number_makes_another_cell(pool):
    (_, cell), *_ = planned(pool)
    row = vars(cell).copy()
    assert Cell.of({**row, "accuracy": 0.5}) == cell
    others = [pool, replace(pool, test=pool.test[:3]), replace(pool, rows=pool.rows[1:])]
    assert len({p.digest for p in others}) == 3
    for name in row:
        assert Cell.of({**row, name: "another"}) != cell, name


def test_cells_of_trained_norms_hold_j_and_h_at_test_texts(model, tokenizer, pool):
    texts = [row["text"] for row in pool.test]
    prompts = [pool.task.encode(tokenizer, text, 512).ids for text in texts]
    batch = labelled(prompts, [[0]] * len(prompts), torch.device("cpu"))
    found = terms_at(Setting(model, tokenizer, pool.task, pool.rows), texts)
    sharp = ofa.sharpness(model, batch, 8, mix(0, 0)).value[1:].mean()
    ratio = step_ratio(token_states(Decoder.of(model), batch).z)
    assert found == pytest.approx({"sharpness": sharp.item(), "step_ratio": ratio.item()}, rel=1e-4)
    rows = {cell.method: run_cell(model, tokenizer, pool, cell) for _, cell in planned(pool, seeds=[0])}
    assert {method for method, row in rows.items() if found.keys() <= row.keys()} == {"ln-tuning", "ofa"}
    assert rows["ofa"]["sharpness"] != pytest.approx(found["sharpness"], rel=1e-6), "of the raw model"


def test_cells_say_how_many_numbers_were_trained(model, tokenizer, pool):
    names = [f"ln-tuning{options}" for options in ("", ":trained_depth=0.5", ":trained_norms=p")]
    cells = [cell for _, cell in planned(pool, methods=names, seeds=[0])]
    found = [run_cell(model, tokenizer, pool, cell)["n_trainable"] for cell in cells]
    n_layers, size = len(model.model.layers), model.model.norm.weight.numel()
    upper = n_layers - n_layers // 2
    assert found == [(2 * n_layers + 1) * size, (2 * upper + 1) * size, n_layers * size]


def test_a_cell_gives_the_model_back_and_does_not_depend_on_what_ran_before(model, tokenizer, pool):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cells = [cell for _, cell in planned(pool, seeds=[3])]
    forward = [run_cell(model, tokenizer, pool, cell) for cell in cells]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    backward = [run_cell(model, tokenizer, pool, cell) for cell in reversed(cells)][::-1]
    for first, second in zip(forward, backward, strict=True):
        assert (first["accuracy"], first["calibration_error"]) == (
            second["accuracy"],
            second["calibration_error"],
        )
    trained = {row["method"]: (row["n_trainable"] > 0, row["n_steps"]) for row in forward}
    assert trained == {"zero-shot": (False, 0), "icl": (False, 0), "ln-tuning": (True, 2), "ofa": (True, 2)}


def test_protocol_b_puts_the_shots_before_every_prompt(model, tokenizer, pool):
    cells = {(cell.method, cell.protocol): cell for _, cell in planned(pool, protocols="AB", seeds=[0])}
    rows = {key: run_cell(model, tokenizer, pool, cell) for key, cell in cells.items()}
    same = ("accuracy", "macro_f1", "calibration_error")
    assert [rows["zero-shot", "B"][k] for k in same] == [rows["icl", "A"][k] for k in same]
    assert rows["ln-tuning", "A"]["calibration_error"] != rows["ln-tuning", "B"]["calibration_error"]


def test_what_must_be_equal_is_run_once(model, tokenizer, pool, tmp_path, monkeypatch):
    ran = []

    def spy(model, tokenizer, pool, cell, *more):
        ran.append((cell.method, cell.protocol, cell.seed))
        return run_cell(model, tokenizer, pool, cell, *more)

    monkeypatch.setattr(module, "run_cell", spy)
    cells = planned(pool, methods=["zero-shot", "icl"], protocols="AB")
    rows = [row for row, _ in compare(model, tokenizer, cells, tmp_path)]
    assert [Cell.of(row) for row in rows] == [cell for _, cell in cells]
    assert ran == [("zero-shot", "A", 0), ("icl", "A", 0), ("icl", "A", 1)]


def test_bare_texts_are_read_once_for_both_protocols(
    model, tokenizer, pool, tmp_path, tiny_encoder, monkeypatch
):
    ran = []

    def spy(model, tokenizer, pool, cell, *more):
        ran.append((cell.method, cell.protocol))
        return run_cell(model, tokenizer, pool, cell, *more)

    monkeypatch.setattr(module, "run_cell", spy)
    cells = planned(pool, methods=["embedding", "linear-probe"], protocols="AB", seeds=[0])
    rows = [row for row, _ in compare(model, tokenizer, cells, tmp_path)]
    assert [row["protocol"] for row in rows] == ["A", "A", "B", "B"]
    assert ran == [("embedding", "A"), ("linear-probe", "A"), ("linear-probe", "B")]


TRAINED = ("soft-prompt", "i2cl", "ia3", "ln-ia3", "lora", "ln-tuning", "ofa", "paper-code")


@pytest.mark.parametrize("name", TRAINED)
def test_a_cell_is_trained_with_the_options_in_its_name(model, tokenizer, pool, name):
    cells = planned(pool, methods=[f"{name}:epochs=3+batch_size=2"], seeds=[0], max_steps=None)
    ((_, cell),) = cells
    row = run_cell(model, tokenizer, pool, cell)
    assert row["method"] == f"{name}:epochs=3+batch_size=2"
    assert row["n_steps"] == 3, "two shots, one step an epoch"


def test_variants_are_cells_of_their_own_and_go_on_where_they_were(model, tokenizer, pool, tmp_path):
    cells = planned(pool, methods=["ln-tuning", "ln-tuning:lr=0.5"], seeds=[0])
    rows = [row for row, is_new in compare(model, tokenizer, cells, tmp_path) if is_new]
    assert [row["method"] for row in rows] == ["ln-tuning", "ln-tuning:lr=0.5"]
    assert rows[0]["calibration_error"] != rows[1]["calibration_error"]
    assert [new for _, new in compare(model, tokenizer, cells, tmp_path)] == [False, False]


def test_a_damaged_line_in_the_middle_is_an_error(tmp_path):
    (tmp_path / "cells.jsonl").write_text('{"a": 1}\n{"b"\n{"c": 3}\n')
    with pytest.raises(ValueError, match="line 2 is damaged"):
        read_cells(tmp_path)


def test_cells_of_version_0_2_are_found_finished():
    texts = ("a bright evening", "the second half never ends")
    rows = [{"text": text, "label": label} for label, text in enumerate(texts)]
    task = Task("tiny", "Review: {text}\nSentiment:", ("bad", "good"))
    pool = Pool(task, rows, rows[:1], shots=1)
    assert pool.digest == "1046c07747039dfe"  # what that version gave
    ((_, cell),) = plan([pool], ["ln-tuning"], ["A"], [0], Common("tiny", "0" * 64, "float32"))
    row = dict(task="tiny", method="ln-tuning", protocol="A", seed=0, shots=1, model="tiny")
    row |= dict(
        model_sha256="0" * 64, dtype="float32", data_sha256="1046c07747039dfe", n_test=1, max_steps=None
    )
    assert Cell.of({**row, "accuracy": 0.5}) == cell
