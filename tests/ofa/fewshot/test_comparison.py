"""`ofa compare` and `ofa table` from the command line, on a tiny model and rows of one's own."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from ofa.cli import app

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
        (("--shots", "30"), "30 are asked for; have at least 60 rows of each class"),
    ],
)
def test_mistakes_end_in_one_line(arguments, change, message):
    code, output = run(*arguments, *change)
    assert code == 1 and message in output


def test_no_cells_no_table(tmp_path):
    code, output = run("table", tmp_path)
    assert code == 1 and "holds no cells" in output
