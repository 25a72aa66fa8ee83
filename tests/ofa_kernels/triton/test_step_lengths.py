"""The Triton launchers of the step lengths against the float64 formulas."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from ofa_kernels import reference
from ofa_kernels.dtypes import accumulation_dtype
from ofa_kernels.triton import launch
from tests.ofa_kernels.bounds import BF16, F16, F32, F64
from tests.ofa_kernels.triton_checks import check, double, draw

pytestmark = pytest.mark.usefixtures("nan_poisoned_empty")


@pytest.mark.parametrize("dtype", [F64, F32, BF16, F16], ids=str)
def test_step_lengths(device, dtype):
    for size in (3, 129, 1500):
        for states in (draw(device, dtype, 5, 3, size), draw(device, dtype, 3, 5, size).transpose(0, 1)):
            states[2, 1] = states[1, 1]
            lengths = launch.step_lengths(states)
            truth = reference.step_lengths(states.double())
            assert lengths.dtype == accumulation_dtype(states)
            assert lengths[1, 1] == 0
            check(lengths, truth, truth, states)

            dlengths = torch.randn_like(lengths)
            got = launch.step_lengths_backward(states, lengths, dlengths)
            args = double(states, lengths, dlengths)
            pulls = (args[0].diff(dim=0) * torch.where(truth > 0, args[2] / truth, 0)[..., None]).abs()
            scale = torch.zeros_like(args[0])
            scale[1:] += pulls
            scale[:-1] += pulls
            assert got.dtype == dtype
            check(got, reference.step_lengths_backward(*args), scale, states)


def test_a_single_state_takes_no_step(device):
    states = draw(device, F32, 1, 2, 3)
    lengths = launch.step_lengths(states)
    assert lengths.shape == (0, 2)
    got = launch.step_lengths_backward(states, lengths, lengths)
    assert torch.equal(got, torch.zeros_like(states))
