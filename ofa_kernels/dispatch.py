"""Which backend serves a tensor, and why not the others."""

import importlib.util
import os
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from ofa_kernels import cuda, formulas, native
from ofa_kernels.boundary import KERNEL_DTYPES, at_call

ENVIRONMENT_VARIABLE = "OFA_BACKEND"
BACKENDS = ("cuda", "triton", "native", "reference")
OPERATORS = ("rms_norm", "add_rms_norm", "rademacher", "preconditioned_probes", "probe_dot", "step_ratio")
COMPOSED = ("hutchinson_trace", "layer_norm")


def _cuda_refuses(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the CUDA kernels can't serve such a tensor, or None."""
    library = cuda.load()
    if isinstance(library, str):
        return library
    if library.emulated:
        # a tensor that says it is on a GPU where there is none is a test's, in the host's memory
        if device.type == "cuda" and torch.cuda.is_available():
            return f"the tensor is on {device}; the library is emulated, for tests"
    elif device.type != "cuda":
        return f"the tensor is on {device.type}; the CUDA kernels need a GPU"
    elif reason := cuda.refuses(device.index or 0):
        return reason
    return None if dtype in KERNEL_DTYPES else f"no kernel for {dtype}"


@cache
def _interpreting() -> bool:
    from triton import knobs

    return bool(knobs.runtime.interpret)


@cache
def _triton_missing() -> str | None:
    """Why Triton can't be imported, or None."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed (it exists for Linux only)"
    try:
        import ofa_kernels.triton.launch  # noqa: F401
    except Exception as error:  # a broken install may raise anything
        return f"triton does not import: {type(error).__name__}: {error}"
    return None


def _triton_refuses(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why Triton can't serve such a tensor, or None."""
    if reason := _triton_missing():
        return reason
    if device.type != "cuda" and not _interpreting():
        return f"the tensor is on {device.type}; Triton needs a GPU (or TRITON_INTERPRET=1, for tests)"
    return None if dtype in KERNEL_DTYPES else f"no kernel for {dtype}"


def _native_refuses(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the C++ kernels can't serve such a tensor, or None."""
    if reason := native.missing():
        return reason
    if device.type != "cpu":
        return f"the tensor is on {device.type}; the C++ kernels work on CPU tensors"
    return None if dtype in KERNEL_DTYPES else f"no kernel for {dtype}"


# os.environ.get raises and catches a KeyError where there is nothing, which takes as long as a small norm
_VARIABLES = getattr(os.environ, "_data", None)
_KEY = os.environ.encodekey(ENVIRONMENT_VARIABLE)


def _forced() -> str | None:
    if _VARIABLES is not None and _KEY not in _VARIABLES:
        return None
    name = os.environ.get(ENVIRONMENT_VARIABLE) or None
    if name is not None and name not in BACKENDS:
        raise ValueError(
            f"{ENVIRONMENT_VARIABLE}={name!r} is unknown; use {', '.join(BACKENDS)}, or unset it"
        )
    return name


_REFUSES = {"cuda": _cuda_refuses, "triton": _triton_refuses, "native": _native_refuses}
_ON_GPU, _ON_CPU = ("cuda", "triton"), ("native",)


def backend_for(x: Tensor) -> str:
    """The backend that serves x: the forced one, else the best that runs.

    Under `torch.compile` it is always the reference, which Inductor fuses.

    Raises:
        ValueError: `OFA_BACKEND` names no backend.
        RuntimeError: the forced backend can't serve x.
    """
    return "reference" if torch.compiler.is_compiling() else _choice(x)[0]


def _choice(x: Tensor) -> tuple[str, ModuleType]:
    """The backend that serves x, and its functions."""
    forced = _forced()
    if forced is None:
        return _best(x.device, x.dtype)
    if forced in _REFUSES and (reason := _REFUSES[forced](x.device, x.dtype)):
        raise RuntimeError(
            f"{ENVIRONMENT_VARIABLE}={forced} can't run here: {reason}; unset it to use what can"
        )
    return forced, _module_of(forced)


@cache
def _best(device: torch.device, dtype: torch.dtype) -> tuple[str, ModuleType]:
    """The backend that serves such a tensor where none is forced, and its functions."""
    for backend in _ON_GPU if device.type == "cuda" else _ON_CPU:
        if _REFUSES[backend](device, dtype) is None:
            # Triton takes what it does as well as the CUDA kernels
            shared = backend == "cuda" and _triton_missing() is None
            return backend, cuda if shared else _module_of(backend)
    return "reference", formulas


def look_again() -> None:
    """Forget which library of CUDA kernels there is, and what was chosen: the environment has changed."""
    for found in (cuda.load, cuda.capability, _best):
        found.cache_clear()


@cache
def _module_of(backend: str) -> ModuleType:
    if backend == "triton":
        from ofa_kernels.triton import launch

        return launch
    return {"cuda": cuda.calls, "native": native, "reference": formulas}[backend]


def _served(kernels: ModuleType, index: Tensor | None) -> ModuleType:
    return kernels if index is None or getattr(kernels, "TAKES_INDEX", False) else formulas


def kernels_of(x: Tensor, index: Tensor | None = None) -> ModuleType:
    """The functions that serve memory on x's device, whoever watches: a backend's, else the formulas."""
    return _served(_choice(x)[1], index)


def kernels_for(*tensors: Tensor, index: Tensor | None = None) -> ModuleType | None:
    """What serves a call with tensors on one device, or None where PyTorch composes all of it.

    That is a backend's module; the registered operators where the call is recorded or faked; and composition
    for subclasses of Tensor (distributed, …) and for all that has no memory of its own.
    """
    if torch.compiler.is_compiling():
        return None
    kernels = _choice(tensors[0])[1]
    if index is None:
        return at_call(kernels, tensors)
    return at_call(_served(kernels, index), (*tensors, index))


@dataclass(frozen=True)
class BackendReport:
    """What `backend_report` found: rows of (operator, backend, state); `str()` is a table."""

    rows: tuple[tuple[str, str, str], ...]

    def by_backend(self) -> list[tuple[str, str, str]]:
        """(backend, state, operators) with the operators that share both in one row."""
        grouped: dict[tuple[str, str], list[str]] = {}
        for operator, backend, state in self.rows:
            grouped.setdefault((backend, state), []).append(operator)
        return [(*key, ", ".join(operators)) for key, operators in grouped.items()]

    def __str__(self) -> str:
        table = [("backend", "state", "operators"), *self.by_backend()]
        widths = [max(len(row[i]) for row in table) for i in range(2)]
        return "\n".join(f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}" for a, b, c in table)


def backend_report() -> BackendReport:
    """Which backend serves what on this machine, and why not the others.

    Returns:
        A report whose `.rows` are (operator, backend, state) and whose `str()` is a table.

    Raises:
        ValueError: `OFA_BACKEND` names no backend.
    """
    forced = _forced()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sample = torch.device(device, 0) if device == "cuda" else torch.device(device), torch.float32
    best, kernels = _best(*sample)
    chosen = forced or best
    shared = not forced and kernels is cuda

    def state(backend: str) -> str:
        reason = _REFUSES[backend](*sample) if backend in _REFUSES else None
        if backend == chosen:
            how = f"forced by {ENVIRONMENT_VARIABLE}" if forced else "chosen"
            if reason:
                return f"{how}, but can't run: {reason}"
            detail = f", {_DESCRIBES[backend]()}" if backend in _DESCRIBES else ""
            share = f": {cuda.SHARE}" if shared else ""
            return f"serves {device} tensors ({how}{detail}){share}"
        if reason:
            return reason
        if forced:
            return f"not used: {ENVIRONMENT_VARIABLE}={forced}"
        if backend == "triton" and shared:
            return f"serves {device} tensors: what the CUDA kernels leave, and rows too long for them"
        if backend in _INTERPRETED and device == "cpu":
            return f"{_INTERPRETED[backend]}, for tests: used only where {ENVIRONMENT_VARIABLE}={backend}"
        return "fallback: what the kernels don't take, and everything under torch.compile"

    rows = [(name, backend, state(backend)) for name in OPERATORS for backend in BACKENDS]
    rows += [(name, "PyTorch", "composed of the operators above and PyTorch") for name in COMPOSED]
    return BackendReport(tuple(rows))


_DESCRIBES = {"cuda": cuda.description, "native": native.description}
_INTERPRETED = {"cuda": "emulated on the CPU", "triton": "interpreted on the CPU"}
