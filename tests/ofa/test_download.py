import hashlib
import subprocess
from pathlib import Path

import pytest

from ofa import download
from ofa.download import SourceError, cache_dir, check_sha256, pip_download, sha256


def fake_pip(monkeypatch, returncode=0, stderr="", file=None):
    seen = []

    def run(command, **_):
        seen.append((command, Path(command[command.index("-r") + 1]).read_text()))
        if file:
            Path(command[command.index("--dest") + 1], file).write_text("content")
        return subprocess.CompletedProcess(command, returncode, stdout="", stderr=stderr)

    monkeypatch.setattr(download.subprocess, "run", run)
    return seen


def test_the_file_is_there_inside_and_gone_after(monkeypatch):
    seen = fake_pip(monkeypatch, file="a.zip")
    with pip_download("a==1 --hash=sha256:00", "--no-binary", ":all:") as path:
        assert path.name == "a.zip" and path.read_text() == "content"
    assert not path.exists()
    command, requirements = seen[0]
    assert requirements == "a==1 --hash=sha256:00" and "--no-deps" in command and "--no-binary" in command


def test_pips_reason_is_told(monkeypatch):
    fake_pip(monkeypatch, 1, "WARNING: a\nERROR: No matching distribution\nWARNING: b")
    with (
        pytest.raises(SourceError, match="could not download a==1: ERROR: No matching distribution"),
        pip_download("a==1"),
    ):
        pass


def test_success_without_a_file_is_no_success(monkeypatch):
    fake_pip(monkeypatch)
    with pytest.raises(SourceError, match="could not download a==1: no output"), pip_download("a==1"):
        pass


def test_checksums(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"abc" * 10**6)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert sha256(path) == digest
    check_sha256("f", digest, digest)
    with pytest.raises(SourceError, match=r"f has SHA-256 .* damaged"):
        check_sha256("f", digest, "0" * 64)


def test_where_the_cache_is(monkeypatch, tmp_path):
    for name in ("OFA_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache_dir() == Path.home() / ".cache" / "ofa"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "ofa"
    monkeypatch.setenv("OFA_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"
