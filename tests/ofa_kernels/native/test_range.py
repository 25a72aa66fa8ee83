"""What the CPU kernels make of many rows and of large and small numbers, against float64."""

import itertools

import pytest
import torch

from ofa_kernels import native, reference
from tests.ofa_kernels.bounds import BF16, EPS, F32, F64, type_names, unit
from tests.ofa_kernels.range_checks import LAYER, OPERATORS, SCALES, SEED, arguments, check_at

pytestmark = [
    pytest.mark.usefixtures("nan_poisoned_empty"),
    pytest.mark.skipif(native.missing() is not None, reason=f"CPU kernels: {native.missing()}"),
]

# --- sums over many rows ---

ROWS, COLUMNS, CHAIN_TERMS = 10**6, 4, 128
# A chain of n terms of one sign is rounded n - 1 times, each time by at most u of the sum, and going on in
# double adds nothing that shows in float32. A term has up to 7 roundings of its own, the result one: whatever
# the number of rows, the sum is right to (CHAIN_TERMS + 8) u = 8e-6. One chain of 10^6 terms is off by 4e-4.
SUM_ROUNDINGS = CHAIN_TERMS + 8


def one_sign(*shape):
    """Numbers that are not short in binary: sums of them are rounded."""
    return 0.7 + 0.1 * torch.rand(shape)


def weight_gradients(name, rows):
    """Each sum over rows of an operator, and its float64 truth."""
    x, dy, w = one_sign(rows, COLUMNS), one_sign(rows, COLUMNS), one_sign(COLUMNS)
    x_hat, r = reference.normalise(x.double(), EPS)
    dys = dy.expand(2, rows, COLUMNS)
    if name == "rms_norm_backward":
        yield native.rms_norm_backward(x, w, dy, None, EPS, 0.0, True, True)[1], (dy * x_hat).sum(0)
    elif name == "rms_norm_backward_tangent":
        # along dy_dot alone the terms have one sign
        dw_dot = native.rms_norm_backward_tangent(x, w, dy, None, None, dys, EPS, 0.0, True)[1]
        yield from ((each, (dy * x_hat).sum(0)) for each in dw_dot)
    elif name == "rms_norm_jvp_backward":
        # a direction orthogonal to x, so that in a column the terms of dw have one sign, too
        x_dot = (torch.tensor([1.0, -1.0]).repeat(COLUMNS // 2) * x.flip(-1)).expand(2, rows, COLUMNS)
        _, dw, _, dw_dot = native.rms_norm_jvp_backward(x, w, dys, x_dot, None, EPS, 0.0, True, True)
        x_hat_dot = r * (x_dot[0].double() - x_hat * (x_hat * x_dot[0]).mean(-1, keepdim=True))
        yield dw, 2 * (dy * x_hat_dot).sum(0)
        yield from ((each, (dy * x_hat).sum(0)) for each in dw_dot)
    else:
        ids = torch.arange(rows)
        signs = native.rademacher(COLUMNS, ids, 1, torch.tensor([LAYER]), SEED, F32)[0]
        dw = native.preconditioned_probes_backward(x, w, signs * dy, EPS, 0.0, SEED, ids, LAYER)[1]
        yield dw, (dy * r).sum(0)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "name",
    [
        "rms_norm_backward",
        "rms_norm_backward_tangent",
        "rms_norm_jvp_backward",
        "preconditioned_probes_backward",
    ],
)
def test_sums_over_rows_are_right_however_many_there_are(set_threads, name, threads):
    set_threads(threads)
    for got, truth in weight_gradients(name, ROWS):
        relative = ((got - truth) / truth).abs().max()
        assert relative <= SUM_ROUNDINGS * unit(F32), f"{relative:.2g}"


# --- large and small numbers ---

LARGE = [1e19, 1e37]
operators = pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.__name__)
types = pytest.mark.parametrize("types", [(F32, F32), (BF16, BF16), (BF16, F32)], ids=type_names)


@operators
@types
def test_one_argument_of_any_size(operator, types):
    for name, scale in itertools.product(arguments(operator), SCALES):
        check_at({name: scale}, native, operator, types)


@operators
@types
def test_two_arguments_of_which_one_is_large(operator, types):
    for names in itertools.permutations(arguments(operator), 2):
        for pair in itertools.product(LARGE, [1e-38, 1e-19, *LARGE]):
            check_at(dict(zip(names, pair, strict=True)), native, operator, types)


@operators
@types
def test_rows_of_any_size_side_by_side(operator, types):
    rows = torch.tensor([[1e-38], [1.0], [1e37]], dtype=F64)
    for name in set(arguments(operator)) - {"weight", "weight_dot", "dlengths"}:
        check_at({name: rows}, native, operator, types)
