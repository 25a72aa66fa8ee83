"""Fused operators for optimisation-inspired few-shot adaptation; usable without `ofa`."""

from ofa_kernels.autograd import rms_norm
from ofa_kernels.dispatch import backend_report
from ofa_kernels.hutchinson import hutchinson_trace
from ofa_kernels.probes import preconditioned_probes, rademacher
from ofa_kernels.reference import step_ratio

__all__ = [
    "backend_report",
    "hutchinson_trace",
    "preconditioned_probes",
    "rademacher",
    "rms_norm",
    "step_ratio",
]
