"""Kernels compiled ahead: only for the same Triton, and found again."""

import json
import os
import subprocess
import sys
import tarfile

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from benchmarks.gpu import cache
from benchmarks.gpu.runner import ROOT


@pytest.fixture
def packed(tmp_path):
    kernels = tmp_path / "cache" / "HASH"
    kernels.mkdir(parents=True)
    for name in ("norm.cubin", "norm.json", "__grp__norm.json", "norm.ptx", "norm.ttir"):
        (kernels / name).write_text(name)
    archive = tmp_path / "gpu-cache.tar.xz"
    cache.pack(tmp_path / "cache", archive, 1)
    return archive


def test_what_the_driver_needs_is_unpacked(packed, tmp_path):
    assert cache.unpack(packed, tmp_path / "again") == "1 kernels unpacked, packed with this Triton"
    found = {path.name for path in (tmp_path / "again" / "HASH").iterdir()}
    assert found == {"norm.cubin", "norm.json", "__grp__norm.json"}


def test_another_tritons_kernels_are_not_used(packed, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "triton_key", lambda: "another")
    assert "not used: packed with another Triton" in cache.unpack(packed, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_an_absent_archive_is_no_error(tmp_path):
    assert "none packed" in cache.unpack(tmp_path / "none.tar.xz", tmp_path)


def test_a_recorded_launch_is_compiled_and_found_again(tmp_path):
    """In a process of its own, since here Triton interprets."""
    launch = {
        "module": "ofa_kernels.triton.rms_norm",
        "kernel": "sum_partials",
        "args": [{"tensor": "float32", "aligned": True}] * 2 + [16, 16],
        "options": {"BLOCK_P": 32, "BLOCK_N": 64, "UNIT": 8, "num_warps": 4},
    }
    code = (
        "from benchmarks.gpu import cache\n"
        f"cache._begin({str(tmp_path)!r})\n"
        f"line = {json.dumps(launch)!r}\n"
        "first = cache.compile_line(line)\n"
        "import importlib; kernel = importlib.import_module('ofa_kernels.triton.rms_norm').sum_partials\n"
        "kernel.device_caches.clear()\n"
        "print(first, cache.compile_line(line))"
    )
    variables = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=variables, capture_output=True, text=True
    )
    assert done.stdout.split() == ["False", "True"], done.stderr
    assert list(tmp_path.rglob("*.cubin")) and not list(tmp_path.rglob("*.ptx"))


def test_the_manifest_says_what_it_was_packed_with(packed):
    with tarfile.open(packed) as archive:
        about = json.load(archive.extractfile(cache.MANIFEST))
    assert about["key"] == cache.triton_key()
    assert about["python"] == f"{sys.version_info.major}.{sys.version_info.minor}"
