"""The kernels of `csrc/cpu`, which serve tensors in the host's memory.

`library.py` finds and loads the library; whether it is there and what it uses can be asked here too.
"""

import torch
from torch import Tensor

from ofa_kernels.calls import Calls
from ofa_kernels.native.library import (
    LIBRARY,
    description,
    instruction_set,
    load,
    missing,
    openmp_runtimes,
)
from ofa_kernels.reference import Seed
from ofa_kernels.structs import STRUCTS

__all__ = [
    "LIBRARY",
    "SAVES_RSTD",
    "TAKES_INDEX",
    "add_rms_norm_forward",
    "description",
    "instruction_set",
    "missing",
    "openmp_runtimes",
    "preconditioned_probes",
    "preconditioned_probes_backward",
    "probe_dot",
    "probe_scale",
    "rademacher",
    "rms_norm_backward",
    "rms_norm_backward_tangent",
    "rms_norm_forward",
    "rms_norm_jvp",
    "rms_norm_jvp_backward",
    "step_lengths",
    "step_lengths_backward",
]

# forward and backward were measured to take 0.97 to 1.07 times as long with a saved rstd as without (64 x 576
# to 512 x 4096): the backward reads every row for another sum anyway
SAVES_RSTD = False
TAKES_INDEX = True
_NO_MEMORY, _BAD_INDEX = 1, 2


class _CPU(Calls):
    """The library works on the calling thread and on torch's others, and returns when it is done."""

    def threads(self) -> int:
        """As many as torch uses."""
        return torch.get_num_threads()

    def bits(self, seed: Seed) -> tuple[int, int]:
        """A tensor's value is read here, for which nothing waits."""
        if isinstance(seed, int):
            return seed, 0
        return seed.item() & 0xFFFFFFFFFFFFFFFF, 0  # pyright: ignore[reportOperatorIssue] - of int64 it is an int

    def run(
        self,
        operator: str,
        like: Tensor,
        members: tuple,
        seed_pointer: int = 0,
        index: Tensor | None = None,
    ) -> None:
        """Call an operator; see `Calls.run`."""
        function, pack = load()[0][operator]
        error = function(pack(*members))
        if error == _NO_MEMORY:
            raise MemoryError(f"ofa_kernels: no memory for the scratch space of {operator}")
        if error == _BAD_INDEX:
            assert index is not None
            raise _no_such_weight(
                index, dict(zip(STRUCTS[operator].split(), members, strict=True))["weights"]
            )


def _no_such_weight(index: Tensor, weights: int) -> IndexError:
    """What is wrong with an index, and where first."""
    bad = (index < 0) | (index >= weights)
    row = int(bad.flatten().nonzero()[0])
    return IndexError(
        f"weight_index must be from 0 to {weights - 1}, the rows of weight, got {int(index.flatten()[row])} "
        f"at row {row} of {index.numel()}"
    )


_cpu = _CPU()
rms_norm_forward = _cpu.rms_norm_forward
add_rms_norm_forward = _cpu.add_rms_norm_forward
rms_norm_backward = _cpu.rms_norm_backward
rms_norm_jvp = _cpu.rms_norm_jvp
rms_norm_backward_tangent = _cpu.rms_norm_backward_tangent
rms_norm_jvp_backward = _cpu.rms_norm_jvp_backward
rademacher = _cpu.rademacher
preconditioned_probes = _cpu.preconditioned_probes
preconditioned_probes_backward = _cpu.preconditioned_probes_backward
probe_dot = _cpu.probe_dot
probe_scale = _cpu.probe_scale
step_lengths = _cpu.step_lengths
step_lengths_backward = _cpu.step_lengths_backward
