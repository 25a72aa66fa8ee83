"""Launch choices: plans cover every row, and a launch takes all that it needs from its plan."""

import dataclasses

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from ofa_kernels.triton import launch, plan, rms_norm
from tests.ofa_kernels.bounds import BF16, EPS, F32, F64
from tests.ofa_kernels.triton_checks import draw


@pytest.mark.parametrize("n_cols", [1, 576, 4096, 8191, 8192, 65536, 65537])
def test_plans_cover_every_column(n_cols):
    for residency in (plan.FORWARD, plan.BACKWARD, plan.JVP, plan.TANGENT, plan.PROBES):
        for dtype, unit in ((F32, 1), (F32, 8), (F64, 1)):
            chosen = plan.plan(residency, n_cols, dtype, unit)
            assert chosen.block * (chosen.n_blocks - 1) < n_cols <= chosen.block * chosen.n_blocks
            assert chosen.n_blocks <= chosen.n_blocks_padded
            assert chosen.num_warps * 32 * chosen.registers <= 65536
            assert 1 <= chosen.programs(10**6) <= plan.MAX_PROGRAMS


def test_the_forward_holds_rows_of_16384_by_32_warps():
    for dtype in (BF16, F32):
        chosen = plan.plan(plan.FORWARD, 16384, dtype, 8)
        assert (chosen.stages, chosen.block, chosen.num_warps, chosen.registers) == (
            plan.WHOLE,
            16384,
            32,
            64,
        )
        assert plan.plan(plan.FORWARD, 16392, dtype, 8).stages == plan.BLOCKS
    assert plan.plan(plan.FORWARD, 8192, BF16, 8).num_warps == 16


def test_rows_are_read_ahead_as_far_as_shared_memory_holds_two_programs():
    for dtype, unit, rows in ((BF16, 8, 3), (F32, 8, 2), (F32, 4, 2), (F64, 8, 1), (BF16, 1, 1), (F32, 1, 1)):
        for n_cols in (64, 4096, 8192, 65536):
            chosen = plan.plan(plan.BACKWARD, n_cols, dtype, unit)
            assert chosen.pipeline == rows
            for read in (2, 3):  # x, dy and ds, with which there is a row less
                ahead = max(rows - (read == 3), 1) - 1
                assert ahead * read * chosen.block * dtype.itemsize <= 64 * 1024


@pytest.mark.parametrize(("n_rows", "skip", "rows"), [(6, 0, 3), (6, 1, 2), (5, 0, 1), (1, 1, 1)])
def test_nothing_is_read_ahead_where_a_program_has_one_row(device, monkeypatch, n_rows, skip, rows):
    chosen = dataclasses.replace(plan.plan(plan.BACKWARD, 72, BF16, 8), max_programs=5)
    backward = Recorder()
    monkeypatch.setattr(plan, "plan", lambda *_: chosen)
    monkeypatch.setattr(rms_norm, "rms_norm_backward", backward)
    x, w = draw(device, BF16, n_rows, 72), draw(device, F32, 72)
    launch.rms_norm_backward(x, w, x, x if skip else None, EPS, 0.0, True, True)
    assert backward.launches[0][1]["PIPELINE"] == rows
    launch.rms_norm_backward(x, w, x, x if skip else None, EPS, 0.0, True, False)
    assert backward.launches[1][1]["PIPELINE"] == 1


def test_264_partial_sums_take_two_rounds():
    block_p, block_n = plan.PARTIALS_BLOCK
    assert plan.cdiv(264, block_p) == 2
    assert plan.cdiv(576, block_n) == 36
    assert block_p * block_n // plan.PARTIALS_PER_WARP == 8


def test_a_unit_divides_the_length_and_every_stride_and_no_vector_starts_between_two():
    def unit(dtype, n_cols, skipped=0, gap=0):
        wide = torch.empty(2, 3, skipped + n_cols + gap, dtype=dtype)[..., skipped : skipped + n_cols]
        return plan.unit_of(n_cols, torch.empty(2, 3, n_cols, dtype=dtype), None, wide)

    assert [unit(dtype, 4096) for dtype in (BF16, F32, F64)] == [8, 8, 8]
    assert [unit(dtype, 4100) for dtype in (BF16, F32, F64)] == [1, 4, 4]
    assert [unit(dtype, 4098) for dtype in (BF16, F32, F64)] == [1, 1, 1]
    assert [unit(BF16, 4096, skipped) for skipped in (8, 4, 2, 1)] == [8, 1, 1, 1]
    assert [unit(F32, 4096, skipped) for skipped in (8, 4, 2, 1)] == [8, 4, 1, 1]
    # strides allow vectors, the first address does not
    assert [unit(F32, 4096, skipped, 8 - skipped) for skipped in (4, 2)] == [8, 1]


@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
def test_rows_between_two_vectors_take_half_the_registers(device, monkeypatch, dtype):
    def block(x):
        chosen = []

        def choose(*args, chosen_plan=plan.plan):
            chosen.append(chosen_plan(*args))
            return chosen[-1]

        with monkeypatch.context() as patched:
            patched.setattr(plan, "plan", choose)
            launch.rms_norm_forward(x, draw(device, F32, x.shape[-1]), EPS, 0.0, "hf")
        return chosen[0].block // chosen[0].num_warps

    wide = draw(device, dtype, 2, 4096 + 16)
    assert block(wide[:, 8:-8]) == block(draw(device, dtype, 2, 4096)) == 512
    assert block(wide[:, 1:-15]) == block(wide[:, 2:-14]) == 256


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
        unit=4,
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
        names = ("BLOCK_N", "BLOCK_S", "num_warps", "maxnreg", "UNIT", "PIPELINE")
        assert [constants[name] for name in names] == [256, 32, 2, 96, 4, 3]
    ((grid, constants),) = sums.launches
    assert (grid, constants["BLOCK_P"], constants["BLOCK_N"]) == ((6, 1), 16, 128)


def test_rows_in_flight_change_no_bit(device, monkeypatch):
    x, dy, w = draw(device, F32, 7, 70), draw(device, F32, 7, 70), draw(device, F32, 70)
    found = []
    for rows in (1, 2, 3):
        chosen = dataclasses.replace(plan.plan(plan.BACKWARD, 70, F32, 1), pipeline=rows, max_programs=2)
        with monkeypatch.context() as patched:
            patched.setattr(plan, "plan", lambda *_, chosen=chosen: chosen)
            found.append(launch.rms_norm_backward(x, w, dy, None, EPS, 0.0, True, True))
    for dx, dw in found[1:]:
        assert torch.equal(dx, found[0][0])
        assert torch.equal(dw, found[0][1])
