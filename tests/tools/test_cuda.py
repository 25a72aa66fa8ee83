"""The gate over the CUDA kernels' machine code passes, and fails on what it is there for."""

import re
import shutil
from dataclasses import replace

import pytest

from ofa_kernels import build_cuda
from tools import cuda
from tools.cuda import CLAIMS, FEATURES, ROOT, Row, Use

LOG = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN3ofa7forwardIfEEvv' for 'sm_80'
ptxas info    : Function properties for _ZN3ofa7forwardIfEEvv
    8 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 80 registers, used 1 barriers, 496 bytes cmem[0]
ptxas info    : Compiling entry function '_ZN3ofa7forwardIfEEvv' for 'sm_90a'
ptxas info    : Function properties for _ZN3ofa7forwardIfEEvv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 88 registers, used 1 barriers
"""
SASS = """
Fatbin elf code:
arch = sm_80
	code for sm_80
		Function : _ZN3ofa7forwardIfEEvv
        /*0010*/   @!P0 LDG.E.128.CONSTANT R4, desc[UR8][R2.64] ;
        /*0020*/   LDG.E.64 R4, [R2.64] ;
        /*0030*/   LDGSTS.E.BYPASS.128.ZFILL [R7], [R2.64], P1 ;
        /*0040*/   STG.E.128 [R2.64], R4 ;
        /*0050*/   STG.E.U16 [R2.64], R4 ;
Fatbin elf code:
arch = sm_90a
	code for sm_90a
		Function : _ZN3ofa7forwardIfEEvv
        /*0010*/   LDG.E.128 R4, desc[UR8][R2.64] ;
        /*0020*/   UCGABAR_ARV ;
        /*0030*/   UCGABAR_WAIT ;
        /*0034*/   STAS.64 [R10.64], R12 ;
        /*0038*/   STAS.64 [R20.64], R22 ;
        /*0040*/   ACQBULK ;
        /*0050*/   MEMBAR.ALL.GPU ;
        /*0060*/   MEMBAR.ALL.CTA ;
		Function : _ZN3ofa7forwardIdEEvv
        /*0010*/   EXIT ;
"""
GOOD = Use(128, 0, 0, dict.fromkeys(FEATURES, 1))


def committed():
    """The cells of the committed table's lines."""
    lines = cuda.TABLE.read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    assert rows[0] == cuda.header(build_cuda.ARCHITECTURES)
    return [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]


def test_every_kernel_of_the_sources_is_claimed_and_in_the_committed_table():
    by_file = cuda.declared(ROOT / "csrc")
    declared = {f"{stem}.{kernel}" for stem, kernels in by_file.items() for kernel in kernels}
    assert len(declared) >= 13
    assert declared == set(CLAIMS)
    assert {row["kernel"] for row in committed()} == declared
    text = "".join(path.read_text("utf-8") for path in (ROOT / "csrc" / "cuda").glob("*.cu*"))
    assert len(re.findall("__global__", text)) == len(declared)


def test_the_committed_table_passes():
    for row in committed():
        assert (row["spill and stack bytes"], row["verdict"]) == ("0", "pass"), row
        assert all(0 < int(row[f"registers sm_{a}"]) <= 255 for a in build_cuda.ARCHITECTURES)


def test_ptxas_log_and_machine_code_are_read():
    assert cuda.parse_log(LOG) == {
        ("80", "_ZN3ofa7forwardIfEEvv"): dict(registers=80, stack=8, spill_stores=12, spill_loads=16),
        ("90a", "_ZN3ofa7forwardIfEEvv"): dict(registers=88, stack=0, spill_stores=0, spill_loads=0),
    }
    counts = {key: list(of.values()) for key, of in cuda.parse_sass(SASS).items()}
    assert counts == {
        ("80", "_ZN3ofa7forwardIfEEvv"): [1, 1, 1, 0, 0, 0, 0],
        ("90a", "_ZN3ofa7forwardIfEEvv"): [1, 0, 0, 1, 2, 1, 1],
        ("90a", "_ZN3ofa7forwardIdEEvv"): [0, 0, 0, 0, 0, 0, 0],
    }
    with pytest.raises(ValueError, match="nothing about registers"):
        cuda.parse_log("Compiling entry function '_Z1a' for 'sm_80'\nptxas info: nothing")


def test_a_name_has_the_file_that_declares_it():
    names = {"rms_norm": {"backward"}, "probes": {"backward"}, "row_sums": {"add_up_teams"}}
    for kernel, source, full in (
        ("backward", "probes", "probes.backward"),
        ("backward", "rms_norm", "rms_norm.backward"),
        ("add_up_teams", "probes", "row_sums.add_up_teams"),
        ("unheard_of", "probes", "probes.unheard_of"),
    ):
        assert cuda.full_name(kernel, source, names) == full


def test_names_are_kernels_of_ours():
    if not shutil.which("c++filt"):
        pytest.skip("no c++filt")
    tangents = "_ZN3ofa16backward_tangentINS_8bfloat16EEEv25ofa_norm_backward_tangentPNSt11conditionalI"
    tangents += "Lb0EdfE4typeE"
    names = {"_ZN3ofa3jvpIdEEv12ofa_norm_jvp": ("jvp", "double"), tangents: ("backward_tangent", "bfloat16")}
    assert cuda.demangled(names) == names
    with pytest.raises(ValueError, match="no kernel of the namespace"):
        cuda.demangled(["_Z5otherf"])


@pytest.mark.parametrize("kernel", CLAIMS)
def test_each_number_can_fail_a_build(kernel):
    assert GOOD.faults(kernel, "90a") == []
    assert replace(GOOD, stack=8).faults(kernel, "90a") == ["8 bytes of stack"]
    assert replace(GOOD, spills=4).faults(kernel, "80") == ["4 bytes of spills"]
    for name in CLAIMS[kernel]:
        without = replace(GOOD, counts=GOOD.counts | {name: 0})
        assert without.faults(kernel, "100") == [f"no {name}"]
        assert without.faults(kernel, "80") == ([f"no {name}"] if FEATURES[name][1] == 80 else [])


def test_a_kernel_that_claims_nothing_or_was_not_compiled_fails():
    assert GOOD.faults("unheard_of", "80") == ["not in CLAIMS"]
    rows = [Row(kernel, "float", {"80": GOOD}) for kernel in CLAIMS]
    assert cuda.judge(rows, ROOT / "csrc") == []
    (missing,) = cuda.judge(rows[1:], ROOT / "csrc")
    assert missing == f"{rows[0].kernel}: declared, and not in the machine code"


def test_without_nvcc_it_is_skipped(monkeypatch, capsys):
    for name in ("NVCC", "CUDA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "")
    assert cuda.main([]) == 0
    assert "skipped: no nvcc" in capsys.readouterr().out


def test_a_failing_nvcc_fails(monkeypatch, capsys):
    monkeypatch.setenv("NVCC", "/bin/false")
    assert cuda.main([]) == 1
    assert "FAIL $ /bin/false --version" in capsys.readouterr().out


def test_real_machine_code_is_judged(tmp_path):
    """A kernel that has what it claims, one that spills, and one that nobody knows."""
    try:
        compiler = build_cuda.find_compiler()
    except build_cuda.NoCompilerError as error:
        pytest.skip(str(error))
    csrc = tmp_path / "csrc" / "cuda"
    csrc.mkdir(parents=True)
    (csrc / "row_sums.cuh").write_text("""
namespace ofa {
template <class T>
__global__ void add_up_teams(T* x) {
    asm volatile("griddepcontrol.wait;" ::: "memory");
    x[threadIdx.x] = 1;
}
}
""")
    (csrc / "rms_norm_tangent.cu").write_text("""
#include "row_sums.cuh"
namespace ofa {
__global__ void __launch_bounds__(128) jvp(uint4* x, int i) {
    int own[64];
    for (int j = 0; j < 64; ++j) own[j * i & 63] = x[j].x;
    x[threadIdx.x] = {unsigned(own[i]), 0, 0, 0};
}
__global__ void unheard_of(float* x) { x[0] = 1; }
void use(float* x) { add_up_teams<<<1, 1>>>(x); }
}
""")
    objects = build_cuda.compile_all(compiler, ("90a",), lambda line: None, tmp_path)
    rows = {(row.kernel, row.variant): row for row in cuda.read(objects)}
    assert rows.pop(("row_sums.add_up_teams", "float")).faults() == []
    assert rows.pop(("rms_norm_tangent.unheard_of", "")).faults() == ["sm_90a: not in CLAIMS"]
    ((key, jvp),) = rows.items()
    assert key == ("rms_norm_tangent.jvp", "")
    use = jvp.uses["90a"]
    assert use.stack >= 256 and use.counts["128-bit stores"]
    missing = ["no 128-bit loads", "no 128-bit copies", "no cluster barriers", "no deliveries"]
    assert use.faults(jvp.kernel, "90a") == [f"{use.stack} bytes of stack", *missing]
    assert build_cuda.compile_all(compiler, ("90a",), pytest.fail, tmp_path) == objects


def test_a_committed_table_that_is_not_what_nvcc_gives_fails(tmp_path, monkeypatch, capsys):
    """But one by another nvcc says nothing of this one's machine code."""
    architectures = build_cuda.ARCHITECTURES
    compiler = build_cuda.Compiler(["nvcc"], "13.0.88", frozenset(a.rstrip("a") for a in architectures))
    rows = [Row(kernel, "float", dict.fromkeys(architectures, GOOD)) for kernel in CLAIMS]
    table = tmp_path / "cuda.md"
    monkeypatch.setattr(cuda, "TABLE", table)
    monkeypatch.setattr(cuda, "read", lambda objects: rows)
    monkeypatch.setattr(build_cuda, "find_compiler", lambda: compiler)
    monkeypatch.setattr(build_cuda, "compile_all", lambda *of: [])
    assert cuda.main(["--write", str(table)]) == 0
    assert cuda.main([]) == 0
    text = table.read_text("utf-8")
    table.write_text(text.replace("| 128 |", "| 127 |", 1), "utf-8")
    assert cuda.main([]) == 1
    assert "FAIL tools/cuda.md is not what these sources give" in capsys.readouterr().out
    assert cuda.main(["--arch", "80"]) == 0
    table.write_text(text.replace("13.0.88", "12.9.86").replace("| 128 |", "| 127 |"), "utf-8")
    assert cuda.main([]) == 0
