"""Backends for GPUs whose launches do nothing, on a machine without one: what is left is the host's time.

The tensors lie in the host's memory, and outputs are never written. A stub's launch takes no time at all; a
real one takes the driver another 2 to 3 µs.
"""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from ofa_kernels import cuda, dispatch
from ofa_kernels.cuda import library

ROOT = Path(__file__).parents[2]
WORKSPACE_BYTES = 1 << 20  # of every operator that sums over rows
SOURCE = f"""
#include <cstring>
#include "ofa_cuda.h"
#define STUB(name)                                                                              \\
    extern "C" int ofa_cuda_run_##name(const ofa_##name*, const ofa_cuda_launch*) {{ return 0; }} \\
    extern "C" int64_t ofa_cuda_workspace_##name(const ofa_##name*, int64_t) {{                   \\
        return std::strstr(#name, "backward") ? {WORKSPACE_BYTES} : 0;                            \\
    }}
OFA_OPERATORS(STUB)
extern "C" const char* ofa_cuda_last_error(void) {{ return ""; }}
extern "C" const char* ofa_cuda_architectures(void) {{ return "{library.EMULATED}"; }}
"""


def build(folder: Path) -> Path:
    """Compile a library for CUDA that launches nothing.

    Raises:
        FileNotFoundError: there is no g++.
        subprocess.CalledProcessError: g++ refuses the source.
    """
    source, file = folder / "stub.cpp", folder / "stub.so"
    source.write_text(SOURCE, encoding="utf-8")
    include = f"-I{ROOT / 'csrc' / 'include'}"
    subprocess.run(["g++", "-shared", "-fPIC", "-O2", include, str(source), "-o", str(file)], check=True)
    return file


@contextlib.contextmanager
def _on_cpu(*backends: str) -> Iterator[None]:
    """While it is entered, CPU tensors are served by these backends."""
    try:
        with mock.patch.object(dispatch, "_ON_CPU", backends):
            dispatch.look_again()
            yield
    finally:
        dispatch.look_again()


@contextlib.contextmanager
def stubbed_cuda(file: Path) -> Iterator[None]:
    """While it is entered, CPU tensors are served as a GPU's are, by a library for CUDA and by Triton."""
    with mock.patch.dict(os.environ, {cuda.ENVIRONMENT_VARIABLE: str(file)}), _on_cpu("cuda"):
        yield


class _Driver:
    """What Triton asks a driver before it launches."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


class _Launcher:
    """What a compiled kernel is launched by; all that is read of Triton's own."""

    __module__ = "triton.backends.nvidia.driver"
    global_scratch_size = profile_scratch_size = 0
    launch_cooperative_grid = launch_pdl = gsan_enabled = False
    arg_annotations = kernel_signature = ()

    def launch(self, *_) -> None:
        """Return at once."""

    __call__ = launch


def _compile(kernel, key, *_, **__):
    """In place of `JITFunction._do_compile`: a kernel that has no code."""
    from triton.compiler import CompiledKernel

    compiled = object.__new__(CompiledKernel)
    compiled.__dict__ |= {"function": 1, "module": 1, "packed_metadata": (), "_run": _Launcher()}
    compiled.__dict__ |= {"launch_metadata": lambda *_: None, "_module_pid": os.getpid()}
    kernel.device_caches[0][0][key] = compiled
    return compiled


@contextlib.contextmanager
def stubbed_triton() -> Iterator[None]:
    """While it is entered, CPU tensors are served by Triton's kernels, which are never compiled.

    Raises:
        ImportError: Triton is not installed.
        RuntimeError: this process has imported it to interpret kernels.
    """
    from triton import knobs
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    if knobs.runtime.interpret:
        raise RuntimeError("Triton's kernels are interpreted here; unset TRITON_INTERPRET")
    with (
        mock.patch.object(driver, "_active", _Driver()),
        mock.patch.object(JITFunction, "_do_compile", _compile),
        mock.patch.dict(dispatch._REFUSES, triton=lambda *_: None),
        _on_cpu("triton"),
    ):
        yield
