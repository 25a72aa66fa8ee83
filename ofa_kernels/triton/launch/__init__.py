"""The calls of the Triton kernels, gathered: each allocates what a kernel writes, and launches it."""

from ofa_kernels.triton.launch.probes import (
    preconditioned_probes,
    preconditioned_probes_backward,
    probe_dot,
    probe_scale,
    rademacher,
)
from ofa_kernels.triton.launch.rms_norm import add_rms_norm_forward, rms_norm_backward, rms_norm_forward
from ofa_kernels.triton.launch.rms_norm_tangent import (
    rms_norm_backward_tangent,
    rms_norm_jvp,
    rms_norm_jvp_backward,
)
from ofa_kernels.triton.launch.steps import step_lengths, step_lengths_backward

SAVES_RSTD = True
TAKES_INDEX = True

__all__ = [
    "SAVES_RSTD",
    "TAKES_INDEX",
    "add_rms_norm_forward",
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
