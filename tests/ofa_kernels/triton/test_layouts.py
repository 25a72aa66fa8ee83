"""Rows that vectors can be loaded from in part, or not at all: every launcher is right on them too."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from ofa_kernels.triton import launch
from tests.ofa_kernels.bounds import BF16, EPS, F32, LAYER, SEED
from tests.ofa_kernels.triton_checks import (
    check_backward_tangent,
    check_forward,
    check_jvp,
    check_jvp_backward,
    cut,
    draw,
)

pytestmark = pytest.mark.usefixtures("nan_poisoned_empty")

# (columns, those of a wider tensor before them); strides are their sums
SHAPES = [(72, 0), (72, 8), (68, 4), (72, 4), (72, 2), (72, 1), (67, 5)]

layouts = pytest.mark.parametrize(
    ("dtype", "size", "skipped"), [(dtype, *shape) for dtype in (BF16, F32) for shape in SHAPES], ids=str
)


@pytest.fixture(params=["row", "blocks"], autouse=True)
def stages(request, monkeypatch):
    if request.param == "blocks":
        cut(monkeypatch)


@layouts
def test_the_norm_and_its_derivatives(device, dtype, size, skipped):
    def rows(*sizes, dtype=dtype):
        return draw(device, dtype, *sizes, skipped + size)[..., skipped:]

    x, dy, w = rows(5), rows(5), draw(device, F32, skipped + size)[skipped:]
    x_dot, dy_dot, w_dot = rows(2, 5), rows(2, 5), rows(2, dtype=F32)
    check_forward(x, w, 0.0, "hf", residual=dy)
    check_jvp(x, w, x_dot, w_dot, 1.0)
    check_backward_tangent(x, w, dy, x_dot, w_dot, dy_dot, 1.0)
    check_jvp_backward(x, w, dy_dot, x_dot, w_dot, 1.0)
    for got, dense in zip(
        launch.rms_norm_backward(x, w, dy, dy, EPS, 0.0, True, True),
        launch.rms_norm_backward(*(t.contiguous() for t in (x, w, dy, dy)), EPS, 0.0, True, True),
        strict=True,
    ):
        torch.testing.assert_close(got, dense)


@layouts
def test_probes_and_step_lengths(device, dtype, size, skipped):
    ids, w = torch.arange(5, device=device), draw(device, F32, size)
    z = draw(device, dtype, 5, skipped + size)[:, skipped:]
    t = draw(device, dtype, 3, 5, skipped + size)[..., skipped:]
    dlengths = draw(device, F32, 2, 5)
    lengths = launch.step_lengths(t)
    calls = (
        lambda z, t: launch.preconditioned_probes(z, w, EPS, 0.0, SEED, 3, ids, LAYER),
        lambda z, t: launch.preconditioned_probes_backward(z, w, t, EPS, 0.0, SEED, ids, LAYER)[0],
        lambda z, t: launch.preconditioned_probes_backward(z, w, t, EPS, 0.0, SEED, ids, LAYER)[1],
        lambda z, t: launch.probe_dot(t, SEED, ids, LAYER),
        lambda z, t: launch.step_lengths(t),
        lambda z, t: launch.step_lengths_backward(t, lengths, dlengths),
    )
    for call in calls:
        torch.testing.assert_close(call(z, t), call(z.contiguous(), t.contiguous()))
