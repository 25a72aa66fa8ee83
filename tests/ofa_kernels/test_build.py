"""Building the CPU kernels: a missing or failing compiler leaves a working install that says why."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ofa_kernels import native

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
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("_native.*", "__pycache__"))
        else:
            shutil.copy(source, copy)
    return tmp_path / "tree"


def python(tree, code, compiler=None):
    """What the code prints, run in the tree with nothing on PATH."""
    environment = {key: value for key, value in os.environ.items() if key not in ("CXX", "PYTHONPATH")}
    environment |= {"PATH": "", "PYTHONPATH": str(tree)} | ({"CXX": compiler} if compiler else {})
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tree, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def build(tree, kind, compiler=None):
    """Call the hook that pip calls; the wheel's path."""
    code = f"from setuptools.build_meta import *; print('wheel:', build_{kind}('wheels'))"
    return tree / "wheels" / python(tree, code, compiler).rpartition("wheel: ")[2]


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
