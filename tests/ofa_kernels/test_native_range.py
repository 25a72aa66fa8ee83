"""What the CPU kernels make of many rows and of large and small numbers, against float64."""

import itertools

import pytest
import torch

from ofa_kernels import native, reference
from tests.ofa_kernels.bounds import BF16, EPS, F32, F64, assert_within, doubles, magnitudes, type_names, unit

pytestmark = [
    pytest.mark.usefixtures("nan_poisoned_empty"),
    pytest.mark.skipif(native.missing() is not None, reason=f"CPU kernels: {native.missing()}"),
]

SEED, LAYER = 2**64 - 3, -2

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
    x_hat, r = reference._normalise(x.double(), EPS)
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

IDS, K = torch.tensor([5, -1, 2**63 - 1]), 2
SHAPES = {"weight": (70,), "weight_dot": (K, 70), **dict.fromkeys(("x_dot", "dy_dot"), (K, 3, 70))}


def signs(z):
    return reference.rademacher_signs(70, IDS, K, torch.tensor([LAYER]), SEED, z.dtype)[0]


def forward(x, weight):
    got = native.rms_norm_forward(x, weight, EPS, 0.0, "fp32")
    yield got, reference.rms_norm(*doubles(x, weight), EPS), magnitudes(x, weight).y, 1


def backward(x, weight, dy):
    got = native.rms_norm_backward(x, weight, dy, None, EPS, 0.0, True, True)
    truth, scale = reference.rms_norm_backward(*doubles(x, weight, dy), EPS), magnitudes(x, weight, 0, dy)
    yield from zip(got, truth, (scale.dx, scale.dw.sum(0)), (3, 2), strict=True)


def jvp(x, weight, x_dot, weight_dot):
    call = x, weight, x_dot, weight_dot
    truth, scale = reference.rms_norm_jvp(*doubles(*call), EPS), magnitudes(x, weight, 0, None, *call[2:])
    yield native.rms_norm_jvp(*call, EPS, 0.0), truth, scale.y_dot, 3


def backward_tangent(x, weight, dy, x_dot, weight_dot, dy_dot):
    call = x, weight, dy, x_dot, weight_dot, dy_dot
    got = native.rms_norm_backward_tangent(*call, EPS, 0.0, True)
    truth = reference.rms_norm_backward_tangent(*doubles(*call), EPS)
    scale = magnitudes(x, weight, 0, *call[2:])
    yield from zip(got, truth, (scale.dx_dot, scale.dw_dot.sum(1)), (6, 3), strict=True)


def jvp_backward(x, weight, dy_dot, x_dot, weight_dot):
    call = x, weight, dy_dot, x_dot, weight_dot
    got = native.rms_norm_jvp_backward(*call, EPS, 0.0, True, True)
    truth = reference.rms_norm_jvp_backward(*doubles(*call), EPS)
    scale = magnitudes(x, weight, 0, *call[2:])
    scales = scale.dx_dot.sum(0), scale.dw_dot.sum((0, 1)), scale.dx, scale.dw.sum(1)
    yield from zip(got, truth, scales, (6, 3, 3, 2), strict=True)


def probes(x, weight):
    truth = reference.preconditioner(*doubles(x, weight), EPS) * signs(x.double())
    yield native.preconditioned_probes(x, weight, EPS, 0.0, SEED, K, IDS, LAYER), truth, truth.abs(), 1


def probes_backward(x, weight, dy_dot):
    got = native.preconditioned_probes_backward(x, weight, dy_dot, EPS, 0.0, SEED, IDS, LAYER)
    z, w, dp = doubles(x, weight, dy_dot)
    truth = reference.preconditioned_probes_backward(z, w, signs(z), dp, EPS)
    (z_hat, r), q = reference._normalise(z, EPS), dp.abs().sum(0)
    scales = r**2 * z_hat.abs() * reference._mean(w.abs() * q), (q * r).sum(0)
    yield from zip(got, truth, scales, (3, 2), strict=True)


def probe_dot(x_dot):
    truth = (x_dot.double() * signs(x_dot.double())).sum(-1)
    yield native.probe_dot(x_dot, SEED, IDS, LAYER), truth, x_dot.double().abs().sum(-1), 1


def step_lengths(x_dot):
    truth = reference.step_lengths(x_dot.double())
    yield native.step_lengths(x_dot), truth, truth, 1


def step_lengths_backward(x_dot, dlengths):
    lengths = native.step_lengths(x_dot)
    z, n, dn = doubles(x_dot, lengths, dlengths)
    pulls = torch.nn.functional.pad(z.diff(dim=0).abs() * (dn / n).abs()[..., None], (0, 0, 0, 0, 1, 1))
    truth = reference.step_lengths_backward(z, n, dn)
    yield native.step_lengths_backward(x_dot, lengths, dlengths), truth, pulls[1:] + pulls[:-1], 1


OPERATORS = [
    forward, backward, jvp, backward_tangent, jvp_backward,
    probes, probes_backward, probe_dot, step_lengths, step_lengths_backward,
]  # fmt: skip
SCALES = [1e-38, 1e-30, 1e-19, 1e-10, 1e10, 1e19, 1e30, 1e37]


LARGE = [1e19, 1e37]


def arguments(operator):
    return operator.__code__.co_varnames[: operator.__code__.co_argcount]


def check_at(operator, types, scales):
    """The operator where those of its arguments that are in `scales` are so large, the others near 1."""
    tensors = []
    for name in arguments(operator):
        shape = (K - 1, 3) if name == "dlengths" else SHAPES.get(name, (3, 70))
        dtype = F32 if name == "dlengths" else types[name.startswith("weight")]
        tensors.append((torch.randn(shape, dtype=F64) * scales.get(name, 1.0)).to(dtype))
    for got, truth, scale, sums in operator(*tensors):
        if scale.max() < torch.finfo(got.dtype).max / 8:  # else terms that cancel may be infinite
            assert_within(got, truth, scale, tensors[0], got.dtype, sums=sums, terms=6)


operators = pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.__name__)
types = pytest.mark.parametrize("types", [(F32, F32), (BF16, BF16), (BF16, F32)], ids=type_names)


@operators
@types
def test_one_argument_of_any_size(operator, types):
    for name, scale in itertools.product(arguments(operator), SCALES):
        check_at(operator, types, {name: scale})


@operators
@types
def test_two_arguments_of_which_one_is_large(operator, types):
    for names in itertools.permutations(arguments(operator), 2):
        for pair in itertools.product(LARGE, [1e-38, 1e-19, *LARGE]):
            check_at(operator, types, dict(zip(names, pair, strict=True)))


@operators
@types
def test_rows_of_any_size_side_by_side(operator, types):
    rows = torch.tensor([[1e-38], [1.0], [1e37]], dtype=F64)
    for name in set(arguments(operator)) - {"weight", "weight_dot", "dlengths"}:
        check_at(operator, types, {name: rows})
