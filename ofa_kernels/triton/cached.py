"""Launches that skip what does not change from call to call.

`kernel[grid](...)` binds the arguments, asks how each is typed and aligned, and finds the build for that:
longer work for the host than most kernels are for the card. `Builds` remembers a build by what it depends on,
and hands the arguments to the C function that Triton's launcher would hand them to. What is unusual goes
Triton's own way: its interpreter, hooks of a profiler, a replacement for Triton's launch, a Triton that
launches otherwise.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton import knobs
from triton.compiler import CompiledKernel
from triton.runtime import driver
from triton.runtime.jit import JITFunction, KernelInterface

ALIGNMENT = 16  # a pointer that is a multiple of it takes another build, and so does
INT32 = 2**31  # an integer that needs more bits
VERSION = ".".join(triton.__version__.split(".")[:2])
# as Triton has them; the benchmarks and the compile gate put others in their place
_RUN, _SUBSCRIPT = JITFunction.run, KernelInterface.__getitem__


class _Build(NamedTuple):
    kernel: JITFunction  # kept, so that no other gets its id
    driver: object
    stream_of: Callable[[int], int]
    enqueue: Callable[[int, int, int, tuple[object, ...]], object]
    constants: tuple[object, ...]  # among the arguments, though C passes over them


class Builds(dict[tuple[object, ...], _Build]):
    """The builds of kernels that are launched with constants from one place."""

    def launch(
        self,
        kernel: Any,
        grid: tuple[int, int],
        pointers: tuple[Tensor | None, ...],
        integers: tuple[int, ...],
        given: tuple[object, ...],
        constants: Callable[[], dict[str, Any]],
    ) -> None:
        """`kernel[grid](*pointers, *integers, **constants())` on the pointers' device and its current stream.

        Args:
            kernel: what `row.kernel` makes: it specialises no integer, and its constants come last.
            grid: programs in both dimensions.
            pointers: tensors of one device, of which only those after the first may be None.
            integers: at least one, none below -2³¹.
            given: what the constants depend on, besides the types and the device of the pointers.
            constants: the kernel's own and the options of its build.
        """
        x = pointers[0]
        assert x is not None
        device = x.get_device()
        if device >= 0 and device != torch.cuda.current_device():
            with torch.cuda.device(device):
                return self.launch(kernel, grid, pointers, integers, given, constants)
        if type(kernel) is not JITFunction or max(integers) >= INT32 or not _usual(kernel):
            return kernel[grid](*pointers, *integers, **constants())

        kinds, addresses = [], 0
        for t in pointers:
            if t is None:
                kinds.append(None)
            else:
                kinds.append(t.dtype)
                addresses |= t.data_ptr()
        aligned = addresses % ALIGNMENT == 0 or _aligned(pointers)
        key = (id(kernel), device, aligned, *kinds, *given)
        build = self.get(key)
        if build is None or build.driver is not driver.active:
            compiled = kernel[grid](*pointers, *integers, **constants())
            build = _build_of(kernel, compiled, constants())
            if build is not None:
                self[key] = build
        else:
            _, _, stream_of, enqueue, rest = build
            enqueue(*grid, stream_of(device), (*pointers, *integers, *rest))
        return None


_BUILDS = Builds()


def launch(
    kernel: Any,
    grid: tuple[int, int],
    pointers: tuple[Tensor | None, ...],
    integers: tuple[int, ...],
    **constants: Any,
) -> None:
    """`Builds.launch` for a kernel that has its constants from nowhere else."""
    _BUILDS.launch(kernel, grid, pointers, integers, tuple(constants.values()), lambda: constants)


def _usual(kernel: JITFunction) -> bool:
    """Whether nobody takes part in launches, and Triton's are its own."""
    runtime = knobs.runtime
    enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook
    return (
        JITFunction.run is _RUN
        and KernelInterface.__getitem__ is _SUBSCRIPT
        and (enter is None or not getattr(enter, "calls", True))
        and (leave is None or not getattr(leave, "calls", True))
        and not kernel.pre_run_hooks
        and not runtime.debug
        and runtime.add_stages_inspection_hook is None
    )


def _aligned(pointers: tuple[Tensor | None, ...]) -> tuple[bool, ...]:
    return tuple(t is None or t.data_ptr() % ALIGNMENT == 0 for t in pointers)


def _build_of(kernel: JITFunction, compiled: object, constants: dict[str, Any]) -> _Build | None:
    enqueue = _enqueue_of(compiled) if isinstance(compiled, CompiledKernel) else None
    if enqueue is None:
        return None
    own = tuple(constants[parameter.name] for parameter in kernel.params if parameter.is_constexpr)
    active: Any = driver.active  # its base class leaves streams to those of GPUs
    return _Build(kernel, active, active.get_current_stream, enqueue, own)


def _enqueue_of(compiled: CompiledKernel) -> Callable[[int, int, int, tuple[object, ...]], object] | None:
    """What enqueues a build, given both sizes of the grid, a stream and the arguments; None where unknown."""
    launcher: Any = compiled.run
    if type(launcher).__module__ != "triton.backends.nvidia.driver" or VERSION not in ("3.6", "3.9"):
        return None
    if launcher.global_scratch_size or launcher.profile_scratch_size:
        return None  # memory that Triton has to allocate at every launch
    call, function, metadata = launcher.launch, compiled.function, compiled.packed_metadata
    options = launcher.launch_cooperative_grid, launcher.launch_pdl
    if VERSION == "3.6":
        # both scratches; the metadata; what only hooks want, and both hooks
        about = (*options, None, None, metadata, None, None, None)
        return lambda x, y, stream, args: call(x, y, 1, stream, function, *about, *args)
    if launcher.gsan_enabled:
        return None  # which adds arguments
    # the metadata; what only hooks want, and both hooks; both scratches
    about = (*options, metadata, None, None, None, None, None)
    about = (*about, launcher.arg_annotations, launcher.kernel_signature)
    return lambda x, y, stream, args: call(x, y, 1, stream, function, *about, args)
