"""What NVIDIA's tools print, and what becomes of those that are missing or find something."""

import os

from benchmarks.gpu import tools
from benchmarks.gpu.card import Rehearsal
from benchmarks.gpu.section import Task

WIDE = """==PROF== Connected to process 7
"ID","Kernel Name","launch__registers_per_thread","gpu__time_duration.sum"
"","","register/thread","us"
"0","rms_norm_forward","51","34.2"
"1","sum_partials","40","5.1"
"""
LONG = """"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"
"0","rms_norm_forward","gpu__time_duration.sum","us","34.2"
"0","rms_norm_forward","launch__registers_per_thread","register/thread","51"
"0","rms_norm_forward","some__other_metric","","1"
"1","sum_partials","gpu__time_duration.sum","us","5.1"
"""


def test_both_layouts_of_ncus_csv_are_read():
    for printed in (WIDE, LONG):
        first, second = tools.parse_ncu(printed)
        assert first == {
            "kind": "counters",
            "kernel": "rms_norm_forward",
            "time": "34.2 us",
            "registers": "51 register/thread",
        }
        assert (second["kernel"], second["time"]) == ("sum_partials", "5.1 us")


def test_output_that_is_no_table_has_no_counters():
    assert tools.parse_ncu("==ERROR== The user does not have permission\n") == []


def test_tools_that_are_missing_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    card = Rehearsal()
    card.rehearsal = False  # so that no stand-ins are made
    rows = list(tools.rows(card, Task(str(tmp_path))))
    assert {row["tool"] for row in rows} == {"ncu", "compute-sanitizer"}
    assert tools.finding(rows).count("is not installed") == len(rows)


def test_an_error_that_a_sanitizer_finds_is_said(tmp_path, monkeypatch):
    for name, ending in (("ncu", "exit 0"), ("compute-sanitizer", "echo 'ERROR SUMMARY: 2 errors'; exit 86")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{ending}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    card = Rehearsal()
    card.rehearsal = False
    rows = list(tools.rows(card, Task(str(tmp_path))))
    assert "memcheck: found errors: ERROR SUMMARY: 2 errors" in tools.finding(rows)
    assert "racecheck: found errors: ERROR SUMMARY: 2 errors" in tools.finding(rows)


def test_a_tool_that_takes_too_long_is_stopped(tmp_path, monkeypatch):
    for name in ("ncu", "compute-sanitizer"):
        (tmp_path / name).write_text("#!/bin/sh\nexec sleep 60\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    card = Rehearsal()
    card.rehearsal = False
    rows = list(tools.rows(card, Task(str(tmp_path), seconds=6.0)))
    assert [row["status"] for row in rows] == [None] * 3
    assert sum(row["seconds"] for row in rows) < 20
    assert "ncu: stopped: the time was up" in tools.finding(rows)
