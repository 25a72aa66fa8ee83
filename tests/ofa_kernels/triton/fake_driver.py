"""Triton without a card or a compiler; what is between them, down to the C that launches, is its own.

What would be C is a function of the test's, and is handed what C would be.
"""

import itertools
from types import SimpleNamespace
from unittest import mock

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia
from triton.compiler import CompiledKernel
from triton.runtime import driver

ARCHITECTURE = 90


class FakeKernel(CompiledKernel):
    """A build with nothing in it: its function is a number of its own."""

    numbers = itertools.count(1)

    def __init__(self, src, target, options, **_):
        self.src, self.name = src, src.name
        self.metadata = SimpleNamespace(
            num_ctas=1,
            global_scratch_size=0,
            global_scratch_align=1,
            profile_scratch_size=0,
            profile_scratch_align=1,
            launch_cooperative_grid=False,
            launch_pdl=False,
            instrumentation_mode="",
        )
        self.packed_metadata = options["num_warps"], 1, 0
        self.module, self._module_pid = "loaded", None
        self.function = next(self.numbers)
        self._run = driver.active.launcher_cls(src, self.metadata)


class FakeDriver:
    """What Triton asks of a driver when it launches.

    Args:
        launch: called in place of the C function.
    """

    def __init__(self, launch):
        self.streams: dict[int, int] = {}
        self.utils = SimpleNamespace(launch=launch, build_signature_metadata=tuple)
        self.launcher_cls = nvidia.CudaLauncher

    def get_current_device(self) -> int:
        """The one device there is."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """The stream that the test has put there."""
        return self.streams.get(device, 0)

    def get_current_target(self) -> GPUTarget:
        """What builds are for."""
        return GPUTarget("cuda", ARCHITECTURE, 32)


def fake_driver(launch) -> FakeDriver:
    """Make a fake driver the active one for the rest of this process."""
    # what the C module of newer Tritons provides, and the compiler of older ones' C launchers
    for name, value in {
        "PyKernelArg": lambda nested_tuple, type: (nested_tuple, type),
        "ARG_CONSTEXPR": "constexpr",
        "ARG_KERNEL": "kernel",
        "ARG_TUPLE": "tuple",
        "compile_module_from_src": lambda **_: SimpleNamespace(launch=launch),
        "library_dirs": list,
    }.items():
        mock.patch.object(nvidia, name, value, create=True).start()
    mock.patch.object(triton.compiler, "compile", FakeKernel).start()
    made = FakeDriver(launch)
    driver.set_active(made)  # pyright: ignore[reportArgumentType] - its base class asks for much more
    return made
