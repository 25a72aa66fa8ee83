"""Every operator by the library of the CUDA kernels, whatever else could serve it.

It has no kernels for rows with weights of their own, which `TAKES_INDEX` would promise; with seeds of their
own, PyTorch composes them.
"""

import struct
from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor

from ofa_kernels import formulas
from ofa_kernels.calls import Calls
from ofa_kernels.cuda.library import LAUNCH, Library, load
from ofa_kernels.reference import Seed
from ofa_kernels.structs import struct_format

__all__ = [
    "SAVES_RSTD",
    "SEED_AT",
    "TooLongError",
    "add_rms_norm_forward",
    "has_seeds",
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

SAVES_RSTD = True
# which argument is the seed, where each row may have its own
SEED_AT = {"preconditioned_probes": 4, "preconditioned_probes_backward": 5, "probe_dot": 1, "probe_scale": 2}
_OK, _NO_MEMORY, _UNSUPPORTED = 0, 1, 3
_pack_launch = struct.Struct(struct_format(LAUNCH)).pack
_stream_of = getattr(torch._C, "_cuda_getCurrentRawStream", None)


class TooLongError(RuntimeError):
    """The rows of a call are longer than the kernels take on the device."""


@cache
def _plain_launch(device: int, stream: int) -> bytes:
    """The launch of a call that needs no scratch memory and whose seed, if it has one, is a number."""
    return _pack_launch(device, stream, 0, 0)


def _too_long(operator: str, like: Tensor) -> TooLongError:
    return TooLongError(
        f"ofa_kernels: the CUDA kernels of {operator} don't take rows as long as those of "
        f"{tuple(like.shape)} in {like.dtype} on this device; unset OFA_BACKEND, or install Triton, which "
        "does"
    )


class _CUDA(Calls):
    """The library queues its kernels on the device's current stream and returns; memory is torch's.

    What a call allocates may be freed when it has returned: torch hands it out again on the same stream only.
    """

    def threads(self) -> int:
        """None: the kernels are not the host's."""
        return 0

    def bits(self, seed: Seed) -> tuple[int, int]:
        """A tensor's value is read by the kernel, so that nothing waits and a CUDA graph can change it."""
        return (seed, 0) if isinstance(seed, int) else (0, seed.data_ptr())

    def run(
        self,
        operator: str,
        like: Tensor,
        members: tuple,
        seed_pointer: int = 0,
        index: Tensor | None = None,
    ) -> None:
        """Queue an operator; see `Calls.run`.

        Raises:
            TooLongError: the rows are longer than the kernel takes on the device.
            RuntimeError: CUDA refuses, with its words.
        """
        library = load()
        if isinstance(library, str):
            raise RuntimeError(f"the CUDA kernels can't be used: {library}")
        launch, workspace_of, pack, sizes, optional, known = library.operators[operator]
        if library.emulated or _stream_of is None:
            device = stream = 0
        else:
            device = like.get_device()
            stream = _stream_of(device)
        call = pack(*members)
        key = device, sizes(members), *map(bool, optional(members))
        n_bytes = known.get(key)
        if n_bytes is None:
            n_bytes = known[key] = workspace_of(call, device)
        if n_bytes == 0 and not seed_pointer:
            error = launch(call, _plain_launch(device, stream))
        elif n_bytes < 0:
            raise _too_long(operator, like)
        else:
            workspace = like.new_empty(n_bytes, dtype=torch.uint8)
            error = launch(call, _pack_launch(device, stream, workspace.data_ptr(), seed_pointer))
        if error != _OK:
            raise _named(error, operator, like, library)


def _named(error: int, operator: str, like: Tensor, library: Library) -> Exception:
    """An error of the C interface as Python's."""
    if error == _NO_MEMORY:
        return MemoryError(f"ofa_kernels: no memory for the scratch space of {operator}")
    if error == _UNSUPPORTED:
        return _too_long(operator, like)
    said = library.last_error().decode(errors="replace")
    return RuntimeError(f"ofa_kernels: CUDA refused {operator} on {like.device}: {said}")


def has_seeds(name: str, given: tuple) -> bool:
    """Whether in a call of this function each row has a seed of its own."""
    at = SEED_AT.get(name)
    return at is not None and isinstance(given[at], Tensor) and given[at].numel() > 1


def _of_one_seed(name: str) -> Callable[..., Any]:
    own, composed = getattr(_cuda, name), getattr(formulas, name)

    @wraps(own)
    def call(*given, **index):
        return (composed if has_seeds(name, given) else own)(*given, **index)

    return call


_cuda = _CUDA()
rms_norm_forward = _cuda.rms_norm_forward
add_rms_norm_forward = _cuda.add_rms_norm_forward
rms_norm_backward = _cuda.rms_norm_backward
rms_norm_jvp = _cuda.rms_norm_jvp
rms_norm_backward_tangent = _cuda.rms_norm_backward_tangent
rms_norm_jvp_backward = _cuda.rms_norm_jvp_backward
rademacher = _cuda.rademacher
preconditioned_probes = _of_one_seed("preconditioned_probes")
preconditioned_probes_backward = _of_one_seed("preconditioned_probes_backward")
probe_dot = _of_one_seed("probe_dot")
probe_scale = _of_one_seed("probe_scale")
step_lengths = _cuda.step_lengths
step_lengths_backward = _cuda.step_lengths_backward
