"""Launch choices: plans cover every row, and a launch takes all that it needs from its plan."""

import dataclasses

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from ofa_kernels.triton import launch, plan, rms_norm
from tests.ofa_kernels.triton_checks import EPS, F32, F64, draw


@pytest.mark.parametrize("n_cols", [1, 576, 4096, 8191, 8192, 65536, 65537])
def test_plans_cover_every_column(n_cols):
    for residency in (plan.FORWARD, plan.BACKWARD, plan.JVP, plan.TANGENT, plan.PROBES):
        for dtype in (F32, F64):
            chosen = plan.plan(residency, n_cols, dtype)
            assert chosen.block * (chosen.n_blocks - 1) < n_cols <= chosen.block * chosen.n_blocks
            assert chosen.n_blocks <= chosen.n_blocks_padded
            assert chosen.num_warps * 32 * chosen.registers <= 65536
            assert 1 <= chosen.programs(10**6) <= plan.MAX_PROGRAMS


class Recorder:
    """Stands for a kernel, and remembers how it was launched."""

    def __init__(self):
        self.launches = []

    def __getitem__(self, grid):
        return lambda *_, **constants: self.launches.append((grid, constants))


def test_a_launch_takes_every_choice_from_its_plan(device, monkeypatch):
    chosen = plan.Plan(
        block=256,
        n_blocks=3,
        n_blocks_padded=32,
        num_warps=2,
        registers=96,
        stages=plan.BLOCKS,
        max_programs=5,
        partials=(16, 128),
        pipeline=3,
    )
    backward, sums = Recorder(), Recorder()
    monkeypatch.setattr(plan, "plan", lambda *_: chosen)
    monkeypatch.setattr(rms_norm, "rms_norm_backward", backward)
    monkeypatch.setattr(plan, "sum_partials", sums)
    x, w = draw(device, F32, 8, 700), draw(device, F32, 700)
    launch.rms_norm_backward(x, w, x, None, EPS, 0.0, True, True)
    assert [grid for grid, _ in backward.launches] == [(5, 3), (5, 3)]
    assert [constants["STAGE"] for _, constants in backward.launches] == ["sums", "apply"]
    for _, constants in backward.launches:
        names = ("BLOCK_N", "BLOCK_S", "num_warps", "maxnreg", "PIPELINE")
        assert [constants[name] for name in names] == [256, 32, 2, 96, 3]
    ((grid, constants),) = sums.launches
    assert (grid, constants["BLOCK_P"], constants["BLOCK_N"]) == ((6,), 16, 128)


def test_rows_in_flight_change_no_bit(device, monkeypatch):
    x, dy, w = draw(device, F32, 7, 70), draw(device, F32, 7, 70), draw(device, F32, 70)
    found = []
    for rows in (1, 2, 3):
        chosen = dataclasses.replace(plan.plan(plan.BACKWARD, 70, F32), pipeline=rows, max_programs=2)
        with monkeypatch.context() as patched:
            patched.setattr(plan, "plan", lambda *_, chosen=chosen: chosen)
            found.append(launch.rms_norm_backward(x, w, dy, None, EPS, 0.0, True, True))
    for dx, dw in found[1:]:
        assert torch.equal(dx, found[0][0])
        assert torch.equal(dw, found[0][1])
