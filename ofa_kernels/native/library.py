"""The library of the CPU kernels: where it is, and how it is loaded.

The library is built without an OpenMP runtime of its own and takes the one that torch has loaded, so there is
one pool of threads; a second one that spins against torch's would halve the speed of both.
"""

import ctypes
from functools import cache
from pathlib import Path

import torch

from ofa_kernels.structs import STRUCTS, packer

LIBRARY = Path(__file__).parents[1] / "_native.so"
BUILD_LOG = LIBRARY.with_suffix(".log")
OPENMP_RUNTIMES = ("libgomp", "libiomp", "libomp")


@cache
def openmp_runtimes() -> tuple[str, ...]:
    """The files of the OpenMP runtimes in this process, torch's first; other packages may bring one too."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return ()
    files = {line.split(maxsplit=5)[5] for line in lines if line.count("/")}
    found = (f for f in files if Path(f).name.startswith(OPENMP_RUNTIMES))
    own = str(Path(torch.__file__).parent)
    return tuple(sorted(found, key=lambda f: (not f.startswith(own), f)))


@cache
def load() -> tuple[dict, str]:
    """The library's operators and its instruction set, or none and why."""
    if not LIBRARY.exists():
        if BUILD_LOG.exists():
            return {}, f"not built; the compiler's message is in {BUILD_LOG}"
        return {}, "not built; run `pip install -e .` with a C++17 compiler on PATH"
    runtimes = openmp_runtimes()
    if not runtimes:
        return {}, "torch has loaded no OpenMP runtime whose threads it could share"
    try:
        # RTLD_GLOBAL makes the runtime's names visible to the library, whatever the runtime's file is called
        ctypes.CDLL(runtimes[0], mode=ctypes.RTLD_GLOBAL)
        library = ctypes.CDLL(str(LIBRARY))
        operators = {}
        for name, members in STRUCTS.items():
            function = getattr(library, f"ofa_run_{name}")
            function.argtypes, function.restype = [ctypes.c_char_p], ctypes.c_int
            operators[name] = function, packer(members)
        library.ofa_instruction_set.restype = ctypes.c_char_p
    except (OSError, AttributeError) as error:
        return {}, f"does not load: {error}"
    return operators, library.ofa_instruction_set().decode()


def missing() -> str | None:
    """Why the library can't be used, or None."""
    operators, reason = load()
    return None if operators else reason


def instruction_set() -> str:
    """The instruction set in use, or why the library can't be used."""
    return load()[1]


def description() -> str:
    """The instruction set in use, and a warning where a second OpenMP runtime may compete."""
    runtimes = openmp_runtimes()
    several = f"; {len(runtimes)} OpenMP runtimes are loaded: {', '.join(runtimes)}" if runtimes[1:] else ""
    return instruction_set() + several
