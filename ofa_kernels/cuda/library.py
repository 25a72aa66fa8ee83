"""The library of the CUDA kernels: where it is, how it is loaded, and what it needs of the machine.

A library whose architectures are "emulated" runs the same kernels on the CPU, for tests: its pointers are
those of the host's memory, and there is one device, number 0, without streams.
"""

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import torch

from ofa_kernels.structs import DTYPES, STRUCTS, packer

ENVIRONMENT_VARIABLE = "OFA_CUDA_LIBRARY"
LIBRARY = Path(__file__).parents[1] / "_cuda.so"
BUILD_LOG = LIBRARY.with_suffix(".log")
EMULATED = "emulated"
OLDEST = (8, 0)  # cp.async came with it

# the struct that says where and when an operator runs
LAUNCH = "device stream workspace seed_pointer"
# the members on which an operator's scratch memory depends: sizes and types by value, pointers by being there
SIZES = {"dtype", "weight_dtype", "rows", "columns", "tangents", "layers", "probes", "examples", "steps"}
OPTIONAL = {"residual", "rstd", "ds", "dx", "dw", "x_dot", "weight_dot", "dy_dot", "dw_dot"}


class Operator(NamedTuple):
    """One operator of the library.

    Args:
        launch: Queues it; takes the bytes of its struct and of the launch's, returns an error's number.
        workspace: The bytes of scratch memory that it needs; takes its struct's bytes and a device's number.
        pack: Makes its struct's bytes.
        sizes: Takes of the members' values those that `workspace` depends on.
        optional: Takes of the members' values the pointers that `workspace` asks whether they are null.
        known: What `workspace` has answered.
    """

    launch: Callable[[bytes, bytes], int]
    workspace: Callable[[bytes, int], int]
    pack: Callable[..., bytes]
    sizes: Callable[[tuple], tuple]
    optional: Callable[[tuple], tuple]
    known: dict[tuple, int]


@dataclass(frozen=True)
class Library:
    """The loaded library.

    Args:
        operators: By their names in `structs.STRUCTS`.
        architectures: What there is machine code for, such as "80 90a 100".
        last_error: How CUDA explains the thread's last error.
        emulated: Whether its kernels run on the CPU.
    """

    operators: dict[str, Operator]
    architectures: str
    last_error: Callable[[], bytes]
    emulated: bool


def path() -> Path:
    """The library's file."""
    return Path(os.environ.get(ENVIRONMENT_VARIABLE) or LIBRARY)


def _taker(members: list[str], wanted: set[str]) -> Callable[[tuple], tuple]:
    places = [i for i, member in enumerate(members) if member in wanted]
    if len(places) > 1:
        return itemgetter(*places)
    return lambda values: tuple(values[i] for i in places)


def _operator(library: ctypes.CDLL, name: str) -> Operator:
    launch = getattr(library, f"ofa_cuda_run_{name}")
    launch.argtypes, launch.restype = [ctypes.c_char_p, ctypes.c_char_p], ctypes.c_int
    workspace = getattr(library, f"ofa_cuda_workspace_{name}")
    workspace.argtypes, workspace.restype = [ctypes.c_char_p, ctypes.c_int64], ctypes.c_int64
    members = STRUCTS[name].split()
    sizes, optional = _taker(members, SIZES), _taker(members, OPTIONAL)
    return Operator(launch, workspace, packer(STRUCTS[name]), sizes, optional, {})


@cache
def load() -> Library | str:
    """The library, or why it can't be used."""
    file = path()
    if not file.exists():
        if file == LIBRARY and BUILD_LOG.exists():
            return f"not built; the compiler's message is in {BUILD_LOG}"
        if file == LIBRARY:
            return "not built; run `python -m ofa_kernels.build_cuda` with nvcc on PATH"
        return f"{ENVIRONMENT_VARIABLE}={file} is no file"
    try:
        # CDLL lets go of the interpreter's lock: a launch waits where the device's queue is full, and the
        # first one loads the kernels. PyDLL would save a twentieth of a microsecond, and stop all threads
        library = ctypes.CDLL(str(file))
        operators = {name: _operator(library, name) for name in STRUCTS}
        library.ofa_cuda_architectures.restype = library.ofa_cuda_last_error.restype = ctypes.c_char_p
        architectures = library.ofa_cuda_architectures().decode()
    except (OSError, AttributeError) as error:
        return f"does not load: {error}"
    found = Library(operators, architectures, library.ofa_cuda_last_error, architectures == EMULATED)
    if found.emulated:
        return found
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    # torch may bring an older runtime, which works with a driver that is too old for the library's own
    probe = operators["step_lengths"]
    if probe.workspace(probe.pack(DTYPES[torch.float32], 0, 1, 1, 1, 0, 0, 0, 0), 0) < 0:
        return f"CUDA refuses it: {found.last_error().decode(errors='replace')}"
    return found


@cache
def capability(device: int) -> tuple[int, int]:
    """A device's compute capability; of the emulated one, that of an H100."""
    library = load()
    if isinstance(library, Library) and library.emulated:
        return 9, 0
    return torch.cuda.get_device_capability(device)


def missing() -> str | None:
    """Why the library can't be used on any device, or None."""
    library = load()
    return library if isinstance(library, str) else None


def refuses(device: int) -> str | None:
    """Why the library can't be used on a device, or None."""
    reason = missing()
    if reason is None and capability(device) < OLDEST:
        major, minor = capability(device)
        return f"the device has compute capability {major}.{minor}; the CUDA kernels need 8.0"
    return reason


def description() -> str:
    """The architectures that there is machine code for, or why the library can't be used."""
    library = load()
    if isinstance(library, str):
        return library
    return "emulated on the CPU" if library.emulated else f"built for {library.architectures}"
