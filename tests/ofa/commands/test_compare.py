"""`ofa compare` and `ofa table` from the command line, on a tiny model and rows of one's own."""

import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from ofa import models
from ofa.cli import app
from ofa.commands import compare as command
from ofa.commands.compare import Comparison, draws
from ofa.commands.locks import only_run
from ofa.compare.methods import METHODS
from ofa.data import datasets

WORDS = ("mild", "sharp", "plain", "odd", "bright", "dull")


@pytest.fixture
def rows_file(tmp_path):
    path = tmp_path / "reviews.jsonl"
    rows = [{"text": f"{word} {i}", "label": ("bad", "good")[i % 2]} for i in range(4) for word in WORDS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(*arguments):
    result = CliRunner().invoke(app, [*map(str, arguments)])
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture
def arguments(rows_file, model_folder, tmp_path):
    options = {
        "--tasks": rows_file, "--methods": "zero-shot,ln-tuning", "--seeds": 2, "--shots": 1,
        "--max-steps": 2, "--model": model_folder, "--template": "Review: {text}\\nIs:", "--dtype": "float32",
        "--out": tmp_path / "out",
    }  # fmt: skip
    return ["compare", *(part for pair in options.items() for part in pair)]


def test_a_run_prints_and_writes_tables_and_goes_on_where_it_was(arguments, tmp_path):
    code, output = run(*arguments)
    assert code == 0 and "4 cells run, 0 were there already" in output
    assert "accuracy, protocol A" in output and "against ln-tuning" in output
    out = tmp_path / "out"
    files = {"cells.jsonl", "cells.csv", "tables.md", "protocol-A.png"}
    assert {path.name for path in out.iterdir()} == files
    rows = [json.loads(line) for line in (out / "cells.jsonl").read_text().splitlines()]
    required = {"task", "method", "protocol", "seed", "shots", "model", "accuracy", "n_test"}
    assert all(required | {"seconds_fit", "seconds_eval"} <= row.keys() for row in rows)
    assert {row["n_test"] for row in rows} == {12}, "half of the rows, the same ones for all"

    tables = (out / "tables.md").read_text()
    code, output = run(*arguments)
    assert code == 0 and "0 cells run, 4 were there already" in output
    code, output = run(*arguments, "--whole-words")
    assert code == 0 and "4 cells run, 0 were there already" in output

    # recomputed from the lines alone, in another place
    lines = (out / "cells.jsonl").read_text().splitlines()[:4]
    shutil.rmtree(out)
    out.mkdir()
    (out / "cells.jsonl").write_text("\n".join(lines) + "\n")
    code, output = run("table", out)
    assert code == 0 and "against ln-tuning" in output
    assert (out / "tables.md").read_text() == tables


def test_a_terminal_shows_a_set_s_bar_instead_of_the_table_and_then_the_table(
    arguments, rows_file, tmp_path, capfd
):
    screen = io.StringIO()
    options = Comparison(
        [str(rows_file)], ["ln-tuning", "ofa"], ["A"], range(2), tmp_path / "out", shots=1, max_steps=2,
        model=arguments[arguments.index("--model") + 1], dtype=torch.float32,
    )  # fmt: skip
    command.run(options, Console(file=screen, force_terminal=True, width=100))
    shown = screen.getvalue()
    assert shown.count("4 trainings in one set") == 1
    assert "4 cells run" in shown and "in a set" in shown[shown.index("4 trainings") :]
    assert "4 of 4 jobs done" in capfd.readouterr().err


def test_variants_are_named_in_cells_and_tables_and_run_once(arguments, tmp_path):
    methods = "ln-tuning:lr=3e-3,ln-tuning:lr=0.003,ofa:lr=0.01+lambda_sharp=.1"
    code, output = run(*arguments, "--methods", methods)
    assert code == 0 and "4 cells run, 0 were there already" in output
    names = ["ln-tuning:lr=0.003", "ofa:lambda_sharp=0.1+lr=0.01"]
    lines = (tmp_path / "out" / "cells.jsonl").read_text().splitlines()
    assert [json.loads(line)["method"] for line in lines] == 2 * names
    tables = (tmp_path / "out" / "tables.md").read_text()
    assert f"against {names[0]}, protocol A" not in tables and all(f"| {name} |" in tables for name in names)
    code, output = run(*arguments, "--methods", "ofa:lambda_sharp=1e-1+lr=1e-2")
    assert code == 0 and "0 cells run, 2 were there already" in output

    code, output = run("table", tmp_path / "out", "--against", "ofa:lambda_sharp=1e-1+lr=1e-2")
    assert code == 0
    assert f"**against {names[1]} (mean rank" in (tmp_path / "out" / "tables.md").read_text()
    for wrong in ("ln-tuning", "ln-tuning:lrr=1", "magic"):
        code, output = run("table", tmp_path / "out", "--against", wrong)
        assert code == 1 and f"no cell is of '{wrong}'; there are {names[0]}, {names[1]}" in output


@pytest.fixture
def lacking(monkeypatch):
    """Why methods can't be run here, by their names; none of what is not in it lacks anything."""
    reasons = {}
    monkeypatch.setattr(command, "missing", lambda method: reasons.get(method.name))
    return reasons


def test_all_is_every_method_without_options_and_nothing_comes_twice(lacking):
    options = Comparison(["mr", "mr"], ["ofa:lr=1", "all", "ofa"], ["A"], range(1), Path())
    assert options.resolved().methods == ["ofa:lr=1", *METHODS]
    assert options.resolved().tasks == ["mr"]


def resolved(methods):
    return Comparison(["mr"], methods, ["A"], range(1), Path()).resolved().methods


def test_a_file_s_lines_stand_for_it(tmp_path, lacking):
    file = tmp_path / "settings.txt"
    file.write_text("# rates\n\n  ofa:lr=1e-2  # the largest\nln-tuning\n\tln-tuning:lr=3e-3\n")
    assert resolved(["lora", f"@{file}", "ln-tuning", "ia3"]) == [
        "lora", "ofa:lr=0.01", "ln-tuning", "ln-tuning:lr=0.003", "ia3",
    ]  # fmt: skip
    file.write_text("all")
    lacking["setfit"] = "no module; install it"
    assert resolved([f"@{file}"]) == [name for name in METHODS if name != "setfit"]
    file.write_text("setfit")
    with pytest.raises(ValueError, match="setfit can't be run: no module; install it"):
        resolved([f"@{file}", "all"])


def test_wrong_lines_of_files_are_told_with_the_other_wrong_names(tmp_path):
    file, empty, binary = (tmp_path / name for name in ("settings.txt", "empty.txt", "binary.txt"))
    file.write_text("ofa\n\nofa:lrr=1\nmagic # ?\n")
    empty.write_text("# nothing\n")
    binary.write_bytes(b"\xff\xfe")
    names = ["trick", f"@{file}", f"@{empty}", f"@{binary}", f"@{tmp_path / 'none.txt'}"]
    with pytest.raises(ValueError) as error:
        resolved(names)
    told = str(error.value).splitlines()
    starts = [
        f"{empty} names nothing", f"@{binary} can't be read: ", f"@{tmp_path / 'none.txt'} can't be read: ",
        "unknown method 'trick'", f"{file}, line 3: ofa:lrr=1: unknown option 'lrr'",
        f"{file}, line 4: unknown method 'magic'",
    ]  # fmt: skip
    assert len(told) == len(starts)
    assert all(line.startswith(start) for line, start in zip(told, starts, strict=True)), told


def test_a_file_of_methods_runs(arguments, tmp_path):
    (tmp_path / "settings.txt").write_text("zero-shot\nln-tuning:lr=3e-3\n")
    code, output = run(*arguments, "--methods", f"@{tmp_path / 'settings.txt'}")
    assert code == 0 and "4 cells run" in output
    code, output = run(*arguments, "--methods", "@nowhere.txt")
    assert code == 1 and "@nowhere.txt can't be read" in output


def test_all_leaves_out_what_can_t_be_run_and_says_so(lacking, capsys):
    lacking["setfit"] = "no module; install it"
    options = Comparison(["mr"], ["all", "icl"], ["A"], range(1), Path())
    assert options.resolved().methods == [name for name in METHODS if name != "setfit"]
    assert capsys.readouterr().err == "all leaves out setfit: no module; install it\n"


@pytest.mark.parametrize("methods", ["setfit,icl", "all,setfit"])
def test_what_is_named_and_can_t_be_run_is_refused_before_anything_is_loaded(
    arguments, lacking, monkeypatch, methods
):
    monkeypatch.setattr(models, "load", lambda *_: pytest.fail("something was loaded"))
    lacking["setfit"] = "no module; install it"
    code, output = run(*arguments, "--methods", methods)
    assert code == 1 and "setfit can't be run: no module; install it" in output


@pytest.mark.parametrize(("text", "numbers"), [("2", [0, 1]), ("100-102", [100, 101, 102]), (" 7-7 ", [7])])
def test_draws_are_a_number_of_them_or_a_range(text, numbers):
    assert list(draws(text)) == numbers


@pytest.mark.parametrize("text", ["", "0", "three", "-1", "3-", "-", "5-4", "1,2", "1.5"])
def test_what_is_no_draw_is_refused(text):
    with pytest.raises(ValueError, match="seeds"):
        draws(text)


@pytest.fixture
def own_tasks(tmp_path):
    """Two tasks of a folder's tasks.json, one of them of a built-in name."""
    folder = tmp_path / "data"
    definition = {"template": "Review: {text}\nIs:", "label_words": ["bad", "good"]}
    for name in ("mine", "mr"):
        (folder / name).mkdir(parents=True)
        for split in ("train", "test"):
            rows = [{"text": f"{split} {word} {i}", "label": i} for word in WORDS for i in range(2)]
            (folder / name / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "tasks.json").write_text(json.dumps({"mine": definition, "mr": definition}))
    return folder


def test_tasks_of_one_s_own_run_by_name(arguments, own_tasks, tmp_path):
    code, output = run(*arguments, "--data", own_tasks, "--tasks", "all", "--seeds", 1)
    assert code == 0 and "4 cells run" in output
    assert "warning: mr is the task of" in output
    rows = [json.loads(line) for line in (tmp_path / "out" / "cells.jsonl").read_text().splitlines()]
    assert {(row["task"], row["n_test"]) for row in rows} == {("mine", 12), ("mr", 12)}
    code, output = run(*arguments, "--data", own_tasks, "--tasks", "yours")
    assert code == 1 and "unknown task 'yours'; known are sst2" in output and "emo, mine," in output


def test_every_wrong_name_is_told_before_anything_is_loaded(arguments, monkeypatch):
    for place, name in ((datasets, "load"), (models, "load")):
        monkeypatch.setattr(place, name, lambda *_: pytest.fail("something was loaded"))
    wrong = ("--methods", "magic,ofa:lr=0,icl,lora:rank=4", "--tasks", "sst2,imdb", "--protocol", "A,C")
    code, output = run(*arguments, *wrong)
    assert code == 1
    for message in (
        "'magic'",
        "ofa:lr=0: lr must be",
        "lora:rank=4: unknown option",
        "'imdb'",
        "protocol 'C'",
    ):
        assert message in output


def test_a_process_of_several_takes_its_share(arguments, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    code, output = run(*arguments)
    assert code == 0 and "2 cells run" in output and "2 cells are still to come" in output
    monkeypatch.setenv("RANK", "0")
    code, output = run(*arguments)
    assert code == 0 and "2 cells run" in output and "against ln-tuning" in output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--methods", "lora,magic"), "unknown method 'magic'; known are zero-shot"),
        (("--protocol", "C"), "unknown protocol 'C'; known are A, B"),
        (("--tasks", "imdb"), "unknown task 'imdb'; known are sst2"),
        (("--tasks", "none.csv"), "none.csv does not exist"),
        (("--tasks", "none.txt"), "unknown task 'none.txt'"),
        (("--tasks", ""), "--tasks names nothing; known are sst2"),
        (("--tasks", " , "), "--tasks names nothing; known are sst2"),
        (("--methods", ""), "--methods names nothing; known are zero-shot"),
        (("--protocol", ","), "--protocol names nothing; known are A, B, and all"),
        (("--label-words", "bad,fine"), "unknown labels: good"),
        (("--shots", "30"), "30 are asked for; have at least 60 rows of each class"),
    ],
)
def test_mistakes_end_in_one_line(arguments, change, message):
    code, output = run(*arguments, *change)
    assert code == 1 and message in output


def test_no_cells_no_table(tmp_path):
    code, output = run("table", tmp_path)
    assert code == 1 and "holds no cells" in output


def test_own_files_come_as_they_are(arguments, rows_file, tmp_path):
    rows = [json.loads(line) for line in rows_file.read_text().splitlines()]
    lines = ["Review;Stars", *(f"{row['text']};{1 if row['label'] == 'bad' else 5}.0" for row in rows), ";1"]
    path = tmp_path / "stars.txt"
    path.write_bytes("\n".join(lines).encode("utf-16"))
    reading = ("--format", "csv", "--text-column", "review", "--label-column", "stars", "--skip-empty")
    code, output = run(*arguments, "--tasks", path, *reading, "--label-words", "1=bad,5=good")
    assert code == 0 and "4 cells run" in output and "warning: 1 row left out" in output
    code, output = run(*arguments, "--tasks", path, *reading)
    assert code == 1 and "--label-words 1=WORD,5=WORD" in output


def test_a_second_run_of_the_same_cells_is_refused(arguments, tmp_path, monkeypatch):
    with only_run(tmp_path / "out", "cells"):
        code, output = run(*arguments)
        assert code == 1 and f"another run is writing to {tmp_path / 'out'}" in output
    with only_run(tmp_path / "out", "cells-0"):
        monkeypatch.setenv("WORLD_SIZE", "2")
        code, output = run(*arguments)
        assert code == 1 and "another run is writing to" in output
        monkeypatch.setenv("RANK", "1")
        code, output = run(*arguments)
        assert code == 0 and "2 cells run" in output
