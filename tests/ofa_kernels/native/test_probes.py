"""The CPU kernels of the probes and the step lengths: the reference's bits, and float64 within bounds."""

import importlib.util

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ofa_kernels import native, reference
from ofa_kernels.dtypes import accumulation_dtype
from tests.ofa_kernels.bounds import (
    BF16,
    EPS,
    F16,
    F32,
    F64,
    LAYER,
    LONG_SIZES,
    SEED,
    SIZES,
    TYPES,
    assert_within,
    doubles,
    type_names,
    unit,
)

pytestmark = [
    pytest.mark.usefixtures("nan_poisoned_empty"),
    pytest.mark.skipif(native.missing() is not None, reason=f"CPU kernels: {native.missing()}"),
]

IDS = torch.tensor([5, -1, 2**63 - 1])
types = pytest.mark.parametrize("types", TYPES, ids=type_names)
dtypes = pytest.mark.parametrize("dtype", [F64, F32, BF16, F16], ids=str)
sizes = pytest.mark.parametrize("size", SIZES + LONG_SIZES)
offsets = pytest.mark.parametrize("offset", [0.0, 1.0])
words = st.integers(-(2**63), 2**63 - 1)


def sign_bits(size, n_probes, dtype=F64):
    """The signs of the rows' probes as [n_probes, rows, size]."""
    return reference.rademacher_signs(size, IDS, n_probes, torch.tensor([LAYER]), SEED, dtype)[0]


def kernels(device):
    """Each way to make signs besides the reference's, and where it wants its tensors."""
    yield native.rademacher, "cpu"
    if importlib.util.find_spec("triton") is not None:
        from ofa_kernels.triton import launch

        yield launch.rademacher, device


# the device is the same for every example
@settings(
    deadline=None,
    derandomize=True,
    max_examples=40,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    columns=st.integers(1, 300),
    ids=st.lists(words, min_size=1, max_size=3),
    n_probes=st.integers(1, 3),
    layers=st.lists(words, min_size=1, max_size=2),
    seed=st.integers(0, 2**64 - 1),
    dtype=st.sampled_from([F64, F32, BF16, F16]),
)
def test_every_backend_makes_the_same_signs(device, columns, ids, n_probes, layers, seed, dtype):
    def signs(rademacher, where):
        tensors = (torch.tensor(values, device=where) for values in (ids, layers))
        return rademacher(columns, next(tensors), n_probes, next(tensors), seed, dtype).cpu()

    expected = signs(reference.rademacher_signs, "cpu")
    for rademacher, where in kernels(device):
        assert torch.equal(signs(rademacher, where), expected)


@dtypes
def test_signs_of_many_columns(dtype):
    call = 2**17 + 5, IDS, 2, torch.tensor([LAYER]), SEED, dtype
    assert torch.equal(native.rademacher(*call), reference.rademacher_signs(*call))


@offsets
@sizes
@types
def test_parity_of_preconditioned_probes(types, size, offset):
    z, weight = torch.randn(3, size).to(types[0]), torch.randn(size).to(types[1])
    got = native.preconditioned_probes(z, weight, EPS, offset, SEED, 2, IDS, LAYER)
    truth = reference.preconditioner(*doubles(z, weight), EPS, offset) * sign_bits(size, 2)
    assert got.dtype == z.dtype
    assert_within(got, truth, truth.abs(), z, z.dtype)


@offsets
@sizes
@types
def test_parity_of_their_backward(set_threads, types, size, offset):
    set_threads(3)  # they share the rows where these are long
    z, weight = torch.randn(3, size).to(types[0]), torch.randn(size).to(types[1])
    dp, n_probes = torch.randn(4, 3, size).to(types[0]), 4
    dz, dw = native.preconditioned_probes_backward(z, weight, dp, EPS, offset, SEED, IDS, LAYER)
    signs = sign_bits(size, n_probes)
    call = doubles(z, weight, signs, dp)
    truth = reference.preconditioned_probes_backward(*call, EPS, offset)
    # the same with every term positive: q = sum |dp|
    z_hat, r = reference.normalise(z.double(), EPS)
    q, w = dp.double().abs().sum(0), (weight.double() + offset).abs()
    dz_scale = r**2 * z_hat.abs() * reference.mean(w * q)
    assert (dz.dtype, dw.dtype) == types
    assert_within(dz, truth[0], dz_scale, z, z.dtype, sums=3, terms=n_probes)
    assert_within(dw, truth[1], (q * r).sum(0), z, weight.dtype, terms=n_probes + len(z))


@sizes
@dtypes
def test_parity_of_probe_dot(dtype, size):
    t = torch.randn(2, 3, size).to(dtype)
    got = native.probe_dot(t, SEED, IDS, LAYER)
    assert got.dtype == accumulation_dtype(t)
    assert_within(got, (t.double() * sign_bits(size, 2)).sum(-1), t.double().abs().sum(-1), t, got.dtype)


@sizes
@dtypes
def test_probe_scale_is_exact(dtype, size):
    scale = torch.randn(2, 3, dtype=accumulation_dtype(torch.empty(0, dtype=dtype)))
    got = native.probe_scale(scale, size, SEED, IDS, LAYER, dtype)
    assert torch.equal(got, (scale[..., None] * sign_bits(size, 2, scale.dtype)).to(dtype))


def walk(steps, size, dtype):
    """States whose second step stands still."""
    states = torch.randn(steps + 1, 3, size).to(dtype)
    states[2] = states[1]
    return states


@sizes
@dtypes
def test_parity_of_step_lengths(dtype, size):
    states = walk(4, size, dtype)
    lengths = native.step_lengths(states)
    truth = reference.step_lengths(states.double())
    assert lengths.dtype == accumulation_dtype(states)
    assert not lengths[1].any()
    assert_within(lengths, truth, truth, states, lengths.dtype)

    dlengths = torch.randn(lengths.shape, dtype=lengths.dtype)
    dstates = native.step_lengths_backward(states, lengths, dlengths)
    call = doubles(states, lengths, dlengths)
    steps, slopes = call[0].diff(dim=0).abs(), torch.where(call[1] > 0, call[2] / call[1], 0).abs()
    pulls = torch.nn.functional.pad(steps * slopes[..., None], (0, 0, 0, 0, 1, 1))
    truth, scale = reference.step_lengths_backward(*call), pulls[1:] + pulls[:-1]
    assert dstates.dtype == dtype
    assert_within(dstates, truth, scale, states, dtype)


@pytest.mark.parametrize("factor", [1e30, 1e-30])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_lengths_neither_overflow_nor_underflow(dtype, factor):
    states = (walk(3, 1100, F32) * factor).to(dtype)
    truth = reference.step_lengths(states.double())
    assert_within(native.step_lengths(states), truth, truth, states, F32)


def test_dot_and_scale_are_each_others_transpose():
    t, scale = torch.randn(4, 3, 70, dtype=F64), torch.randn(4, 3, dtype=F64)
    there = (native.probe_dot(t, SEED, IDS, LAYER) * scale).sum()
    back = (t * native.probe_scale(scale, 70, SEED, IDS, LAYER, F64)).sum()
    assert abs(there - back) <= 8 * 840 * unit(F64) * (t.abs() * scale.abs()[..., None]).sum()
