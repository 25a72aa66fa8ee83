"""How programs share rows: no two partial sums meet, and those of an adapter are neighbours."""

import dataclasses
from itertools import pairwise

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from ofa_kernels.triton import launch, plan, shares
from tests.ofa_kernels.bounds import EPS, F32, LAYER, SEED
from tests.ofa_kernels.triton_checks import cut, draw


def share_of(index, n_weights, max_programs):
    p = dataclasses.replace(plan.plan(plan.BACKWARD, 64, F32, 8), max_programs=max_programs)
    weight = torch.empty(n_weights, 64, device=index.device)
    return shares.shares(p, index.numel(), True, weight, index)


@pytest.mark.parametrize("n_rows", [1, 2, 7, 40])
@pytest.mark.parametrize("max_programs", [1, 2, 5, 64])
@pytest.mark.parametrize("n_weights", [1, 3, 1000])
def test_a_slot_is_of_one_program_and_one_adapter(device, n_rows, max_programs, n_weights):
    for index in (
        torch.randint(-1, n_weights + 1, (n_rows,), device=device),
        torch.zeros(n_rows, dtype=torch.int64, device=device),
        torch.arange(n_rows, device=device),  # as many adapters as rows
    ):
        share = share_of(index, n_weights, max_programs)
        assert share.programs <= min(max_programs, n_rows)
        assert share.length * (share.programs - 1) < n_rows <= share.length * share.programs
        order, ranks, starts = (t.tolist() for t in share.segments)
        of_program = [position // share.length for position in range(n_rows)]
        owners = {}  # of the slots: what the kernels do, position by position
        for position, row in enumerate(order):
            slot = of_program[position] + ranks[position]
            adapter = int(index[row]) if 0 <= index[row] < n_weights else n_weights
            assert owners.setdefault(slot, (of_program[position], adapter)) == (of_program[position], adapter)
        assert len(set(owners.values())) == len(owners) and max(owners) < share.slots
        assert share.slots <= share.programs + n_weights
        for a, (start, end) in enumerate(pairwise(starts)):
            if start < end:  # what `sum_segments` reads
                first = start // share.length + ranks[start]
                read = range(first, first + (end - 1) // share.length - start // share.length + 1)
                assert list(read) == [slot for slot, (_, owner) in sorted(owners.items()) if owner == a]


def test_rows_that_owe_no_sum_have_a_program_each(device):
    p, index = plan.plan(plan.BACKWARD, 64, F32, 8), torch.zeros(7000, dtype=torch.int64, device=device)
    weight = torch.empty(3, 64, device=device)
    for given in (None, index):
        share = shares.shares(p, 7000, False, weight, given)
        assert (share.programs, share.segments) == (7000, None)
        assert share.pointers == (given, None, None)
    assert shares.shares(p, 7000, True, weight, None).programs == p.programs(7000)


def test_few_partial_sums_of_an_adapter_are_added_up_by_smaller_blocks(device, monkeypatch):
    blocks = []
    monkeypatch.setattr(
        plan.Builds,
        "launch",
        lambda self, kernel, grid, pointers, integers, given, constants: blocks.append((grid, constants())),
    )
    for n_weights, expected, columns in ((1, plan.PARTIALS_BLOCK, 36), (64, shares.SEGMENTS_BLOCK, 3)):
        index = torch.arange(4096, device=device) % n_weights
        p = plan.plan(plan.BACKWARD, 576, F32, 8)
        out = torch.empty(2, n_weights, 576, device=device)
        share = shares.shares(p, 4096, True, out[0], index)
        share.finish(p, share.partials(out, 2, 576), out)
        ((grid, constants),) = blocks
        assert grid == (2 * n_weights, columns)
        assert (constants["BLOCK_P"], constants["BLOCK_N"]) == expected
        blocks.clear()


@pytest.mark.parametrize("blocks", [False, True])
def test_partial_sums_stay_in_their_slots(device, monkeypatch, blocks):
    handed, guard = [], 64

    def partials(self, x, *sizes):
        count = self.slots * torch.Size(sizes).numel()
        handed.append(torch.full((count + guard,), torch.nan, device=x.device))
        return handed[-1][:count].view(self.slots, *sizes)

    if blocks:
        cut(monkeypatch)
    monkeypatch.setattr(shares.Shares, "partials", partials)
    index = torch.tensor([2, -1, 0, 5, 2, 1, 0], device=device)
    x, w, t = draw(device, F32, 7, 200), draw(device, F32, 3, 200), draw(device, F32, 2, 7, 200)
    launch.rms_norm_backward(x, w, x, None, EPS, 0.0, True, True, None, index)
    launch.rms_norm_backward_tangent(x, w, x, t, None, t, EPS, 0.0, True, index)
    launch.rms_norm_jvp_backward(x, w, t, t, None, EPS, 0.0, True, True, index)
    launch.preconditioned_probes_backward(x, w, t, EPS, 0.0, SEED, index, LAYER, index)
    assert len(handed) == 5
    assert all(sums[-guard:].isnan().all() for sums in handed)
