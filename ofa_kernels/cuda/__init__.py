"""The CUDA kernels of `csrc/cuda`, and Triton's where those are as good: what a device runs that has both.

`calls.py` has every operator by the library, `library.py` finds and loads it. The functions here choose for
each call by its sizes. The choice follows predictions of a model of the hardware (docs/gpu.md), not
measurements:

- Few rows: the host's time decides, and a launch through C takes a fraction of Triton's.
- Derivatives along tangents: the library keeps their sums over rows in the shared memory of a cluster, where
  Triton's go through global memory.
- Long rows: on devices with clusters, the library holds a row in the shared memory of several
  multiprocessors and reads it once, where Triton's kernels read it twice.
- Elsewhere memory is the limit, and Triton's kernels are as near to it.
- Rows that the library doesn't take on the device go to Triton, which cuts them into blocks.
- So do rows that have weights or seeds of their own, for which the library has no kernels.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import Tensor

from ofa_kernels.cuda import calls
from ofa_kernels.cuda.calls import SAVES_RSTD, TooLongError
from ofa_kernels.cuda.library import ENVIRONMENT_VARIABLE, capability, description, load, missing, refuses

__all__ = [
    "CLUSTERED_FROM",
    "ENVIRONMENT_VARIABLE",
    "FEW_ELEMENTS",
    "SAVES_RSTD",
    "SHARE",
    "TAKES_INDEX",
    "TANGENTS",
    "TooLongError",
    "add_rms_norm_forward",
    "capability",
    "description",
    "load",
    "missing",
    "preconditioned_probes",
    "preconditioned_probes_backward",
    "probe_dot",
    "probe_scale",
    "rademacher",
    "refuses",
    "rms_norm_backward",
    "rms_norm_backward_tangent",
    "rms_norm_forward",
    "rms_norm_jvp",
    "rms_norm_jvp_backward",
    "step_lengths",
    "step_lengths_backward",
]

TAKES_INDEX = True
# 4 MB of bfloat16, which an H100 reads and writes in about 3 µs: less than Triton's launch takes the host
FEW_ELEMENTS = 2 << 20
# columns from which Triton's programs no longer hold a row in registers as fast as memory delivers it
CLUSTERED_FROM = {"rms_norm_forward": 32768, "add_rms_norm_forward": 32768, "rms_norm_backward": 8192}
CLUSTERS = (9, 0)  # the compute capability that has them
TANGENTS = ("rms_norm_backward_tangent", "rms_norm_jvp_backward")
SHARE = (
    f"calls of fewer than {FEW_ELEMENTS:,} rows times columns, derivatives along tangents, and, from compute "
    f"capability 9.0, norms of {CLUSTERED_FROM['rms_norm_forward']:,} columns and more (backward from "
    f"{CLUSTERED_FROM['rms_norm_backward']:,})"
)


def _has_clusters(x: Tensor) -> bool:
    return capability(max(x.get_device(), 0)) >= CLUSTERS


def _chosen(name: str, elements: Callable[..., int] | None = None) -> Callable[..., Any]:
    """The operator by whoever serves a call better; `elements` counts rows times columns of its arguments.

    Without it they are those of the first argument.
    """
    own, always, clustered_from = getattr(calls, name), name in TANGENTS, CLUSTERED_FROM.get(name)

    @wraps(own)
    def call(*given, index: Tensor | None = None):
        x = given[0]
        if (
            index is None
            and not calls.has_seeds(name, given)
            and (
                always
                or (x.numel() if elements is None else elements(*given)) < FEW_ELEMENTS
                or (clustered_from is not None and x.shape[-1] >= clustered_from and _has_clusters(x))
            )
        ):
            try:
                return own(*given)
            except TooLongError:  # raised before anything is queued
                pass
        from ofa_kernels.triton import launch

        other = getattr(launch, name)
        return other(*given) if index is None else other(*given, index=index)

    return call


def _of_one_probe(t: Tensor, *_) -> int:
    return t.numel() // max(t.shape[0], 1)


def _of_signs(n_cols: int, example_ids: Tensor, *_) -> int:
    return n_cols * example_ids.numel()


def _of_scaled(scale: Tensor, n_cols: int, *_) -> int:
    return scale.shape[1] * n_cols


rms_norm_forward = _chosen("rms_norm_forward")
add_rms_norm_forward = _chosen("add_rms_norm_forward")
rms_norm_backward = _chosen("rms_norm_backward")
rms_norm_jvp = _chosen("rms_norm_jvp")
rms_norm_backward_tangent = _chosen("rms_norm_backward_tangent")
rms_norm_jvp_backward = _chosen("rms_norm_jvp_backward")
rademacher = _chosen("rademacher", _of_signs)
preconditioned_probes = _chosen("preconditioned_probes")
preconditioned_probes_backward = _chosen("preconditioned_probes_backward")
probe_dot = _chosen("probe_dot", _of_one_probe)
probe_scale = _chosen("probe_scale", _of_scaled)
step_lengths = _chosen("step_lengths")
step_lengths_backward = _chosen("step_lengths_backward")
