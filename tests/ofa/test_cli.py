import csv
import json
import os
import signal

import pytest
from typer.testing import CliRunner

from ofa import OFAConfig, trainer
from ofa.cli import app
from ofa.objective import objective
from tests.ofa.conftest import LABELS, TEXTS

runner = CliRunner()
WORDS = ("bad", "good")


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "reviews.csv"
    with path.open("w", newline="") as file:
        rows = [(text, WORDS[label]) for text, label in zip(TEXTS, LABELS, strict=True)]
        csv.writer(file).writerows([("text", "label"), *rows])
    return path


def run(*arguments):
    return runner.invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "120"})


def adapt(data, out, model, *more):
    template = "Review: {text}\\nSentiment:"
    fixed = ("--model", model, "--template", template, "--shots", 2, "--epochs", 2, "--dtype", "float32")
    return run("adapt", data, "--out", out, *fixed, *more)


def test_adapt_then_predict(data, tmp_path, model_folder):
    out = tmp_path / "adapter"
    done = adapt(data, out, model_folder, "--lambda-sharp", 0.5, "--seed", 3)
    assert done.exit_code == 0, done.output
    assert "(1 bad, 1 good)" in done.output
    assert "adapted on 4 texts" in done.output and f"use it: ofa predict {out} " in done.output
    log = json.loads((out / "training.json").read_text())
    assert log["n_test"] == 2 and 0 <= log["accuracy"] <= 1
    steps = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [0, 1] and steps[1]["sharpness"] is not None
    assert (out / "history.png").stat().st_size > 5_000 and not (out / "unfinished.safetensors").exists()
    record = json.loads((out / "ofa_config.json").read_text())
    assert record["task"]["template"] == "Review: {text}\nSentiment:"
    assert record["task"]["label_words"] == ["bad", "good"] and record["model"]["sha256"]
    assert record["config"] == {**vars(OFAConfig()), "epochs": 2, "lambda_sharp": 0.5, "seed": 3}

    table = tmp_path / "labels.csv"
    done = run("predict", out, "a [bold] and moving evening", "--file", data, "--out", table)
    assert done.exit_code == 0, done.output
    assert "a [bold] and moving evening" in done.output
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["text"] for row in rows] == ["a [bold] and moving evening", *TEXTS]
    for row in rows:
        assert row["label"] == max(WORDS, key=lambda word: float(row[word]))
        assert float(row["bad"]) + float(row["good"]) == pytest.approx(1, abs=2e-4)


def test_an_interrupted_adapt_goes_on_where_it_was(data, tmp_path, model_folder, monkeypatch, ctrl_c):
    out, seen = tmp_path / "adapter", []

    def interrupting(model, batch, cfg, step):
        seen.append(step)
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return objective(model, batch, cfg, step)

    monkeypatch.setattr(trainer, "objective", interrupting)
    done = adapt(data, out, model_folder, "--epochs", 6)
    assert done.exit_code == 130 and "stopped after 3 of" in " ".join(done.output.split())
    assert not (out / "adapter_config.json").exists()
    done = adapt(data, out, model_folder, "--epochs", 6)
    assert done.exit_code == 0 and "going on after 3 of" in done.output, done.output
    assert seen == [0, 1, 2, 3, 4, 5]
    assert len((out / "history.jsonl").read_text().splitlines()) == 6


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--shots", 4), "class 'bad' has 3 examples, and 4 per class are asked for"),
        (("--label-words", "bad,fine"), "unknown labels: good; known are bad, fine"),
        (("--template", "no field"), "{text} exactly once"),
        (("--text-column", "review"), "no column 'review', only text, label"),
        (("--lr", 0), "lr must be positive"),
        (("--model", "no/such-model"), "is no local folder"),
    ],
)
def test_bad_input_ends_in_one_line_and_nothing_is_written(data, tmp_path, model_folder, more, message):
    out = tmp_path / "adapter"
    done = adapt(data, out, model_folder, *more)
    assert done.exit_code == 1
    assert "error:" in done.output and message in " ".join(done.output.split()), done.output
    assert not out.exists()


def test_nan_ends_in_one_line_and_nothing_is_written(data, tmp_path, model_folder):
    done = adapt(data, tmp_path / "adapter", model_folder, "--lambda-step", "1e39")
    assert done.exit_code == 1 and "step 0: the term loss is inf" in done.output
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("predict", "nowhere", "text"), "nowhere does not exist"),
        (("predict", "nowhere"), "nothing to classify"),
        (("adapt", "missing.csv"), "missing.csv does not exist"),
        (("adapt", "missing.csv", "--out", "pyproject.toml"), "pyproject.toml is a file; give a folder"),
        (("export", "nowhere", "pyproject.toml"), "pyproject.toml is a file; give a folder"),
    ],
)
def test_missing_things_are_named(arguments, message):
    done = run(*arguments)
    assert done.exit_code == 1 and message in " ".join(done.output.split())


def test_info_tells_versions_and_backends():
    done = run("info")
    assert done.exit_code == 0
    for word in ("torch", "transformers", "fast type", "rms_norm", "reference", "triton", "llama"):
        assert word in done.output


@pytest.mark.parametrize("command", [item.name or item.callback.__name__ for item in app.registered_commands])
def test_help_has_an_example(command):
    done = run(command, "--help")
    assert done.exit_code == 0 and "Example:" in done.output


def test_cut_texts_are_counted_in_one_line(data, tmp_path, model_folder):
    assert adapt(data, tmp_path / "adapter", model_folder).exit_code == 0
    done = run("predict", tmp_path / "adapter", "short", "long " * 100)
    assert done.exit_code == 0
    assert "warning: 1 of 2 texts were longer than the context" in done.output


def test_colliding_words_are_said_once_and_learnt_whole(data, tmp_path, model_folder):
    data.write_text(data.read_text().replace("bad", "goodness"))
    done = adapt(data, tmp_path / "adapter", model_folder)
    assert done.exit_code == 0, done.output
    said = "warning: label words 'good' and 'goodness' start with the same token"
    assert " ".join(done.output.split()).count(said) == 1
    assert json.loads((tmp_path / "adapter" / "ofa_config.json").read_text())["task"]["whole_words"]


def test_labels_can_be_renamed(data, tmp_path, model_folder):
    data.write_text(data.read_text().replace("bad", "neg"))
    done = adapt(data, tmp_path / "adapter", model_folder, "--label-words", "good,neg=bad")
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "adapter" / "ofa_config.json").read_text())
    assert record["task"]["label_words"] == ["bad", "good"]


def test_places_that_can_t_be_written_are_found_first(data, tmp_path, model_folder):
    done = adapt(data, data, model_folder)
    assert done.exit_code == 1 and "is a file; give a folder" in " ".join(done.output.split())
    done = run("predict", "nowhere", "text", "--out", tmp_path / "none" / "x.csv")
    assert done.exit_code == 1 and "does not exist" in " ".join(done.output.split())
