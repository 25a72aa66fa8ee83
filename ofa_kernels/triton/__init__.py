"""Triton kernels; import `launch` only where Triton is installed."""
