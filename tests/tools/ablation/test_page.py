import json
import re
import shlex

import pytest

from tools.ablation.__main__ import main
from tools.ablation.page import page
from tools.ablation.results import results

REFERENCE = "ln-tuning:lr=0.003+epochs=30"


@pytest.fixture
def folder(search, tmp_path):
    """The search in two files, as two processes write them."""
    folder = tmp_path / "tuning"
    folder.mkdir()
    for part in range(2):
        lines = [json.dumps(row) + "\n" for row in search[part::2]]
        (folder / f"cells-{part}.jsonl").write_text("".join(lines))
    return folder


def test_the_command_writes_the_page_and_its_picture_and_the_page_the_command(folder, tmp_path, capsys):
    file = tmp_path / "ablation.md"
    arguments = [str(folder), "--against", "ln-tuning:epochs=30+lr=3e-3", "--write", str(file)]
    assert main(arguments) == 0
    text = file.read_text(encoding="utf-8")
    assert (tmp_path / "ablation.png").stat().st_size > 10_000 and "](ablation.png)" in text
    (command,) = re.findall(r"```sh\n(.*)\n```", text)
    module, *same = shlex.split(command)[2:]
    assert module == "tools.ablation"
    assert main(same) == 0 and file.read_text(encoding="utf-8") == text


def test_the_page_counts_settings_cells_and_hours(search):
    text = page(search, results(search, REFERENCE), "command", None)
    n_cells, words = len(search), " ".join(text.split())
    assert f"40 settings, {n_cells} cells, {n_cells * 36 / 3600:.1f} hours of training: 6 tasks" in words
    assert "3 draws (100, 101, 102) of the shots, 400 test rows a task, protocol A, m in float32" in words
    assert "about 2.2 standard errors above" in words and "known to about 32 %" in words
    titles = re.findall(r"^(?:## |\*\*)(.*?)(?:\*\*)?$", text, flags=re.MULTILINE)
    assert titles == [
        "All settings", "3 draws (100, 101, 102)", "1 draw (100)", "What was varied", "lr, epochs",
        "lambda_sharp", "lambda_step",
    ]  # fmt: skip
    # every setting is in one table of each section
    sections = text.split("\n## ")
    assert [sum(line.startswith("| `") for line in part.splitlines()) for part in sections] == [0, 41, 39]


def test_sets_are_told_where_there_are_some(run):
    alone, shared = run(REFERENCE, 0), run("ofa", 0, n_trained_together=4)
    for rows, told in ((alone, False), ([*alone, *shared], True)):
        text = " ".join(page(rows, results(rows, REFERENCE), "command", None).split())
        assert ("a cell of a set counts its share" in text) is told


def test_what_can_t_be_paired_is_named(run, cell):
    rows = [*run(REFERENCE, 0), cell("ofa", "a", 103, 0.9)]
    assert "No cell in common with the reference: `ofa`." in page(rows, results(rows, REFERENCE), "c", None)


def test_mixed_cells_an_unknown_reference_and_an_empty_folder_are_refused(folder, tmp_path, cell, capsys):
    file = tmp_path / "ablation.md"
    assert main([str(folder), "--against", "ofa", "--write", str(file)]) == 1
    assert "no cell is of 'ofa'" in capsys.readouterr().out
    (folder / "cells.jsonl").write_text(json.dumps(cell("ofa", "a", 100, 0.5, dtype="bfloat16")) + "\n")
    assert main([str(folder), "--against", REFERENCE, "--write", str(file)]) == 1
    assert "dtype is float32 (450 of 451 cells), bfloat16 (1 of 451 cells)" in capsys.readouterr().out
    assert main([str(tmp_path), "--against", REFERENCE, "--write", str(file)]) == 1
    assert "holds no cells*.jsonl" in capsys.readouterr().out
    assert not file.exists() and not file.with_suffix(".png").exists()
