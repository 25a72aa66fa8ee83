"""Minimal bytes against hand counts, at 10 rows of 6 in bfloat16 with a float32 γ: x is 120 bytes, γ 24."""

import inspect

import pytest
import torch

from benchmarks.harness.traffic import KERNELS, OPERATORS, Traffic
from ofa_kernels import native

X, W = 120, 24
COUNTED = {
    "rms_norm_forward": 2 * X + W,
    "add_rms_norm_forward": 4 * X + W,
    "rms_norm_backward": 3 * X + 2 * W,
    "rms_norm_jvp": (1 + 2 * 4) * X + (1 + 4) * W,
    "rms_norm_backward_tangent": (2 + 3 * 4) * X + (1 + 2 * 4) * W,
    "rms_norm_jvp_backward": (2 + 3 * 4) * X + (2 + 2 * 4) * W,
    "rademacher": 4 * X,
    "preconditioned_probes": 5 * X + W,
    "preconditioned_probes_backward": 6 * X + 2 * W,
    "probe_dot": 4 * X + 4 * 10 * 4,
    "probe_scale": 4 * X + 4 * 10 * 4,
    "step_lengths": 4 * X + 3 * 10 * 4,
    "step_lengths_backward": 8 * X + 2 * 3 * 10 * 4,
    "forward + backward": 5 * X + 3 * W,
    "add + norm, forward + backward": 8 * X + 3 * W,
    "JVP": 4 * X + W,
    "JVP, forward + backward": (1 + 2 * 4) * X + W + (2 + 3 * 4) * X + 2 * W,
    "double backward": (2 + 3 + 4) * X + 4 * W,
    "tangent-backward": (2 + 2 * 4) * X + (1 + 2 * 4) * W,
    "preconditioned probes, forward + backward": 5 * X + W + 6 * X + 2 * W,
    "probe dot, forward + backward": 8 * X + 2 * 4 * 10 * 4,
    "step ratio, forward + backward": 4 * X + 3 * 10 * 4 + 8 * X + 2 * 3 * 10 * 4,
}


@pytest.mark.parametrize("name", COUNTED)
def test_bytes(name):
    traffic = KERNELS.get(name) or OPERATORS[name]
    assert traffic.bytes(10, 6, torch.bfloat16, k=4) == COUNTED[name]


def test_every_kernel_has_its_bytes():
    assert {name for name, _ in inspect.getmembers(native, inspect.ismethod)} == set(KERNELS)


def test_shared_primals_are_read_once():
    one, many = (KERNELS["rms_norm_backward_tangent"].bytes(1000, 1000, torch.float32, k) for k in (1, 16))
    assert many / (16 * one) == pytest.approx((2 + 3 * 16) / (5 * 16), rel=1e-2)


@pytest.mark.parametrize(
    ("traffic", "text"), [(Traffic((2, 0)), "2"), (Traffic((2, 3)), "2 + 3K"), (Traffic((0, 1)), "K")]
)
def test_row_passes_as_text(traffic, text):
    assert str(traffic) == text
