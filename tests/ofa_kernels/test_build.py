"""Building the kernels: a missing or failing compiler leaves a working install that says why."""

import ctypes
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ofa_kernels import build_cuda, native

pytest.importorskip("setuptools", minversion="77")

ROOT = Path(__file__).parents[2]
SOURCES = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "csrc", "ofa_kernels", "ofa")
COMPILERS = {
    "none": (None, "no C++ compiler"),
    "failing": ("/bin/false --flag", "$ /bin/false --flag -std=c++17"),
    "not there": ("/nowhere/c++", "/nowhere/c++"),
}


def test_the_library_is_there():
    if native.missing():
        pytest.skip(f"CPU kernels: {native.missing()}")
    assert native.description().split(";")[0] in ("avx512", "avx2", "portable")


@pytest.fixture
def tree(tmp_path):
    """A copy of the sources that was never built."""
    for name in SOURCES:
        source, copy = ROOT / name, tmp_path / "tree" / name
        copy.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(
                source, copy, ignore=shutil.ignore_patterns("_native.*", "_cuda.*", "__pycache__")
            )
        else:
            shutil.copy(source, copy)
    return tmp_path / "tree"


def python(tree, code, compiler=None, **variables):
    """What the code prints, run in the tree with nothing on PATH."""
    taken = ("CXX", "PYTHONPATH", "NVCC", "CUDA_HOME", "OFA_CUDA")
    environment = {key: value for key, value in os.environ.items() if key not in taken}
    environment |= {"PATH": "", "PYTHONPATH": str(tree)} | ({"CXX": compiler} if compiler else {}) | variables
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tree, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def build(tree, kind, compiler=None, **variables):
    """Call the hook that pip calls; the wheel's path."""
    code = f"from setuptools.build_meta import *; print('wheel:', build_{kind}('wheels'))"
    return tree / "wheels" / python(tree, code, compiler, **variables).rpartition("wheel: ")[2]


def stub(tree, fails_if=""):
    """A compiler that writes an empty output, or fails where an argument is as named."""
    path = tree / "compiler"
    path.write_text(
        f'#!/bin/sh\nfor last; do [ "$last" = "{fails_if}" ] && exit 1; done\n: > "$last"\n', encoding="utf-8"
    )
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("compiler", COMPILERS)
def test_an_editable_install_without_a_compiler_works_and_says_why(tree, compiler):
    cxx, message = COMPILERS[compiler]
    build(tree, "editable", cxx)
    log = tree / "ofa_kernels" / "_native.log"
    assert message in log.read_text(encoding="utf-8")
    code = "import torch, ofa_kernels.native; print(ofa_kernels.native.missing()); x = torch.ones(2, 3)"
    reason, shape = python(tree, f"{code}; print(ofa_kernels.rms_norm(x, x[0]).shape)").splitlines()
    assert str(log) in reason
    assert shape == "torch.Size([2, 3])"


def test_a_wheel_without_a_compiler_holds_the_reason(tree):
    with zipfile.ZipFile(build(tree, "wheel")) as wheel:
        assert "no C++ compiler" in wheel.read("ofa_kernels/_native.log").decode()
        assert not [name for name in wheel.namelist() if name.endswith(".so")]


def test_a_wheel_with_a_compiler_holds_the_library(tree):
    with zipfile.ZipFile(build(tree, "wheel", stub(tree))) as wheel:
        assert [name for name in wheel.namelist() if "_native." in name] == ["ofa_kernels/_native.so"]


def test_what_an_earlier_build_left_is_removed(tree):
    in_place = (
        "sys.argv = ['setup.py', 'build_ext', '--inplace']; runpy.run_path('setup.py', None, '__main__')"
    )
    for fails_if, left in (("-c", "log"), ("", "so"), ("-shared", "log"), ("", "so")):
        python(tree, f"import runpy, sys; {in_place}", stub(tree, fails_if))
        assert [path.name for path in tree.glob("ofa_kernels/_native.*")] == [f"_native.{left}"]


def test_the_cuda_library_loads_and_answers_without_a_driver():
    library = build_cuda.ROOT / build_cuda.LIBRARY
    if not library.exists():
        log = library.with_suffix(".log")
        assert not log.exists(), log.read_text(encoding="utf-8")
        pytest.skip("CUDA kernels: not built")
    cuda = ctypes.CDLL(str(library))
    cuda.ofa_cuda_architectures.restype = cuda.ofa_cuda_last_error.restype = ctypes.c_char_p
    assert set(cuda.ofa_cuda_architectures().decode().split()) <= set(build_cuda.ARCHITECTURES)
    # a device that no machine has, so that this is the same where there is a driver
    call, launch = ctypes.create_string_buffer(256), (ctypes.c_int64 * 4)(1000)
    assert cuda.ofa_cuda_run_norm_forward(call, launch) == 4  # OFA_CUDA_ERROR
    assert cuda.ofa_cuda_last_error().decode() not in ("none", "")


NVCC = """#!/bin/sh
for last; do :; done
case "$last" in
    --version) echo "Cuda compilation tools, release VERSION, VVERSION.88" ;;
    --list-gpu-code) for known in KNOWN; do echo "sm_$known"; done ;;
    *) for argument; do [ "$argument" = "FAILS_IF" ] && echo "no such luck" && exit 1; done
       echo "$*" >> calls
       echo "ptxas said this"
       echo made > "$last" ;;
esac
"""


def nvcc(tree, fails_if="", version="13.0", known="75 80 86 90 100 120"):
    """An nvcc that notes its calls and writes its output, or fails where an argument is as named."""
    path = tree / "nvcc"
    text = NVCC.replace("VERSION", version).replace("KNOWN", known).replace("FAILS_IF", fails_if)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def calls(tree):
    """The commands that the stub ran since they were asked for last."""
    path = tree / "calls"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


def build_in(tree, monkeypatch, fails_if="", **of_nvcc):
    """Build the CUDA library of a tree; what failed."""
    monkeypatch.setenv("NVCC", nvcc(tree, fails_if, **of_nvcc))
    monkeypatch.chdir(tree)
    try:
        build_cuda.build(tree / build_cuda.LIBRARY, report=lambda line: None, root=tree)
    except build_cuda.BuildError as error:
        return str(error)
    return None


def in_package(tree):
    """The CUDA library, or what stands in its place."""
    return sorted(path.name for path in (tree / "ofa_kernels").glob("_cuda.*"))


def test_without_nvcc_nothing_is_said_or_left(tree):
    build(tree, "editable", stub(tree))
    assert in_package(tree) == []


def test_with_nvcc_a_wheel_holds_both_libraries(tree):
    with zipfile.ZipFile(build(tree, "wheel", stub(tree), NVCC=nvcc(tree))) as wheel:
        libraries = [name for name in wheel.namelist() if name.endswith((".so", ".log"))]
    assert sorted(libraries) == ["ofa_kernels/_cuda.so", "ofa_kernels/_native.so"]
    assert in_package(tree) == []


def test_nvcc_is_found_by_cuda_home(tree):
    (tree / "cuda" / "bin").mkdir(parents=True)
    shutil.move(nvcc(tree), tree / "cuda" / "bin" / "nvcc")
    build(tree, "editable", stub(tree), CUDA_HOME=str(tree / "cuda"))
    assert in_package(tree) == ["_cuda.so"]


def test_the_environment_leaves_cuda_out(tree):
    (tree / "ofa_kernels" / "_cuda.so").touch()
    build(tree, "editable", stub(tree), NVCC=nvcc(tree), OFA_CUDA="0")
    assert in_package(tree) == [] and calls(tree) == []


@pytest.mark.parametrize("fails_if", ["-c", "-shared"])
def test_a_failing_nvcc_leaves_a_working_install_and_its_words(tree, fails_if):
    (tree / "ofa_kernels" / "_cuda.so").touch()
    build(tree, "editable", stub(tree), NVCC=nvcc(tree, fails_if))
    assert in_package(tree) == ["_cuda.log"]
    log = (tree / "ofa_kernels" / "_cuda.log").read_text(encoding="utf-8")
    assert fails_if in log and "no such luck" in log


def test_only_what_has_changed_is_compiled_again(tree, monkeypatch):
    sources = sorted(path.name for path in (tree / "csrc" / "cuda").glob("*.cu"))

    def compiled():
        assert build_in(tree, monkeypatch) is None and in_package(tree) == ["_cuda.so"]
        commands = [line.split() for line in calls(tree)]
        return sorted(Path(words[words.index("-c") + 1]).name for words in commands if "-c" in words)

    assert len(sources) >= 2
    assert compiled() == sources
    assert compiled() == []
    with (tree / "csrc" / "cuda" / "device.cu").open("a", encoding="utf-8") as file:
        file.write("// more\n")
    assert compiled() == ["device.cu"]
    with (tree / "csrc" / "cuda" / "rows.cuh").open("a", encoding="utf-8") as file:
        file.write("// more\n")
    assert compiled() == sources


def test_what_failed_is_compiled_again(tree, monkeypatch):
    assert "no such luck" in (build_in(tree, monkeypatch, "-c") or "")
    assert build_in(tree, monkeypatch) is None
    assert "ptxas said this" in (tree / "build/cuda/80-90a-100/device.log").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("known", "built", "ptx"),
    [("80 90 100 120", "80 90a 100", "100"), ("75 80 86 90", "80 90a", "90"), ("80", "80", "80")],
)
def test_there_is_code_for_each_card_that_nvcc_knows_and_ptx_for_later_ones(
    tree, monkeypatch, known, built, ptx
):
    assert build_in(tree, monkeypatch, known=known) is None
    line = next(line for line in calls(tree) if "device.cu" in line)
    for name in built.split():
        assert f"arch=compute_{name},code=sm_{name}" in line
    assert f"arch=compute_{ptx},code=compute_{ptx}" in line
    assert line.count("-gencode") == len(built.split()) + 1
    assert f'-DOFA_CUDA_ARCHITECTURES="{built}"' in line


def test_the_build_needs_nothing_but_python():
    """An isolated build has neither PyTorch nor any other package."""
    code = "import runpy, sys; runpy.run_path(sys.argv[1])"
    file = build_cuda.ROOT / "ofa_kernels" / "build_cuda.py"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code, str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_nvcc_that_is_too_old_or_knows_no_card_is_named(tree, monkeypatch):
    assert "CUDA 12 or later is needed" in (build_in(tree, monkeypatch, version="11.8") or "")
    assert "knows none of" in (build_in(tree, monkeypatch, known="70 75") or "")
    assert in_package(tree) == ["_cuda.log"]


def test_the_command_refuses_what_the_kernels_are_not_written_for(capsys):
    with pytest.raises(SystemExit):
        build_cuda.main(["--arch", "75"])
    assert "the kernels are written for 80, 90a, 100" in capsys.readouterr().err


def test_a_tree_without_sources_says_so(tmp_path, monkeypatch):
    assert "build in a checkout" in (build_in(tmp_path, monkeypatch) or "")
