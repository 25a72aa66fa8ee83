"""The emulated library is built where it can be, and only what changed."""

import shutil

import pytest

from tools import emulation


@pytest.fixture
def sources(tmp_path):
    """A copy with one small kernel."""
    for folder in emulation.FOLDERS:
        shutil.copytree(emulation.CSRC / folder, tmp_path / folder)
    for file in (tmp_path / "cuda").glob("*.cu"):
        file.unlink()
    (tmp_path / "cuda" / "one.cu").write_text('#include "rows.cuh"\n\nextern "C" int one() { return 1; }\n')
    return tmp_path


@pytest.mark.usefixtures("library")  # a compiler is there
def test_built_once_for_each_text(sources, monkeypatch):
    monkeypatch.setattr(emulation, "BUILD", sources / "build")
    first = emulation.library(sources)
    written = first.stat().st_mtime_ns
    header, kernel = sources / "cuda" / "rows.cuh", sources / "cuda" / "one.cu"
    header.write_text(header.read_text(encoding="utf-8") + "// a comment\n", encoding="utf-8")
    assert emulation.library(sources) == first
    assert first.stat().st_mtime_ns == written

    objects = set((sources / "build" / "objects").iterdir())
    kernel.write_text(kernel.read_text().replace("return 1", "return 2"))
    assert emulation.library(sources) != first
    assert len(set((sources / "build" / "objects").iterdir()) - objects) == 1


@pytest.mark.usefixtures("library")
def test_what_does_not_compile_leaves_nothing(sources, monkeypatch):
    monkeypatch.setattr(emulation, "BUILD", sources / "build")
    (sources / "cuda" / "one.cu").write_text("int one() { return two; }\n")
    with pytest.raises(RuntimeError, match="two") as caught:
        emulation.library(sources)
    assert caught.type is RuntimeError  # tests are skipped where there is no compiler, and not here
    assert not list((sources / "build").rglob("*.so"))


def test_no_compiler_says_what_to_do(monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/g++")
    with pytest.raises(emulation.UnavailableError, match="name such a compiler in CXX"):
        emulation.library()
