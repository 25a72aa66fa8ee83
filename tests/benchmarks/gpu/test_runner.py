"""Processes that fail, hang and die; and what is kept of them."""

import json
import sys
import time
from dataclasses import replace

import pytest

from benchmarks.gpu import runner
from benchmarks.gpu.runner import Outcome
from benchmarks.gpu.section import SECTIONS, Task, chosen

PYTHON = (sys.executable, "-c")


def watch(tmp_path, code, limit=20.0):
    return runner.watch([*PYTHON, code], tmp_path / "log", limit, runner.environment(rehearsal=False))


def test_a_command_that_ends_well_is_done(tmp_path):
    status, seconds = watch(tmp_path, "print('said')")
    assert status == "done" and 0 < seconds < 20
    assert (tmp_path / "log").read_text() == "said\n"


def test_a_failure_is_named_by_its_exit_status(tmp_path):
    assert watch(tmp_path, "raise SystemExit(7)")[0] == "failed with exit status 7"


def test_what_hangs_is_stopped_with_what_it_started(tmp_path):
    file = tmp_path / "alive"
    child = f"import time, pathlib\nwhile True: pathlib.Path({str(file)!r}).touch(); time.sleep(0.05)"
    code = (
        f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    )
    status, seconds = watch(tmp_path, code, limit=2.0)
    assert status == "stopped after 2 s" and seconds < 20
    assert file.exists()
    file.unlink()
    time.sleep(0.5)
    assert not file.exists()


def test_whole_lines_are_kept_and_the_torn_one_is_not(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a": ')
    assert runner.read_rows(path) == [{"a": 1}, {"a": 2}]
    assert runner.read_rows(tmp_path / "none") == []


def test_no_backend_is_forced_on_a_card_and_a_rehearsal_interprets(monkeypatch):
    monkeypatch.setenv("OFA_BACKEND", "reference")
    assert not {"OFA_BACKEND", "TRITON_INTERPRET"} & set(runner.environment(rehearsal=False))
    assert runner.environment(rehearsal=True)["TRITON_INTERPRET"] == "1"


def run_all(monkeypatch, outcomes, names=(), seconds=1e6):
    """The outcomes as (name, status, kernels known to be wrong), of planted sections."""
    told = []

    def run(section, task, limit, rehearsal):
        told.append((section.name, task.wrong, limit))
        outcome = outcomes.get(section.name, Outcome("done"))
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(runner, "run", run)
    ended = []
    runner.run_all(
        chosen(names),
        Task("out"),
        time.monotonic() + seconds,
        True,
        lambda section: None,
        lambda section, outcome: ended.append((section.name, outcome.status)),
    )
    return told, ended


def test_every_section_runs_whatever_becomes_of_the_others(monkeypatch):
    failing = {section.name: Outcome("failed with exit status 1") for section in SECTIONS}
    _, ended = run_all(monkeypatch, failing)
    assert ended == [(section.name, "failed with exit status 1") for section in SECTIONS]


def test_later_sections_are_told_which_kernels_are_wrong(monkeypatch):
    failed = {"kind": "failed", "wrong_kernels": ["rms_norm_jvp", "probe_dot"]}
    told, _ = run_all(monkeypatch, {"parity": Outcome("done", rows=[failed, {"kind": "end"}])})
    known = {name: wrong for name, wrong, _ in told}
    assert known["environment"] == known["parity"] == ()
    assert known["headline"] == known["sweep"] == ("probe_dot", "rms_norm_jvp")


def test_no_section_may_take_longer_than_what_is_left(monkeypatch):
    told, _ = run_all(monkeypatch, {}, ["parity"], seconds=50)
    (_, _, limit), parity = told[0], chosen(["parity"])[0]
    assert limit <= 50 < parity.limit


def test_nothing_is_begun_when_the_time_is_up(monkeypatch):
    told, ended = run_all(monkeypatch, {}, seconds=5)
    assert told == []
    assert {status for _, status in ended} == {"not begun: the time was up"}


def test_a_process_writes_rows_that_survive_it(tmp_path):
    environment = replace(chosen(["environment"])[0])
    outcome = runner.run(environment, Task(str(tmp_path)), 120.0, rehearsal=True)
    assert outcome.status == "done", outcome.log
    kinds = [row["kind"] for row in outcome.rows]
    assert kinds[0] == "machine" and kinds.count("copy") == 2
    json.dumps(outcome.rows)


def test_an_unknown_section_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"unknown section 'speed'; known are environment, parity"):
        chosen(["parity", "speed"])
