"""The host's time where launches are stubs: every call is timed, and the stubs are gone afterwards."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import host_time
from benchmarks.harness.stubs import build, stubbed_cuda
from ofa_kernels import dispatch, rms_norm

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="a stub of the library needs g++")
ROOT = Path(__file__).parents[2]


def test_every_call_is_timed_on_every_backend(tmp_path):
    file = tmp_path / "times.md"
    # without Triton's interpreter, which the other tests need
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.host_time", "--rounds", "1", "--markdown", str(file)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    _, _, header, _, *rows = file.read_text(encoding="utf-8").splitlines()
    backends = ["Triton", "CUDA"] if importlib.util.find_spec("triton") else ["CUDA"]
    assert [cell.strip() for cell in header.split("|")[2:-1]] == backends
    cells = {row.split("|")[1].strip(): row.split("|")[2:-1] for row in rows if row}
    assert {"rms_norm, recorded", "its backward", *host_time.SMALL} < set(cells)
    assert all(float(cell) > 0 for row in cells.values() for cell in row)


def test_a_stub_writes_nothing_and_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.delenv("OFA_BACKEND", raising=False)
    x = torch.ones(2, 3)
    before = dispatch.backend_for(x)
    with stubbed_cuda(build(tmp_path)), monkeypatch.context() as patch:
        patch.setattr(torch, "empty_like", torch.zeros_like)
        assert dispatch.backend_for(x) == "cuda"
        assert not rms_norm(x, None).any()
    assert dispatch.backend_for(x) == before
    assert rms_norm(x, None).all()
