"""Which backend serves a tensor, and why not the others."""

import importlib.util
import os
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

ENVIRONMENT_VARIABLE = "OFA_BACKEND"
KERNELS = {"rms_norm": ("triton", "reference"), "rademacher": ("triton", "reference")}
COMPOSED = ("preconditioned_probes", "hutchinson_trace", "step_ratio")
BACKENDS = ("reference", "triton")
KERNEL_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# one row is held in registers; the compile gate (benchmarks/aot.md) finds no spills up to here in float32
# and bfloat16, for row lengths divisible by 16
MAX_COLUMNS = 8192


@cache
def _interpreting() -> bool:
    import triton

    return bool(triton.knobs.runtime.interpret)


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


def _triton_refuses(x: Tensor) -> str | None:
    """Why Triton can't serve x, or None."""
    if reason := _triton_missing():
        return reason
    if not x.is_cuda and not _interpreting():
        return f"the tensor is on {x.device.type}; Triton needs a GPU (or TRITON_INTERPRET=1, for tests)"
    if x.dtype not in KERNEL_DTYPES:
        return f"no kernel for {x.dtype}"
    if x.shape[-1] > MAX_COLUMNS:
        return f"rows of {x.shape[-1]} are longer than {MAX_COLUMNS}"
    return None


def _forced() -> str | None:
    name = os.environ.get(ENVIRONMENT_VARIABLE) or None
    if name is not None and name not in BACKENDS:
        raise ValueError(
            f"{ENVIRONMENT_VARIABLE}={name!r} is unknown; use {' or '.join(BACKENDS)}, or unset it"
        )
    return name


def backend_for(x: Tensor) -> str:
    """The backend that serves an operator with kernels on x: the forced one, else the best that runs.

    Raises:
        ValueError: `OFA_BACKEND` names no backend.
        RuntimeError: the forced backend can't serve x.
    """
    forced = _forced()
    if forced == "reference":
        return forced
    if forced == "triton":
        if reason := _triton_refuses(x):
            raise RuntimeError(
                f"{ENVIRONMENT_VARIABLE}=triton can't run here: {reason}; unset it to use PyTorch instead"
            )
        return forced
    return "triton" if x.is_cuda and _triton_refuses(x) is None else "reference"


@dataclass(frozen=True)
class BackendReport:
    """What `backend_report` found: rows of (operator, backend, state); `str()` is a table."""

    rows: tuple[tuple[str, str, str], ...]

    def __str__(self) -> str:
        header = ("operator", "backend", "state")
        widths = [max(len(row[i]) for row in (header, *self.rows)) for i in range(2)]
        return "\n".join(f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}" for a, b, c in (header, *self.rows))


def backend_report() -> BackendReport:
    """Which backend serves what on this machine, and why not the others.

    Returns:
        A report whose `.rows` are (operator, backend, state) and whose `str()` is a table.

    Raises:
        ValueError: `OFA_BACKEND` names no backend.
    """
    forced = _forced()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = forced or ("triton" if device == "cuda" and _triton_missing() is None else "reference")

    def state(backend: str) -> str:
        reason = _triton_refuses(torch.empty(1, device=device)) if backend == "triton" else None
        if backend == chosen:
            how = f"forced by {ENVIRONMENT_VARIABLE}" if forced else "chosen"
            return f"{how}, but can't run: {reason}" if reason else f"serves {device} tensors ({how})"
        if reason:
            return reason
        if forced:
            return f"not used: {ENVIRONMENT_VARIABLE}={forced}"
        if backend == "triton":
            return f"interpreted on {device}, for tests: used only where {ENVIRONMENT_VARIABLE}=triton"
        return "fallback: what the kernels don't take, and everything under torch.compile"

    rows = [(name, backend, state(backend)) for name, backends in KERNELS.items() for backend in backends]
    rows += [(name, "PyTorch", "composed of the operators above and PyTorch") for name in COMPOSED]
    return BackendReport(tuple(rows))
