"""The compile gate passes, and fails on a kernel that spills; it can't share Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]


def python(*arguments):
    environment = {k: v for k, v in os.environ.items() if k != "OFA_BACKEND"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def test_every_kernel_passes_for_sm_90():
    done = python("-m", "benchmarks.aot", "--arch", "90")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "32 of 32 pass" in done.stdout


def test_a_row_too_long_for_its_warps_fails(tmp_path):
    code = """
import sys
from benchmarks import aot
aot.launch.ROWS = (aot.launch.RowLaunch(8192, 4),)
sys.exit(aot.main(["--arch", "90", "--columns", "8192", "--write", sys.argv[1]]))
"""
    table = tmp_path / "aot.md"
    done = python("-c", code, str(table))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAIL rms_norm_backward sm_90" in done.stdout
    assert "bytes of spill stores" in table.read_text()


def test_each_number_can_fail_a_row():
    code = """
from dataclasses import replace
from benchmarks.aot import Row, count_wide, parse_ptxas

log = (
    "72 bytes stack frame, 104 bytes spill stores, 96 bytes spill loads\\n"
    "ptxas info : Used 255 registers, 24 bytes lmem"
)
assert parse_ptxas(log) == {"registers": 255, "stack": 72, "spill_stores": 104, "spill_loads": 96}
try:
    parse_ptxas("ptxas info : nothing")
except ValueError:
    pass
else:
    raise AssertionError("a log without numbers was read")

ptx = "".join(
    instruction + " {;"
    for instruction in (
        "ld.global.v4.b32", "ld.global.L1::evict_last.v2.b64", "ld.global.b16", "ld.global.nc.v2.b32",
        "st.global.v8.b32",
    )
)
assert count_wide(ptx, "ld") == (2, 4)
assert count_wide(ptx, "st") == (1, 1)

good = Row("k", 90, "float32", 8, 1, 255, 0, 0, 0, (2, 2), (1, 1), True)
assert good.faults() == []
for change in (
    {"stack": 8}, {"spill_stores": 4}, {"spill_loads": 4},
    {"loads": (1, 2)}, {"loads": (0, 0)}, {"stores": (0, 1)},
):
    assert len(replace(good, **change).faults()) == 1, change
assert replace(good, loads=(0, 2), reads_rows=False).faults() == []
"""
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
