"""Every file of examples/ runs, offline, on a tiny random model."""

import csv
import json
import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.ofa.conftest import build_llama, tokenizer  # noqa: F401

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name, *arguments):
    """What the example's `main` returns."""
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](list(arguments))


@pytest.fixture
def model_folder(tmp_path, tokenizer):  # noqa: F811
    """With room for the examples' texts, and for demonstrations before them."""
    model = build_llama(torch.float32)
    model.config.max_position_embeddings = 2048
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_there_is_a_test_for_every_example():
    tested = {"classify_csv", "compare_methods", "hessian_trace", "hundred_adapters", "with_trainer"}
    assert {path.stem for path in EXAMPLES.glob("*.py")} == tested


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short_and_says_how_to_run_it(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    assert f"python examples/{path.name}" in text.split('"""')[1]


def test_classify_csv(model_folder, capsys):
    labels = run("classify_csv", "--model", model_folder, "--epochs", "1")
    assert len(labels) == 2 and set(labels) <= {"negative", "positive"}
    assert "Two hours of people shouting." in capsys.readouterr().out


def test_classify_csv_learns_from_the_file_that_it_is_given(model_folder, tmp_path):
    rows = [("text", "label"), ("Come at noon.", "plan"), ("It rained.", "report")] * 2
    with (tmp_path / "mine.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([rows[0], *(row for row in rows if row[0] != "text")])
    labels = run("classify_csv", str(tmp_path / "mine.csv"), "--model", model_folder, "--epochs", "1")
    assert set(labels) <= {"plan", "report"}


def test_with_trainer(model_folder, tmp_path):
    out = tmp_path / "trained"
    trainer = run("with_trainer", "--model", model_folder, "--out", str(out), "--epochs", "2")
    steps = [line for line in trainer.state.log_history if "loss" in line]
    assert len(steps) == 4
    assert all({"cross_entropy", "step_ratio", "sharpness"} <= line.keys() for line in steps)
    gammas = load_file(out / "adapter_model.safetensors")
    before = load_file(Path(model_folder) / "model.safetensors")
    names = [name for name in before if "norm" in name]
    assert len(gammas) == len(names)
    changed = [not any(torch.equal(before[name], gamma) for gamma in gammas.values()) for name in names]
    assert all(changed)


def test_hessian_trace():
    estimate, exact = run("hessian_trace", "--probes", "64", "--width", "8")
    assert estimate.value.shape == exact.shape == (5,)
    assert ((estimate.value - exact).abs() < 4 * estimate.stderr).all()
    finer, _ = run("hessian_trace", "--probes", "4096", "--width", "8")
    assert (finer.stderr < estimate.stderr / 5).all()


def test_compare_methods_runs_each_cell_once(model_folder, tmp_path):
    out = tmp_path / "comparison"
    arguments = ["--model", model_folder, "--out", str(out), "--max-steps", "1", "--seeds", "1"]
    rows = run("compare_methods", *arguments)
    assert [row["method"] for row in rows] == ["zero-shot", "icl", "ln-tuning", "ofa"]
    assert run("compare_methods", *arguments) == rows
    lines = (out / "cells.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows


@pytest.mark.filterwarnings("ignore:label words .* start with the same token")
def test_hundred_adapters(model_folder, capsys):
    rows = run("hundred_adapters", "--model", model_folder, "--epochs", "1")
    folders = {}
    for adapter, _, folder, answer in rows:
        folders.setdefault(adapter, []).append((folder, answer))
    assert len(folders) == 100
    for own in folders.values():
        both = {folder for folder, _ in own}
        assert len(own) == len(both) == 2 and {answer for _, answer in own} <= both
    right = sum(folder == answer for _, _, folder, answer in rows)
    assert f"{right} of 200 right" in capsys.readouterr().out
