"""What is recorded of launches, and of tests that launch."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

import triton.language as tl

import ofa_kernels as ok
from benchmarks.gpu import launches, parity
from benchmarks.gpu.card import Rehearsal
from benchmarks.gpu.runner import ROOT
from benchmarks.gpu.section import Task

PLANTED = """
import torch
import ofa_kernels as ok

def norm():
    return ok.rms_norm(torch.randn(2, 8), torch.ones(8))

def test_a_kernel_that_is_right(monkeypatch):
    monkeypatch.setenv("OFA_BACKEND", "triton")
    norm()

def test_a_kernel_that_is_wrong(monkeypatch):
    monkeypatch.setenv("OFA_BACKEND", "triton")
    ok.probe_dot(torch.ones(1, 2, 8), 0)
    assert norm().sum() > 1e9, "planted"

def test_that_fails_without_a_kernel():
    raise RuntimeError("planted, too")
"""


@pytest.mark.parametrize(
    ("value", "stands_for"),
    [(1, 1), (2, 17), (0, 16), (4096, 16), (577, 17), (-7, 17), (2**31, 2**31 + 16), (2**31 + 1, 2**31 + 17)],
)
def test_integers_are_told_apart_as_triton_does(value, stands_for):
    assert launches.described(value, positional=True) == stands_for
    assert launches.described(value, positional=False) == value


def test_tensors_are_their_type_and_alignment():
    t = torch.zeros(33, dtype=torch.bfloat16)
    assert launches.described(t, True) == {"tensor": "bfloat16", "aligned": True}
    assert launches.described(t[1:], True) == {"tensor": "bfloat16", "aligned": False}
    assert launches.described(tl.float32, False) == {"type": "fp32"}


def test_every_launch_is_seen_and_equal_ones_are_one_line(monkeypatch):
    monkeypatch.setenv("OFA_BACKEND", "triton")
    seen = []
    with launches.watching(lambda *launch: seen.append(launches.line_of(*launch))):
        for rows in (2, 3):
            ok.rms_norm(torch.randn(rows, 32), torch.ones(32))
    ok.rms_norm(torch.randn(2, 32), torch.ones(32))
    assert len(seen) == 2 and len(set(seen)) == 1
    assert json.loads(seen[0])["kernel"] == "rms_norm_forward"


@pytest.fixture
def planted(tmp_path):
    path = tmp_path / "test_planted.py"
    path.write_text(PLANTED)
    (tmp_path / "conftest.py").write_text("import os\nos.environ['TRITON_INTERPRET'] = '1'\n")
    return path


def test_a_failed_test_puts_in_doubt_what_it_launched(planted, tmp_path):
    outcomes = tmp_path / "outcomes.jsonl"
    options = ["-q", "-p", "no:cacheprovider", "-p", "benchmarks.gpu.launches", "--outcomes", str(outcomes)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", str(planted), *options], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stdout + done.stderr
    rows = {
        row["test"].rpartition("::")[2]: row for row in map(json.loads, outcomes.read_text().splitlines())
    }
    wrong = rows["test_a_kernel_that_is_wrong"]
    assert (wrong["outcome"], wrong["kernels"]) == ("failed", ["probe_dot", "rms_norm_forward"])
    assert "planted" in wrong["message"]
    assert rows["test_a_kernel_that_is_right"]["outcome"] == "passed"
    assert rows["test_that_fails_without_a_kernel"]["kernels"] == []


def test_the_parity_section_reports_what_failed_and_goes_on_to_its_end(planted, tmp_path):
    rows = list(parity.rows(Rehearsal(), Task(str(tmp_path), suite=(str(planted),))))
    assert sum(row["count"] for row in rows if row["kind"] == "passed") == 1
    assert [row["wrong_kernels"] for row in rows if row["kind"] == "failed"] == [
        ["probe_dot", "rms_norm_forward"],
        [],
    ]
    assert rows[-1] == {"kind": "end", "status": 1}
    assert parity.finding(rows) == "1 passed, 2 failed; in doubt: probe_dot, rms_norm_forward"
    (_, _, verdicts), (_, _, failed) = parity.tables(rows)
    assert verdicts == [("probe_dot", "in doubt", "0", "1"), ("rms_norm_forward", "in doubt", "1", "1")]
    assert len(failed) == 2
    assert "test_a_kernel_that_is_wrong" in (tmp_path / "parity.xml").read_text()


def test_a_suite_that_was_cut_short_says_so():
    assert parity.finding([{"kind": "passed", "count": 3, "kernels": {}}]) == "3 passed, not run to its end"
    assert parity.finding([{"kind": "end", "status": 4}]) == "0 passed, no test was run"


def test_processes_are_as_many_as_the_machine_has_room_for(monkeypatch):
    monkeypatch.setattr(parity.os, "cpu_count", lambda: 64)
    monkeypatch.setattr(parity.importlib.util, "find_spec", lambda name: name)
    card = SimpleNamespace(rehearsal=False)
    command = parity.command(card, Task("out"), "outcomes")
    assert command[command.index("-n") + 1] == "12" and "--maxfail" not in command and "-x" not in command
