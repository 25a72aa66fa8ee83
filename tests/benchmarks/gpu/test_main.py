"""The command: its plan, its files, and that nothing stops it."""

import dataclasses
import json
import time

import pytest
from rich.console import Console

from benchmarks.gpu import __main__ as command
from benchmarks.gpu.section import SECTIONS, Task, chosen

PLANTED = "def test_planted():\n    raise AssertionError('planted')\n"


def test_the_plan_fits_into_one_call_with_the_headline_early(capsys):
    assert command.main(["--dry-run"]) == 0
    assert "s in all, as estimated" in capsys.readouterr().out
    assert sum(section.seconds for section in SECTIONS) <= 60 * command.MINUTES <= 580
    names = [section.name for section in SECTIONS]
    first = SECTIONS[: names.index("headline") + 1]
    assert sum(section.seconds for section in first) <= 200
    assert all(section.seconds < section.limit for section in SECTIONS)


def test_without_a_card_it_says_how_to_rehearse(capsys):
    assert command.main([]) == 2
    assert "--rehearse" in capsys.readouterr().out


def test_an_unknown_section_is_refused(capsys):
    with pytest.raises(SystemExit):
        command.main(["--rehearse", "--sections", "speed"])
    assert "known are environment, parity" in capsys.readouterr().err


@pytest.mark.timeout(600)
def test_a_planted_failure_stops_nothing_else(tmp_path):
    """A parity test that fails, and a section whose process can't even begin its work."""
    planted = tmp_path / "test_planted.py"
    planted.write_text(PLANTED)
    out = tmp_path / "out"
    out.mkdir()
    sections = chosen(["environment", "parity", "tools"])
    broken = dataclasses.replace(sections[0], limit=0.5)  # stopped before it has started
    console = Console(width=160, record=True)
    begin = time.monotonic()
    task = Task(str(out), suite=(str(planted),))
    record = command.run((broken, *sections[1:]), task, 9.0, True, console)
    assert time.monotonic() - begin < 300
    assert record.sections["environment"].status == "stopped after 0 s"
    assert record.sections["parity"].status == "done"
    assert record.sections["tools"].status == "done", record.sections["tools"].log
    assert "0 passed, 1 failed" in console.export_text()
    rows = json.loads((out / "gpu.json").read_text())["sections"]["parity"]["rows"]
    (failed,) = (row for row in rows if row["kind"] == "failed")
    assert failed["test"].endswith("test_planted.py::test_planted") and failed["message"].endswith("planted")


def test_results_go_where_they_are_told(tmp_path, monkeypatch):
    told = []

    def run(sections, task, minutes, rehearsal, console):
        told.append(task.out)
        return command.Record(tmp_path / "none")

    monkeypatch.setattr(command, "run", run)
    monkeypatch.setattr(command, "SECTIONS", ())
    monkeypatch.setattr(command, "chosen", lambda names: ())
    monkeypatch.setenv("OUT", str(tmp_path / "named"))
    command.main(["--rehearse"])
    command.main(["--rehearse", "--out", str(tmp_path / "given")])
    monkeypatch.delenv("OUT")
    command.main(["--rehearse"])
    assert told[:2] == [str(tmp_path / "named"), str(tmp_path / "given")]
    assert not told[2].startswith(str(command.RESULTS)), "what was rehearsed is no result"
