"""Fused operators for optimisation-inspired few-shot adaptation; usable without `ofa`."""

import importlib.metadata

from ofa_kernels.dispatch import backend_report
from ofa_kernels.dtypes import accumulation_dtype
from ofa_kernels.hutchinson import TraceEstimate, hutchinson_trace
from ofa_kernels.norms import add_rms_norm, layer_norm, rms_norm, rms_norm_jvp
from ofa_kernels.probes import mix, preconditioned_probes, probe_dot, rademacher
from ofa_kernels.reference import Seed as Seed
from ofa_kernels.reference import preconditioner
from ofa_kernels.steps import step_ratio

# Seed is public too: the type of every argument `seed`, which as an alias has no docstring
__all__ = [
    "TraceEstimate",
    "accumulation_dtype",
    "add_rms_norm",
    "backend_report",
    "hutchinson_trace",
    "layer_norm",
    "mix",
    "preconditioned_probes",
    "preconditioner",
    "probe_dot",
    "rademacher",
    "rms_norm",
    "rms_norm_jvp",
    "step_ratio",
]

try:
    __version__ = importlib.metadata.version("ofa-kernels")
except importlib.metadata.PackageNotFoundError:  # a source tree that was not installed
    __version__ = "0+unknown"
