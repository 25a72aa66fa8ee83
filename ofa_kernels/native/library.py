"""The library of the CPU kernels: where it is, how it is loaded, and how its structs are laid out.

The library is built without an OpenMP runtime of its own and takes the one that torch has loaded, so there is
one pool of threads; a second one that spins against torch's would halve the speed of both.
"""

import ctypes
import struct
from functools import cache
from pathlib import Path

import torch

LIBRARY = Path(__file__).parents[1] / "_native.so"
BUILD_LOG = LIBRARY.with_suffix(".log")
OPENMP_RUNTIMES = ("libgomp", "libiomp", "libomp")
DTYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}

# the members of each struct of csrc/include/ofa.h: q an integer or a pointer, d a double, Q the seed
CALLS = {
    "norm_forward": "6q2d7q",
    "norm_backward": "5q2d9q",
    "norm_jvp": "6q2d8q",
    "norm_backward_tangent": "6q2d14q",
    "norm_jvp_backward": "6q2d14q",
    "rademacher": "6qQ3q",
    "preconditioned_probes": "6qQq2d5q",
    "preconditioned_probes_backward": "6qQq2d9q",
    "probe_dot": "5qQ6q",
    "probe_scale": "5qQ4q",
    "step_lengths": "5q4q",
    "step_lengths_backward": "5q6q",
}


@cache
def openmp_runtimes() -> tuple[str, ...]:
    """The files of the OpenMP runtimes in this process, torch's own first; others may have brought theirs."""
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
        # its names become visible to the library, whatever the file is called
        ctypes.CDLL(runtimes[0], mode=ctypes.RTLD_GLOBAL)
        library = ctypes.CDLL(str(LIBRARY))
        operators = {}
        for name, members in CALLS.items():
            function = getattr(library, f"ofa_run_{name}")
            function.argtypes, function.restype = [ctypes.c_char_p], ctypes.c_int
            operators[name] = function, struct.Struct(f"@{members}").pack
        library.ofa_instruction_set.restype = ctypes.c_char_p
    except (OSError, AttributeError) as error:
        return {}, f"does not load: {error}"
    return operators, library.ofa_instruction_set().decode()


def missing() -> str | None:
    """Why the library can't be used, or None."""
    operators, reason = load()
    return None if operators else reason


def instruction_set() -> str:
    """The one in use, or why there is none."""
    return load()[1]


def description() -> str:
    """The instruction set in use, and a warning where a second OpenMP runtime may compete."""
    runtimes = openmp_runtimes()
    several = f"; {len(runtimes)} OpenMP runtimes are loaded: {', '.join(runtimes)}" if runtimes[1:] else ""
    return instruction_set() + several
