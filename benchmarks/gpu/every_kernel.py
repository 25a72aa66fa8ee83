"""Launches every kernel once at one shape: what NVIDIA's tools watch.

ncu python -m benchmarks.gpu.every_kernel ROWS COLUMNS cuda
"""

import sys

import torch

from benchmarks.harness.inputs import SEED, Inputs
from ofa_kernels.triton import launch

K = 2
EPS, OFFSET, LAYER = 1e-6, 0.0, 1


def calls(p: Inputs) -> list:
    """Every launcher on the inputs' tensors."""
    x, w, dy, ids = p.x.detach(), p.gamma, p.dy, p.ids
    x_dot, w_dot, dy_dot = p.x_dot.detach(), p.weight_dot, p.dy_dot
    layers = torch.zeros(1, dtype=torch.int64, device=x.device)
    dots = torch.ones(K, p.rows, device=x.device)
    lengths = launch.step_lengths(dy_dot)
    return [
        lambda: launch.rms_norm_forward(x, w, EPS, OFFSET, "hf"),
        lambda: launch.add_rms_norm_forward(x, dy, w, EPS, OFFSET, "hf"),
        lambda: launch.rms_norm_backward(x, w, dy, dy, EPS, OFFSET, True, True),
        lambda: launch.rms_norm_jvp(x, w, x_dot, w_dot, EPS, OFFSET),
        lambda: launch.rms_norm_backward_tangent(x, w, dy, x_dot, w_dot, dy_dot, EPS, OFFSET, True),
        lambda: launch.rms_norm_jvp_backward(x, w, dy_dot, x_dot, w_dot, EPS, OFFSET, True, True),
        lambda: launch.rademacher(p.columns, ids, K, layers, SEED, x.dtype),
        lambda: launch.preconditioned_probes(x, w, EPS, OFFSET, SEED, K, ids, LAYER),
        lambda: launch.preconditioned_probes_backward(x, w, x_dot, EPS, OFFSET, SEED, ids, LAYER),
        lambda: launch.probe_dot(x_dot, SEED, ids, LAYER),
        lambda: launch.probe_scale(dots, p.columns, SEED, ids, LAYER, x.dtype),
        lambda: launch.step_lengths(dy_dot),
        lambda: launch.step_lengths_backward(dy_dot, lengths, lengths),
    ]


def main() -> int:
    """Launch, and wait for the device."""
    rows, columns, device = sys.argv[1:]
    inputs = Inputs(int(rows), int(columns), torch.bfloat16, K, device)
    for call in calls(inputs):
        call()
    if device == "cuda":
        torch.cuda.synchronize()
    return 0


if __name__ == "__main__":
    sys.exit(main())
