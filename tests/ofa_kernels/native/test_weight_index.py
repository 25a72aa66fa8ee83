"""The CPU kernels with a weight and a seed for each row.

A row has the bits that a call with its weight alone gives it, which other tests hold against float64. So have
the sums over the rows of a weight on one thread; on several they are held against float64.
"""

import pytest
import torch

from ofa_kernels import native, reference
from tests.ofa_kernels.bounds import (
    BF16,
    EPS,
    F16,
    F32,
    F64,
    LAYER,
    SEED,
    TYPES,
    assert_within,
    doubles,
    magnitudes,
    type_names,
)
from tests.ofa_kernels.native_calls import same_bits

pytestmark = [
    pytest.mark.usefixtures("nan_poisoned_empty"),
    pytest.mark.skipif(native.missing() is not None, reason=f"CPU kernels: {native.missing()}"),
]

K = 2
INDICES = {
    "random": lambda rows, n: torch.randint(n, (rows,)),
    "sorted": lambda rows, n: torch.randint(n, (rows,)).sort().values,
    "reversed": lambda rows, n: torch.randint(n, (rows,)).sort(descending=True).values,
    "constant": lambda rows, n: torch.full((rows,), n - 1),
    "first and last": lambda rows, n: torch.arange(rows) % 2 * (n - 1),
}
# each with a weight of [N], or [A, N] with an index; whether each result belongs to weights, not to rows
OPERATORS = {
    "forward": (
        lambda t, index: (
            native.rms_norm_forward(t["x"], t["w"], EPS, t["offset"], "hf", t["rstd"], index),
            t["rstd"].clone(),
            *native.add_rms_norm_forward(t["x"], t["dy"], t["w"], EPS, t["offset"], "fp32", index=index),
        ),
        (False, False, False, False),
    ),
    "backward": (
        lambda t, index: native.rms_norm_backward(
            t["x"], t["w"], t["dy"], t["ds"], EPS, t["offset"], True, True, index=index
        ),
        (False, True),
    ),
    "backward of the rows alone": (
        lambda t, index: native.rms_norm_backward(
            t["x"], t["w"], t["dy"], None, EPS, t["offset"], True, False, index=index
        )[:1],
        (False,),
    ),
    "backward of the weights alone": (
        lambda t, index: native.rms_norm_backward(
            t["x"], t["w"], t["dy"], None, EPS, t["offset"], False, True, index=index
        )[1:],
        (True,),
    ),
    "jvp": (
        lambda t, index: (
            native.rms_norm_jvp(t["x"], t["w"], t["x_dot"], t["w_dot"], EPS, t["offset"], index),
            native.rms_norm_jvp(t["x"], t["w"], t["x_dot"], None, EPS, t["offset"], index),
            native.rms_norm_jvp(t["x"], t["w"], None, t["w_dot"], EPS, t["offset"], index),
        ),
        (False, False, False),
    ),
    "backward_tangent": (
        lambda t, index: native.rms_norm_backward_tangent(
            t["x"], t["w"], t["dy"], t["x_dot"], t["w_dot"], t["dy_dot"], EPS, t["offset"], True, index
        ),
        (False, True),
    ),
    "backward_tangent along x": (
        lambda t, index: native.rms_norm_backward_tangent(
            t["x"], t["w"], t["dy"], t["x_dot"], None, None, EPS, t["offset"], True, index
        ),
        (False, True),
    ),
    "backward_tangent along dy": (
        lambda t, index: native.rms_norm_backward_tangent(
            t["x"], t["w"], t["dy"], None, None, t["dy_dot"], EPS, t["offset"], True, index
        ),
        (False, True),
    ),
    "jvp_backward": (
        lambda t, index: native.rms_norm_jvp_backward(
            t["x"], t["w"], t["dy_dot"], t["x_dot"], t["w_dot"], EPS, t["offset"], True, True, index
        ),
        (False, True, False, True),
    ),
    "jvp_backward in w_dot": (
        lambda t, index: native.rms_norm_jvp_backward(
            t["x"], t["w"], t["dy_dot"], t["x_dot"], None, EPS, t["offset"], False, True, index
        )[2:],
        (False, True),
    ),
    "probes": (
        lambda t, index: (
            native.preconditioned_probes(t["x"], t["w"], EPS, t["offset"], SEED, K, t["ids"], LAYER, index),
        ),
        (False,),
    ),
    "probes_backward": (
        lambda t, index: native.preconditioned_probes_backward(
            t["x"], t["w"], t["dy_dot"], EPS, t["offset"], SEED, t["ids"], LAYER, index
        ),
        (False, True),
    ),
}
operators = pytest.mark.parametrize("operator", OPERATORS)
orders = pytest.mark.parametrize("order", INDICES)
types = pytest.mark.parametrize("types", [*TYPES, (F32, BF16), (BF16, F64), (F64, BF16)], ids=type_names)


def tensors(rows, columns, n_weights, types=(F32, F32), offset=1.0):
    """What the operators are called with, by name."""
    acc = F64 if types[0] == F64 else F32
    fresh = {name: torch.randn(rows, columns).to(types[0]) for name in ("x", "dy", "ds")}
    fresh |= {name: torch.randn(K, rows, columns).to(types[0]) for name in ("x_dot", "dy_dot")}
    fresh |= {"w": torch.randn(n_weights, columns), "w_dot": torch.randn(K, n_weights, columns)}
    fresh |= {name: fresh[name].to(types[1]) for name in ("w", "w_dot")}
    return fresh | {"rstd": torch.empty(rows, dtype=acc), "ids": torch.arange(rows) - 5, "offset": offset}


def of_weight(t, rows, weight):
    """The same for these rows alone, which have that weight."""
    own = {name: t[name][..., rows, :] for name in ("x", "dy", "ds", "x_dot", "dy_dot")}
    own |= {name: t[name][..., weight, :] for name in ("w", "w_dot")}
    return own | {"rstd": t["rstd"][rows], "ids": t["ids"][rows], "offset": t["offset"]}


def weights_and_rows(index):
    """Each weight in use, and its rows."""
    return [(weight, (index == weight).nonzero().flatten()) for weight in index.unique().tolist()]


def part(got, of_weights, weight, rows):
    """Of a result with an index: what belongs to a weight or to its rows."""
    if of_weights:
        return got[..., weight, :]
    return got[rows] if got.dim() == 1 else got[..., rows, :]


def check_alone(operator, t, index):
    """Everything has the bits of a call with one weight; weights without rows get zeros."""
    call, of_weights = OPERATORS[operator]
    got = call(t, index)
    assert len(got) == len(of_weights)
    used = torch.zeros(len(t["w"]), dtype=torch.bool).index_fill(0, index, True)
    for weight, rows in weights_and_rows(index):
        expected = call(of_weight(t, rows, weight), None)
        parts = [part(*of, weight, rows) for of in zip(got, of_weights, strict=True)]
        assert all(a.dtype == b.dtype for a, b in zip(parts, expected, strict=True))
        assert same_bits(parts, expected), weight
    for result, is_of_weights in zip(got, of_weights, strict=True):
        assert not is_of_weights or not result[..., ~used, :].any()


@operators
@orders
@types
def test_a_row_is_that_of_its_weight_alone(set_threads, types, order, operator):
    set_threads(1)
    for rows, columns, n_weights, offset in [
        (7, 70, 3, 1.0),
        (9, 33, 1, 0.0),
        (8, 129, 1000, 0.0),
        (1, 1, 2, 1.0),
    ]:
        check_alone(
            operator, tensors(rows, columns, n_weights, types, offset), INDICES[order](rows, n_weights)
        )


@operators
@orders
def test_sums_of_more_rows_than_a_chain_has(set_threads, order, operator):
    set_threads(1)
    check_alone(operator, tensors(700, 5, 4), INDICES[order](700, 4))


@operators
@pytest.mark.parametrize("types", [(F32, F32), (BF16, F32)], ids=type_names)
def test_rows_that_are_computed_in_double(set_threads, types, operator):
    set_threads(1)
    t = tensors(12, 70, 3, types, 0.0)
    t["x"][::3] *= 1e-36  # products of them underflow in float32
    t["w"][1] *= 1e28
    check_alone(operator, t, torch.arange(12).flip(0) % 3)


@operators
@orders
@pytest.mark.parametrize("n_weights", [1, 3, 64, 1000])
def test_threads_change_only_the_order_of_sums(set_threads, n_weights, order, operator):
    rows, columns = 301, 130
    t, index = tensors(rows, columns, n_weights), INDICES[order](rows, n_weights)
    call, of_weights = OPERATORS[operator]
    set_threads(1)
    check_alone(operator, t, index)
    alone = call(t, index)
    for threads in (2, 3, 7, 64):
        set_threads(threads)
        got = call(t, index)
        assert same_bits(call(t, index), got)
        for result, expected, is_of_weights in zip(got, alone, of_weights, strict=True):
            if is_of_weights:  # terms of both signs, in two orders
                torch.testing.assert_close(
                    result, expected, rtol=1e-5, atol=1e-4 * expected.abs().max().item()
                )
            else:
                assert torch.equal(result, expected)


@orders
@types
def test_parity_on_several_threads(set_threads, types, order):
    set_threads(3)
    rows, n_weights = 301, 5
    t, index = tensors(rows, 130, n_weights, types), INDICES[order](rows, n_weights)
    got = {name: call(t, index) for name, (call, _) in OPERATORS.items()}
    signs = reference.rademacher_signs(130, t["ids"], K, torch.tensor([LAYER]), SEED, F64)[0]
    for weight, of in weights_and_rows(index):
        own = of_weight(t, of, weight)
        x, w, dy, x_dot, w_dot, dy_dot = (own[name] for name in ("x", "w", "dy", "x_dot", "w_dot", "dy_dot"))

        def check(name, truths, scales, sums, of=of, weight=weight, x=x):
            for i, truth in enumerate(truths):
                result = part(got[name][i], OPERATORS[name][1][i], weight, of)
                assert_within(result, truth, scales[i], x, result.dtype, sums=sums[i], terms=K * len(of))

        scale = magnitudes(x, w, 1.0)
        check("forward", [reference.rms_norm(*doubles(x, w), EPS, 1.0)], [scale.y], [1])
        scale, call = magnitudes(x, w, 1.0, dy), doubles(x, w, dy)
        dx, dw = reference.rms_norm_backward(*call, EPS, 1.0)
        ds = own["ds"].double()
        check("backward", [dx + ds, dw], [scale.dx + ds.abs(), scale.dw.sum(0)], [3, 2])
        scale = magnitudes(x, w, 1.0, None, x_dot, w_dot)
        check("jvp", [reference.rms_norm_jvp(*doubles(x, w, x_dot, w_dot), EPS, 1.0)], [scale.y_dot], [3])
        call = x, w, dy, x_dot, w_dot, dy_dot
        truths, scale = (
            reference.rms_norm_backward_tangent(*doubles(*call), EPS, 1.0),
            magnitudes(x, w, 1.0, *call[2:]),
        )
        check("backward_tangent", truths, [scale.dx_dot, scale.dw_dot.sum(1)], [6, 3])
        call = x, w, dy_dot, x_dot, w_dot
        truths, scale = (
            reference.rms_norm_jvp_backward(*doubles(*call), EPS, 1.0),
            magnitudes(x, w, 1.0, *call[2:]),
        )
        scales = scale.dx_dot.sum(0), scale.dw_dot.sum((0, 1)), scale.dx, scale.dw.sum(1)
        check("jvp_backward", truths, scales, [6, 3, 3, 2])
        z, w, dp = doubles(x, w, dy_dot)
        truth = reference.preconditioner(z, w, EPS, 1.0) * signs[:, of]
        check("probes", [truth], [truth.abs()], [1])
        truths = reference.preconditioned_probes_backward(z, w, signs[:, of], dp, EPS, 1.0)
        (z_hat, r), q = reference.normalise(z, EPS), dp.abs().sum(0)
        scales = r**2 * z_hat.abs() * reference.mean((w + 1).abs() * q), (q * r).sum(0)
        check("probes_backward", truths, scales, [3, 2])


@operators
@pytest.mark.parametrize("n_weights", [1, 3, 1000])
def test_no_rows(n_weights, operator):
    call, of_weights = OPERATORS[operator]
    t = tensors(0, 70, n_weights)
    for result, is_of_weights in zip(call(t, torch.empty(0, dtype=torch.int64)), of_weights, strict=True):
        assert result.shape[-2:] == (n_weights, 70) if is_of_weights else 0 in result.shape
        assert not result.any()


@operators
@pytest.mark.parametrize("wrong", [-1, 3, -(2**63), 2**63 - 1])
@pytest.mark.parametrize("n_weights", [1, 3])
def test_an_index_out_of_range_is_an_error(operator, wrong, n_weights):
    wrong = n_weights if wrong == 3 else wrong
    for row in (0, 4, 6):
        index = torch.arange(7) % n_weights
        index[row] = wrong
        words = f"must be from 0 to {n_weights - 1}, the rows of weight, got {wrong} at row {row} of 7"
        with pytest.raises(IndexError, match=words):
            OPERATORS[operator][0](tensors(7, 70, n_weights), index)


@operators
def test_an_index_that_does_not_fit_is_an_error(operator):
    call, t = OPERATORS[operator][0], tensors(7, 70, 3)
    for index in (torch.zeros(6, dtype=torch.int64), torch.zeros(7, dtype=torch.int32)):
        with pytest.raises(
            ValueError, match=r"weight and index must be \[A, N\] and int64 \[rows\], got \(3, 70\)"
        ):
            call(t, index)
    with pytest.raises(ValueError, match=r"got \(3, 69\)"):
        call(t | {"w": t["w"][:, 1:]}, torch.zeros(7, dtype=torch.int64))


SEEDED = {
    "preconditioned_probes": lambda t, seed: native.preconditioned_probes(
        t["x"], t["w"][0], EPS, 1.0, seed, K, t["ids"], LAYER
    ),
    "preconditioned_probes_backward": lambda t, seed: native.preconditioned_probes_backward(
        t["x"], t["w"][0], t["dy_dot"], EPS, 1.0, seed, t["ids"], LAYER
    )[0],
    "probe_dot": lambda t, seed: native.probe_dot(t["x_dot"], seed, t["ids"], LAYER)[..., None],
    "probe_scale": lambda t, seed: native.probe_scale(t["x_dot"][..., 0], 70, seed, t["ids"], LAYER, F16),
}


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("name", SEEDED)
def test_a_row_has_the_probes_of_its_seed(name, large):
    t, seeds = tensors(5, 70, 1), torch.tensor([3, -1, 2**63 - 1, -(2**63), 3])
    t["x"][2] *= 1e-36 if large else 1  # computed in double
    t["x_dot"][:, 3] *= 1e38 if large else 1
    got = SEEDED[name](t, seeds)
    for row, seed in enumerate(seeds.tolist()):
        expected = SEEDED[name](of_weight(t, [row], slice(None)), seed % 2**64)
        assert torch.equal(got[..., row, :], expected[..., 0, :])
    assert not torch.equal(got, SEEDED[name](t, 3))
    with pytest.raises(ValueError, match=r"seed must be one or one a row, got \(4,\) for 5 rows"):
        SEEDED[name](t, seeds[:4])
