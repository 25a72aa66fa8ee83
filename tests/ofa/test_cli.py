import csv
import json
import os
import signal

import pytest
from typer.testing import CliRunner

import ofa
from ofa import OFAConfig
from ofa.cli import app
from ofa.commands import forecast
from ofa.commands.locks import only_run
from ofa.commands.options import Method
from ofa.config import DEFAULT_METHOD, METHODS
from ofa.loss.objective import objective
from ofa.train import fit as trainer
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
    assert record["config"] == {**OFAConfig().settings(), "epochs": 2, "lambda_sharp": 0.5, "seed": 3}

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


def test_settings_are_chosen_and_several_trainings_averaged(data, tmp_path, model_folder):
    out = tmp_path / "adapter"
    done = adapt(data, out, model_folder, "--select", "cv", "--members", 2, "--test", 0)
    assert done.exit_code == 0, done.output
    assert "chosen of 6 settings in 2 folds" in done.output and "adapted on 4 texts" in done.output
    log = json.loads((out / "training.json").read_text())
    assert log["n_members"] == 2 and len(log["selection"]) == 6
    best = min(log["selection"], key=lambda row: row["log_loss"])
    config = json.loads((out / "ofa_config.json").read_text())["config"]
    assert all(config[name] == best[name] for name in ("lr", "lambda_step", "lambda_sharp"))
    assert len((out / "history.jsonl").read_text().splitlines()) == 2
    assert not list(out.glob("unfinished*"))
    done = run("predict", out, "warm, and bright")
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--shots", 1, "--select", "cv", "--model", "none"), "class 'bad' has a single shot, and select="),
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


def labels_of(out):
    return json.loads((out / "ofa_config.json").read_text())["task"]["label_words"]


SEMICOLONS = (("text,label", "Text; LABEL"), (",bad", ";bad"), (",good", ";good"))
COLUMNS = ("--text-column", "review", "--label-column", "Mood")


@pytest.mark.parametrize(
    ("name", "changes", "encoding", "options"),
    [
        ("a.txt", (), "utf-8", ("--format", "csv")),
        ("A.CSV", SEMICOLONS, "utf-8-sig", ()),
        ("a.csv", (), "utf-16", ()),
        ("a.csv", (("text,label", "review,mood"),), "utf-8", COLUMNS),
        ("a.csv", (("dull", "d\xfcll"),), "cp1252", ("--encoding", "cp1252")),
        ("a.csv", (("text,label", "text,label\nfine,\n,bad"),), "utf-8", ("--skip-empty",)),
        ("a.csv", (("bad", "-1"), ("good", "1.0")), "utf-8", ("--label-words", "-1=bad,1=good")),
    ],
)
def test_files_as_they_come(data, tmp_path, model_folder, name, changes, encoding, options):
    path, out, content = tmp_path / name, tmp_path / "adapter", data.read_bytes().decode()
    for old, new in changes:
        content = content.replace(old, new)
    path.write_bytes(content.encode(encoding))
    done = adapt(path, out, model_folder, "--test", "0", *options)
    assert done.exit_code == 0, done.output
    assert labels_of(out) == ["bad", "good"]
    assert ("warning: 2 rows left out, the first:" in done.output) == ("--skip-empty" in options)

    pairs = [options[i : i + 2] for i in range(0, len(options), 2)]
    of_texts = [part for pair in pairs if not pair[0].startswith("--label") for part in pair]
    done = run("predict", out, "--file", path, "--out", tmp_path / "labels.csv", *of_texts)
    assert done.exit_code == 0, done.output
    with (tmp_path / "labels.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["text"].replace("ü", "u") for row in rows if row["text"] not in ("", "fine")] == [*TEXTS]
    assert all(row["label"] in WORDS for row in rows if row["text"])
    if "--skip-empty" in options:  # rows stay in line with the file's
        assert rows[0]["text"] == "fine" and rows[1] == {"text": "", "label": "", "bad": "", "good": ""}


def test_numbers_need_words_and_the_error_can_be_copied(data, tmp_path, model_folder):
    data.write_text(data.read_text().replace("bad", "1").replace("good", "5.0"))
    done = adapt(data, tmp_path / "adapter", model_folder)
    assert done.exit_code == 1
    assert "the labels are numbers (1, 5); give each its word: --label-words 1=WORD,5=WORD" in done.output


@pytest.fixture
def adapter(data, tmp_path, model_folder):
    assert adapt(data, tmp_path / "saved", model_folder).exit_code == 0
    return tmp_path / "saved"


def test_a_method_brings_its_settings_and_options_change_them(data, tmp_path, model_folder):
    assert [method.value for method in Method] == list(METHODS)
    for method, config in METHODS.items():
        out = tmp_path / method
        done = adapt(data, out, model_folder, "--method", method, "--loss-over", "labels", "--lr", 0.01)
        assert done.exit_code == 0, done.output
        record = json.loads((out / "ofa_config.json").read_text())["config"]
        assert record == {**config.settings(), "epochs": 2, "loss_over": "labels", "lr": 0.01}
    assert METHODS["ln-tuning"].lambda_step == METHODS["ln-tuning"].lambda_sharp == 0
    done = adapt(data, tmp_path / "none", model_folder, "--method", "magic")
    assert done.exit_code == 2 and "'ln-tuning', 'ofa'" in done.output


def test_the_help_tells_the_defaults_of_the_methods():
    shown = " ".join(run("adapt", "--help").output.replace("│", " ").split())
    weight = METHODS["ofa"].lambda_step
    assert f"Weight of the step ratio J; default: 0 with ln-tuning, {weight} with ofa." in shown
    assert f"[default: {DEFAULT_METHOD}]" in shown


def test_predict_reads_a_text_a_line(adapter, tmp_path):
    (tmp_path / "a.txt").write_text("dull\n\nwarm, and bright\n")
    more = ("--file", tmp_path / "a.txt", "--format", "txt", "--out", tmp_path / "a.csv")
    done = run("predict", adapter, *more)
    assert done.exit_code == 1 and "line 2: the text is empty (1 row like this" in " ".join(
        done.output.split()
    )
    assert not (tmp_path / "a.csv").exists()
    done = run("predict", adapter, *more, "--skip-empty")
    assert done.exit_code == 0, done.output
    with (tmp_path / "a.csv").open() as file:
        assert [bool(row["label"]) for row in csv.DictReader(file)] == [True, False, True]


def test_a_second_adapt_into_one_folder_is_refused_before_it_reads_anything(tmp_path):
    with only_run(tmp_path / "adapter"):
        done = run("adapt", "missing.csv", "--out", tmp_path / "adapter")
    assert done.exit_code == 1
    assert f"another run is writing to {tmp_path / 'adapter'}; let it end" in " ".join(done.output.split())
    with only_run(tmp_path / "adapter"):
        done = run("demo", "--out", tmp_path / "adapter", "--model", "no/such-model")
    assert done.exit_code == 1 and "another run is writing to" in " ".join(done.output.split())


def test_long_tests_are_forecast(data, tmp_path, model_folder, monkeypatch):
    monkeypatch.setattr(forecast, "N_TIMED", 1)
    for place in ("ofa.commands.adapt", "ofa.commands.predict"):
        monkeypatch.setattr(f"{place}.WORTH_SAYING", 0)
    done = adapt(data, tmp_path / "adapter", model_folder)
    assert done.exit_code == 0 and "testing takes about 0 minutes, half of it before adapting" in done.output
    done = run("predict", tmp_path / "adapter", "--file", data)
    assert done.exit_code == 0 and "labelling 6 texts takes about 0 minutes" in done.output


def test_a_language_that_the_model_does_not_know_is_told_once(data, tmp_path, model_folder):
    texts = [f"这部电影{sign}" for sign in "一二三四五六"]
    lines = [f"{text},{WORDS[label]}" for text, label in zip(texts, LABELS, strict=True)]
    data.write_text("\n".join(["text,label", *lines]), encoding="utf-8")
    done = adapt(data, tmp_path / "adapter", model_folder)
    assert done.exit_code == 0, done.output
    assert " ".join(done.output.split()).count("take a multilingual model (--model)") == 1


def test_the_version():
    done = run("--version")
    assert done.exit_code == 0 and done.output == f"ofa {ofa.__version__}\n"
