"""Builds the CUDA kernels of `csrc/cuda` for a CPU, on the emulation of CUDA in `csrc/emulation`.

    python -m tools.emulation                       # the library's path, built if it wasn't

The library has the C interface of `csrc/include/ofa_cuda.h`; its pointers are the host's. What was compiled
is kept in build/emulation under the hash of its preprocessed text, the compiler and the flags, so that a
change costs the files alone that it reaches.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from filelock import FileLock

from tools.sanitize import ROOT, load_setup

CSRC = ROOT / "csrc"
BUILD = ROOT / "build" / "emulation"
NAME = "libofa_emulated.so"
# no contraction: where the sources ask the device to round a product on its own, a CPU must do so too
FLAGS = ["-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-fvisibility=hidden"]
# what a kernel forgets to set is to be seen
FLAGS += ["-ftrivial-auto-var-init=pattern"]
FOLDERS = ("include", "cuda", "emulation")


class UnavailableError(RuntimeError):
    """The library can't be built here: what is missing."""


def library(sources: Path = CSRC, kernels: Iterable[Path] | None = None) -> Path:
    """Build the emulated library, unless it is there.

    Processes may call it at the same time: one builds, the others wait.

    Args:
        sources: A folder like `csrc`; a changed copy of it makes a library of its own.
        kernels: The .cu files that are to be in it; default: all of `sources` / "cuda". Its device.cu, which
            talks to CUDA's runtime, never is: the emulation has its own.

    Returns:
        The shared library's path.

    Raises:
        UnavailableError: there is no C++ compiler that knows the flags.
        RuntimeError: the sources don't compile; the message is the compiler's.
    """
    try:
        compiler = load_setup().compiler()
        version = _run([*compiler, "--version"])
        _run([*compiler, *FLAGS, "-x", "c++", "-E", os.devnull])
    except (RuntimeError, OSError) as error:
        advice = "install g++ 12 or newer, or clang++, or name such a compiler in CXX"
        raise UnavailableError(f"no compiler for the emulated CUDA kernels: {error}; {advice}") from error
    command = [*compiler, *FLAGS, *(f"-I{sources / folder}" for folder in FOLDERS), "-x", "c++"]
    files = sorted((sources / "cuda").glob("*.cu")) if kernels is None else sorted(kernels)
    files = [file for file in files if file.name != "device.cu"]
    files += sorted((sources / "emulation").glob("*.cpp"))
    common = repr((compiler, version, FLAGS))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        texts = pool.map(lambda file: _run([*command, "-E", "-P", str(file)]), files)
        hashes = [hashlib.sha256((common + text).encode()).hexdigest()[:20] for text in texts]
        built = BUILD / hashlib.sha256("".join(hashes).encode()).hexdigest()[:20] / NAME
        if built.exists():
            return built
        built.parent.mkdir(parents=True, exist_ok=True)
        objects = [BUILD / "objects" / f"{name}.o" for name in hashes]
        objects[0].parent.mkdir(exist_ok=True)
        with FileLock(built.with_suffix(".lock")):
            if not built.exists():
                list(pool.map(lambda file, to: _compile([*command, "-c", str(file)], to), files, objects))
                _write([*compiler, "-shared", *map(str, objects)], built)
    return built


def _compile(command: list[str], target: Path) -> None:
    """Compile one file, unless its object is there."""
    if not target.exists():
        _write(command, target)


def _write(command: list[str], target: Path) -> None:
    """Run a compiler whose output appears whole or not at all."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        unfinished = Path(folder) / target.name
        _run([*command, "-o", str(unfinished)])
        unfinished.replace(target)


def _run(command: list[str]) -> str:
    """What a compiler prints; its message is the error's."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"$ {' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    try:
        print(library())
    except RuntimeError as error:
        sys.exit(str(error))
