"""The compile gate passes, and fails on what it is there for; it can't share Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

ROOT = Path(__file__).parents[2]


def python(*arguments):
    environment = {k: v for k, v in os.environ.items() if k not in ("OFA_BACKEND", "TRITON_INTERPRET")}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def test_every_kernel_passes_for_sm_90(tmp_path):
    code = """
import sys
from tools import aot
from ofa_kernels.triton import probes, rms_norm, rms_norm_tangent, segments, step_lengths

status = aot.main(["--arch", "90", "--columns", "576", "--write", sys.argv[1]])
for module in (probes, rms_norm, rms_norm_tangent, segments, step_lengths):
    for name, value in vars(module).items():
        kernel = isinstance(value, aot.JITFunction) and any(p.name == "BLOCK_N" for p in value.params)
        if kernel and value.__module__ == module.__name__:
            print("kernel", name)
sys.exit(status)
"""
    table = tmp_path / "aot.md"
    done = python("-c", code, str(table))
    assert done.returncode == 0, done.stdout + done.stderr
    kernels = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("kernel ")]
    assert len(kernels) >= 14
    for kernel in kernels:
        assert f"| {kernel} | " in table.read_text()


def test_a_row_too_long_for_its_registers_fails(tmp_path):
    code = """
import sys
from tools import aot
from ofa_kernels.triton import launch, plan

launch.rms_norm.BACKWARD = plan.Residency(16384, 4096, 1024)
options = ["--arch", "90", "--columns", "16384", "--only", "rms_norm_backward", "--write", sys.argv[1]]
sys.exit(aot.main(options))
"""
    table = tmp_path / "aot.md"
    done = python("-c", code, str(table))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAIL rms_norm_backward row, 16384 × 16 " in done.stdout
    assert "bytes of spill stores" in table.read_text()


def test_rows_loaded_value_by_value_where_vectors_could_be_fail():
    code = """
import sys
from tools import aot
from ofa_kernels.triton import launch

launch.rms_norm.unit_of = lambda *_: 1
sys.exit(aot.main(["--arch", "90", "--columns", "4104", "--only", "rms_norm_forward"]))
"""
    done = python("-c", code)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "global loads narrower than 128 bits" in done.stdout


def test_rows_in_flight_are_loaded_by_wide_asynchronous_copies():
    code = """
import torch
from tools import aot
from tools.aot_cases import Case

aot._prepare()
builds = [aot.specialise(90, 4096, *launch) for launch in aot.launches(Case(torch.bfloat16, 4096))]
builds = {aot.variant_of(build): build for build in builds if build.kernel == "rms_norm_backward"}
row, found = 2 * 4096, []
for variant, build in builds.items():
    ahead = 2 if "3 rows in flight" in variant else 1 if "2 rows in flight" in variant else 0
    if ahead:
        read = 2 if "no ds" in variant else 3
        found.append((read, ahead))
        use = aot.compile_build(build)
        assert ahead * read * row < use.shared < (ahead + 1) * read * row, (variant, use)
        assert use.faults(True) == [], use
assert sorted(found) == [(2, 2), (3, 1), (3, 1)], list(builds)
"""
    done = python("-c", code)
    assert done.returncode == 0, done.stderr


def test_only_narrow_accesses_to_rows_fail(tmp_path):
    kernel = """
import triton
import triton.language as tl

@triton.jit
def kernel(x_ptr, ids_ptr, out_ptr, n_cols, BLOCK_N: tl.constexpr):
    o = tl.arange(0, BLOCK_N)
    example_id = tl.load(ids_ptr + tl.program_id(0))
    tl.store(out_ptr + o + example_id, tl.load(x_ptr + o, mask=o < n_cols), mask=o < n_cols)
"""
    code = """
import sys
import torch
from tools import aot

sys.path.insert(0, sys.argv[1])
import shifted

aot._prepare()
x, ids = torch.empty(512), torch.empty(4, dtype=torch.int64)
use = aot.compile_build(aot.specialise(90, 512, shifted.kernel, (x, ids, x, 512), {"BLOCK_N": 512}))
assert use.loads == (1, 1), use
assert use.stores == (0, 4), use
assert use.faults(True) == ["4 of 4 global stores narrower than 128 bits"]
assert use.faults(False) == []
"""
    (tmp_path / "shifted.py").write_text(kernel)
    done = python("-c", code, str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_number_can_fail_a_build():
    code = """
from dataclasses import replace
from tools.aot import Use
from tools.ptx import accesses, parse_ptxas

log = (
    "72 bytes stack frame, 104 bytes spill stores, 96 bytes spill loads\\n"
    "ptxas info : Used 255 registers, 24 bytes lmem"
)
assert parse_ptxas(log) == {"registers": 255, "stack": 72, "spill_stores": 104, "spill_loads": 96}

ptx = '''
    .param .u64 .ptr .global .align 1 k_param_0,
    .param .u64 .ptr .global .align 1 k_param_1,
    .param .u32 k_param_2
    ld.param.b64 %rd1, [k_param_0];
    ld.param.b64 %rd2, [k_param_1];
    ld.param.s32 %rd3, [k_param_2];
    mad.wide.s32 %rd4, %r1, 4, %rd1;
    ld.global.b64 %rd5, [%rd4];
    add.s64 %rd6, %rd2, %rd5;
    mov.b64 %rd7, %rd6;
    @%p1 ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd7 + 0 ];
    ld.global.L1::evict_last.v2.b64 { %rd8, %rd9 }, [ %rd4 + 16 ];
    @%p1 st.global.b16 [ %rd7 + 0 ], { %rs1 };
    st.global.v8.b32 [ %rd4 + 0 ], { %r1, %r2, %r3, %r4, %r5, %r6, %r7, %r8 };
    cp.async.cg.shared.global [ %r1 + 0 ], [ %rd7 + 0 ], 0x10, %r2;
    @%p1 cp.async.ca.shared.global [ %r1 + 0 ], [ %rd4 + 0 ], 4;
'''
assert accesses(ptx, "ld") == [(0, 64), (1, 128), (0, 128), (1, 128), (0, 32)], accesses(ptx, "ld")
assert accesses(ptx, "st") == [(1, 16), (0, 256)], accesses(ptx, "st")
for read, wrong in (
    (parse_ptxas, ("ptxas info : nothing",)),
    (accesses, (ptx + "ld.global.b32 %r1, [ %rd3 + 0 ];", "ld")),
    (accesses, (ptx + "add.s64 %rd4, %rd4, %rd2;", "ld")),
    (accesses, (ptx + "cp.async.cg.shared.global [ %r1 ], [ %rd3 ], 16;", "ld")),
    (accesses, (ptx + "cp.async.bulk.shared::cta.global [ %r1 ], [ %rd4 ], %r2, [ %r3 ];", "ld")),
):
    try:
        read(*wrong)
    except ValueError:
        pass
    else:
        raise AssertionError(f"{read} made something of {wrong}")

good = Use(255, 0, 0, 0, 0, (2, 2), (1, 1))
assert good.faults(True) == []
for change in (
    {"stack": 8}, {"spill_stores": 4}, {"spill_loads": 4},
    {"loads": (1, 2)}, {"stores": (0, 1)}, {"loads": (0, 0), "stores": (0, 0)},
):
    assert len(replace(good, **change).faults(True)) == 1, change
assert replace(good, loads=(0, 2)).faults(False) == []
"""
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
