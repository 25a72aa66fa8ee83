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

# the members of each struct of csrc/include/ofa.h, all of 8 bytes, in their order
STRUCTS = {
    "norm_forward": (
        "dtype weight_dtype threads rows columns round_x_hat eps offset x x_stride residual "
        "residual_stride weight y s"
    ),
    "norm_backward": (
        "dtype weight_dtype threads rows columns eps offset x x_stride weight dy dy_stride ds ds_stride dx dw"
    ),
    "norm_jvp": (
        "dtype weight_dtype threads rows columns tangents eps offset x x_stride weight x_dot x_dot_k "
        "x_dot_stride weight_dot y_dot"
    ),
    "norm_backward_tangent": (
        "dtype weight_dtype threads rows columns tangents eps offset x x_stride weight dy dy_stride x_dot "
        "x_dot_k x_dot_stride weight_dot dy_dot dy_dot_k dy_dot_stride dx_dot dw_dot"
    ),
    "norm_jvp_backward": (
        "dtype weight_dtype threads rows columns tangents eps offset x x_stride weight dy dy_k dy_stride "
        "x_dot x_dot_k x_dot_stride weight_dot dx dw dx_dot dw_dot"
    ),
    "rademacher": "dtype threads layers probes examples columns seed layer_ids example_ids signs",
    "preconditioned_probes": (
        "dtype weight_dtype threads probes rows columns seed layer eps offset example_ids z z_stride "
        "weight out"
    ),
    "preconditioned_probes_backward": (
        "dtype weight_dtype threads probes rows columns seed layer eps offset example_ids z z_stride "
        "weight dp dp_k dp_stride dz dw"
    ),
    "probe_dot": "dtype threads probes rows columns seed layer example_ids t t_k t_stride dots",
    "probe_scale": "dtype threads probes rows columns seed layer example_ids scale out",
    "step_lengths": "dtype threads steps examples columns states states_t states_b lengths",
    "step_lengths_backward": (
        "dtype threads steps examples columns states states_t states_b lengths dlengths dstates"
    ),
}
# their types as `struct` has them; every other member is an integer or a pointer, q
TYPES = {"eps": "d", "offset": "d", "seed": "Q"}


def struct_format(members: str) -> str:
    """The native layout of a struct with these members, as `struct` writes it: @, then a letter each."""
    return "@" + "".join(TYPES.get(member, "q") for member in members.split())


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
            operators[name] = function, struct.Struct(struct_format(members)).pack
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
