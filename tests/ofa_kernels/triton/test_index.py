"""A weight for each row, and a seed: every launcher against the float64 formulas, adapter by adapter."""

import dataclasses

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from ofa_kernels import reference
from ofa_kernels.dtypes import accumulation_dtype
from ofa_kernels.triton import launch, plan
from tests.ofa_kernels.bounds import BF16, EPS, F16, F32, F64, LAYER, SEED
from tests.ofa_kernels.triton_checks import Scales, check, cut, double, draw, over_all, over_rows, tangents

pytestmark = pytest.mark.usefixtures("nan_poisoned_empty")

ROWS = 11
INDICES = {
    "random": lambda a: torch.randint(a, (ROWS,)),
    "sorted": lambda a: torch.randint(a, (ROWS,)).sort().values,
    "constant": lambda a: torch.full((ROWS,), a - 1),
}
# types of x and w, columns, weights, order of the index
CASES = [
    ((x, w), 129, 3, "random") for x, w in ((F64, F64), (F64, F32), (F32, F32), (BF16, F32), (F16, BF16))
]
CASES += [((F32, F32), size, 3, "random") for size in (1, 576)]
CASES += [((F32, F32), 70, 1, "constant"), ((F32, F32), 70, 3, "sorted"), ((F32, F32), 70, 3, "constant")]

cases = pytest.mark.parametrize(
    ("types", "size", "n_weights", "order"), CASES, ids=lambda case: str(case).replace("torch.", "")
)


@pytest.fixture(params=["row", "blocks"])
def stages(request, monkeypatch):
    """Rows held whole, or cut into blocks; either way two programs share them."""
    if request.param == "blocks":
        return cut(monkeypatch)

    def two_programs(*args, whole=plan.plan):
        return dataclasses.replace(whole(*args), max_programs=2)

    monkeypatch.setattr(plan, "plan", two_programs)


def adapters(index):
    """(a weight's number, which rows have it) for each that has any."""
    return [(a, index == a) for a in sorted(set(index.tolist()))]


def check_nothing_else(got, index, dim=0):
    """A weight that no row has gets zeros."""
    without = torch.ones(got.shape[dim], dtype=torch.bool, device=got.device).index_fill(0, index, False)
    assert (got.movedim(dim, 0)[without] == 0).all()


@cases
def test_forward(device, stages, types, size, n_weights, order):
    index = INDICES[order](n_weights).to(device)
    x, residual = draw(device, types[0], ROWS, size), draw(device, types[0], ROWS, size)
    w, rstd = draw(device, types[1], n_weights, size), torch.empty(ROWS, dtype=F64, device=device)
    rstd = rstd.to(accumulation_dtype(x))
    for offset, rounding in ((0.0, "hf"), (1.0, "hf"), (0.0, "fp32")):
        plain = launch.rms_norm_forward(x, w, EPS, offset, rounding, rstd, index)
        added, s = launch.add_rms_norm_forward(x, residual, w, EPS, offset, rounding, None, index)
        for y, of in ((plain, x), (added, s)):
            assert (y.dtype, y.shape) == (x.dtype, x.shape)
            for a, rows in adapters(index):
                scale = Scales(of[rows], w[a], None, None, None, None, offset).y
                scale = scale * 2.1 if rounding == "hf" and offset == 0 else scale  # x̂ is rounded too
                check(y[rows], reference.rms_norm(*double(of[rows], w[a]), EPS, offset), scale, x)


@cases
def test_backward(device, stages, types, size, n_weights, order):
    index = INDICES[order](n_weights).to(device)
    x, dy, ds = (draw(device, types[0], ROWS, size) for _ in range(3))
    w, rstd = draw(device, types[1], n_weights, size), None
    for offset, skip, need_dx, need_dw in (
        (0.0, None, True, True),
        (1.0, ds, True, False),
        (1.0, ds, True, True),
    ):
        dx, dw = launch.rms_norm_backward(x, w, dy, skip, EPS, offset, need_dx, need_dw, rstd, index)
        for a, rows in adapters(index):
            scales = Scales(x[rows], w[a], dy[rows], None, None, None, offset)
            true_dx, true_dw = reference.rms_norm_backward(*double(x[rows], w[a], dy[rows]), EPS, offset)
            added = 0 if skip is None else ds[rows].double()
            check(dx[rows], true_dx + added, scales.dx + abs(added), x, factors=4)
            if need_dw:
                check(dw[a], true_dw, over_all(scales.dw), x, factors=1, terms=ROWS)
        assert (dw is None) == (not need_dw)
        if need_dw:
            assert (dw.dtype, dw.shape) == (w.dtype, w.shape)
            check_nothing_else(dw, index)
        rstd = torch.empty(ROWS, dtype=accumulation_dtype(x), device=device)
        launch.rms_norm_forward(x, w, EPS, 0.0, "hf", rstd, index)
    dx, again = launch.rms_norm_backward(x, w, dy, None, EPS, 1.0, False, True, rstd, index)
    assert dx is None and torch.equal(again, dw)


def of_row(t, rows):
    return None if t is None else t[..., rows, :]


def of_weight(t, a):
    return None if t is None else t[..., a, :]


def check_tangents(index, x, w, dy, x_dot, w_dot, dy_dot, offset, up):
    """All three derivatives along tangents; `up` is what the gradient of the first is taken of."""
    y_dot = launch.rms_norm_jvp(x, w, x_dot, w_dot, EPS, offset, index)
    given = x, w, dy, x_dot, w_dot, dy_dot
    dx_dot, dw_dot = launch.rms_norm_backward_tangent(*given, EPS, offset, True, index)
    assert launch.rms_norm_backward_tangent(*given, EPS, offset, False, index)[1] is None
    got = launch.rms_norm_jvp_backward(x, w, up, x_dot, w_dot, EPS, offset, True, True, index)
    k_dims = tuple(range(up.dim() - 2))
    assert dw_dot.shape == got[3].shape == (*up.shape[:-2], *w.shape) and got[1].shape == w.shape
    for a, rows in adapters(index):
        x1, w1, dy1 = x[rows], w[a], dy[rows]
        x_dot1, w_dot1, dy_dot1, up1 = (
            of_row(x_dot, rows),
            of_weight(w_dot, a),
            of_row(dy_dot, rows),
            of_row(up, rows),
        )
        scales = Scales(x1, w1, dy1, x_dot1, w_dot1, dy_dot1, offset)
        truth = reference.rms_norm_jvp(*double(x1, w1, x_dot1, w_dot1), EPS, offset)
        check(of_row(y_dot, rows), truth, scales.y_dot, x, factors=4)
        truth = reference.rms_norm_backward_tangent(
            *double(x1, w1, dy1, x_dot1, w_dot1, dy_dot1), EPS, offset
        )
        check(of_row(dx_dot, rows), truth[0], scales.dx_dot, x, factors=6)
        true_dw_dot = truth[1].expand(*up.shape[:-2], x.shape[-1])
        check(of_weight(dw_dot, a), true_dw_dot, over_rows(scales.dw_dot, x), x, factors=3, terms=ROWS)
        scales = Scales(x1, w1, up1, x_dot1, w_dot1, None, offset)
        truth = reference.rms_norm_jvp_backward(*double(x1, w1, up1, x_dot1, w_dot1), EPS, offset)
        n_tangents = up.numel() // x.numel()
        scale = scales.dx_dot.sum(k_dims) if k_dims else scales.dx_dot
        check(got[0][rows], truth[0], scale, x, 6, n_tangents)
        check(got[1][a], truth[1], over_all(scales.dw_dot), x, factors=3, terms=n_tangents * ROWS)
        check(of_row(got[2], rows), truth[2], scales.dx, x, factors=4)
        check(of_weight(got[3], a), truth[3], over_rows(scales.dw, x), x, factors=1, terms=ROWS)
    for sums, dim in ((dw_dot, -2), (got[1], 0), (got[3], -2)):
        check_nothing_else(sums, index, dim)


@cases
def test_second_order(device, stages, types, size, n_weights, order):
    index = INDICES[order](n_weights).to(device)
    x, dy = draw(device, types[0], ROWS, size), draw(device, types[0], ROWS, size)
    w, w_dot = draw(device, types[1], n_weights, size), draw(device, types[1], 2, n_weights, size)
    x_dot, _, dy_dot = tangents(device, types, (2,), ROWS, size)
    check_tangents(index, x, w, dy, x_dot, w_dot, dy_dot, 1.0, dy_dot)


@pytest.mark.parametrize("k_shape", [(), (2, 2)], ids=str)
def test_tangents_of_any_number_and_absent_ones(device, stages, k_shape):
    index = torch.randint(3, (ROWS,), device=device)
    x, dy, w = draw(device, F32, ROWS, 70), draw(device, F32, ROWS, 70), draw(device, F32, 3, 70)
    x_dot, _, dy_dot = tangents(device, (F32, F32), k_shape, ROWS, 70)
    w_dot = draw(device, F32, *k_shape, 3, 70)
    check_tangents(index, x, w, dy, x_dot, None, dy_dot, 0.0, dy_dot)
    check_tangents(index, x, w, dy, None, w_dot, None, 0.0, dy_dot)


@cases
def test_probes(device, stages, types, size, n_weights, order):
    index = INDICES[order](n_weights).to(device)
    ids = torch.randint(2**33, (ROWS,), device=device)
    seeds = torch.randint(-(2**63), 2**63 - 1, (ROWS,)).to(device)
    z, dp = draw(device, types[0], ROWS, size), draw(device, types[0], 3, ROWS, size)
    w = draw(device, types[1], n_weights, size)
    layers = torch.tensor([LAYER], device=device)
    for seed in (seeds, seeds[:1]):
        signs = reference.rademacher_signs(size, ids, 3, layers, seed, F64)[0]
        p = launch.preconditioned_probes(z, w, EPS, 1.0, seed, 3, ids, LAYER, index)
        dz, dw = launch.preconditioned_probes_backward(z, w, dp, EPS, 1.0, seed, ids, LAYER, index)
        assert (dw.dtype, dw.shape) == (w.dtype, w.shape)
        for a, rows in adapters(index):
            z64, w64, dp64 = double(z[rows], w[a], dp[:, rows])
            truth = reference.preconditioner(z64, w64, EPS, 1.0) * signs[:, rows]
            check(p[:, rows], truth, truth.abs(), z)
            true_dz, true_dw = reference.preconditioned_probes_backward(
                z64, w64, signs[:, rows], dp64, EPS, 1.0
            )
            z_hat, r = reference.normalise(z64, EPS)
            q = dp64.abs().sum(0)
            scale = r**2 * z_hat.abs() * reference.mean((w64 + 1).abs() * q)
            check(dz[rows], true_dz, scale, z, 5, terms=3)
            check(dw[a], true_dw, over_all(r * q), z, factors=1, terms=3 * ROWS)
        check_nothing_else(dw, index)


def signs_of(size, n_probes, ids, seeds):
    """ν [n_probes, rows, size], a seed a row."""
    layers = torch.tensor([LAYER], device=ids.device)
    of_row = [
        reference.rademacher_signs(size, ids[r : r + 1], n_probes, layers, int(seed) % 2**64, F64)[0]
        for r, seed in enumerate(seeds)
    ]
    return torch.cat(of_row, 1)


def test_a_seed_for_each_row_of_one_weight(device, stages):
    ids = torch.arange(ROWS, device=device)
    seeds = torch.arange(ROWS, device=device) * 2**40 - 5
    z, w, dp = draw(device, F32, ROWS, 300), draw(device, F32, 300), draw(device, F32, 2, ROWS, 300)
    signs = signs_of(300, 2, ids, seeds)
    truth = reference.preconditioner(*double(z, w), EPS, 0.0) * signs
    check(launch.preconditioned_probes(z, w, EPS, 0.0, seeds, 2, ids, LAYER), truth, truth.abs(), z)
    _, dw = launch.preconditioned_probes_backward(z, w, dp, EPS, 0.0, seeds, ids, LAYER)
    _, truth = reference.preconditioned_probes_backward(*double(z, w), signs, dp.double(), EPS)
    scale = over_all(reference.normalise(z.double(), EPS)[1] * dp.double().abs().sum(0))
    check(dw, truth, scale, z, terms=2 * ROWS)
    dot = launch.probe_dot(dp, seeds, ids, LAYER)
    check(dot, (dp.double() * signs).sum(-1), dp.double().abs().sum(-1), z)
    scaled = launch.probe_scale(dot, 300, seeds, ids, LAYER, F32)
    assert torch.equal(scaled, (dot[..., None] * signs).float())


def test_a_thousand_weights(device):
    index = torch.tensor([999, 0, 500, 999, 500, 999], device=device)
    x, w, dy = draw(device, F32, 6, 20), draw(device, F32, 1000, 20), draw(device, F32, 6, 20)
    x_hat, _ = reference.normalise(x.double(), EPS)
    for got, of_row in (
        (launch.rms_norm_backward(x, w, dy, None, EPS, 0.0, False, True, None, index)[1], dy * x_hat),
        (
            launch.rms_norm_jvp_backward(x, w, dy[None], x[None], None, EPS, 0.0, False, True, index)[3][0],
            dy * x_hat,
        ),
    ):
        truth = torch.zeros_like(w, dtype=F64)
        for row, a in enumerate(index.tolist()):
            truth[a] += of_row[row].double()
        check(got, truth, truth.abs() + 1, x, terms=3)
        check_nothing_else(got, index)
    y = launch.rms_norm_forward(x, w, EPS, 0.0, "fp32", None, index)
    check(y, w[index].double() * x_hat, (w[index] * x_hat).abs().double(), x)


OUTSIDE = (-1, 3, 2**40, -(2**62), 4)


def test_a_row_out_of_range_is_nan_and_adds_nothing(device, stages):
    index = torch.tensor([0, OUTSIDE[0], 2, *OUTSIDE[1:], 2, 0, 0, 1], device=device)[:ROWS]
    inside = (index >= 0) & (index < 3)
    x, dy, w = draw(device, F32, ROWS, 70), draw(device, F32, ROWS, 70), draw(device, F32, 3, 70)
    x_dot, _, t = tangents(device, (F32, F32), (2,), ROWS, 70)
    w_dot, ids, seeds = draw(device, F32, 2, 3, 70), torch.arange(ROWS, device=device), index

    def everything(rows):
        """(results [..., rows, N], sums over rows) for some of the rows."""
        x1, dy1, x_dot1, t1, i1 = x[rows], dy[rows], x_dot[:, rows], t[:, rows], index[rows]
        dx, dw = launch.rms_norm_backward(x1, w, dy1, None, EPS, 0.0, True, True, None, i1)
        alone, _ = launch.rms_norm_backward(x1, w, dy1, dy1, EPS, 0.0, True, False, None, i1)
        given = x1, w, dy1, x_dot1, w_dot, t1
        dx_dot, dw_dot = launch.rms_norm_backward_tangent(*given, EPS, 0.0, True, i1)
        of_jvp = launch.rms_norm_jvp_backward(x1, w, t1, x_dot1, w_dot, EPS, 0.0, True, True, i1)
        probes = seeds[rows], ids[rows], LAYER, i1
        dz, dw_of_probes = launch.preconditioned_probes_backward(x1, w, t1, EPS, 0.0, *probes)
        results = [
            launch.rms_norm_forward(x1, w, EPS, 0.0, "hf", None, i1),
            launch.add_rms_norm_forward(x1, dy1, w, EPS, 0.0, "hf", None, i1)[0],
            dx,
            alone,
            launch.rms_norm_jvp(x1, w, x_dot1, None, EPS, 0.0, i1),
            launch.rms_norm_jvp(x1, w, None, w_dot, EPS, 0.0, i1),
            dx_dot,
            of_jvp[0],
            of_jvp[2],
            launch.preconditioned_probes(x1, w, EPS, 0.0, seeds[rows], 2, *probes[1:]),
            dz,
        ]
        return results, [dw, dw_dot, of_jvp[1], of_jvp[3], dw_of_probes]

    results, sums = everything(torch.ones_like(inside))
    expected, true_sums = everything(inside)
    for got, truth in zip(results, expected, strict=True):
        assert got[..., ~inside, :].isnan().all()
        assert torch.equal(got[..., inside, :], truth)
    for got, truth in zip(sums, true_sums, strict=True):
        assert not got.isnan().any()
        torch.testing.assert_close(got, truth)


def test_no_rows(device):
    x, w, index = draw(device, F32, 0, 5), draw(device, F32, 3, 5), torch.arange(0, device=device)
    t, w_dot, zero = draw(device, F32, 2, 0, 5), draw(device, F32, 2, 3, 5), torch.zeros(3, 5, device=device)
    assert launch.rms_norm_forward(x, w, EPS, 0.0, "hf", None, index).shape == (0, 5)
    assert torch.equal(launch.rms_norm_backward(x, w, x, None, EPS, 0.0, True, True, None, index)[1], zero)
    assert launch.rms_norm_jvp(x, w, t, w_dot, EPS, 0.0, index).shape == (2, 0, 5)
    _, dw_dot = launch.rms_norm_backward_tangent(x, w, x, t, w_dot, t, EPS, 0.0, True, index)
    assert torch.equal(dw_dot, torch.zeros_like(w_dot))
    _, dw, _, dw_dot = launch.rms_norm_jvp_backward(x, w, t, t, w_dot, EPS, 0.0, True, True, index)
    assert torch.equal(dw, zero) and torch.equal(dw_dot, torch.zeros_like(w_dot))
    _, dw = launch.preconditioned_probes_backward(x, w, t, EPS, 0.0, SEED, index, LAYER, index)
    assert torch.equal(dw, zero)


def test_any_strides(device, stages):
    index, wide = torch.randint(3, (2 * ROWS,), device=device), draw(device, F32, 5, 140)
    index, w, w_dot = index[::2], wide[1:4, ::2], draw(device, F32, 3, 70).expand(2, 3, 70)
    x, dy = draw(device, F32, ROWS, 100)[:, 7:77], draw(device, F32, 70, ROWS).T
    x_dot, dy_dot = (
        draw(device, F32, ROWS, 2, 70).transpose(0, 1),
        draw(device, F32, ROWS, 70).expand(2, -1, -1),
    )
    check_tangents(index, x, w, dy, x_dot, w_dot, dy_dot, 1.0, dy_dot)
    for got, dense in zip(
        launch.rms_norm_backward(x, w, dy, None, EPS, 0.0, True, True, None, index),
        launch.rms_norm_backward(
            *(t.contiguous() for t in (x, w, dy)), None, EPS, 0.0, True, True, None, index.clone()
        ),
        strict=True,
    ):
        assert torch.equal(got, dense)


def test_equal_calls_give_equal_bits(device, stages):
    index = torch.randint(4, (ROWS,), device=device)
    x, dy, w = draw(device, BF16, ROWS, 129), draw(device, BF16, ROWS, 129), draw(device, F32, 4, 129)
    x_dot, _, t = tangents(device, (BF16, F32), (2,), ROWS, 129)
    for call in (
        lambda i: launch.rms_norm_backward(x, w, dy, None, EPS, 0.0, False, True, None, i)[1:],
        lambda i: launch.rms_norm_backward_tangent(x, w, dy, x_dot, None, t, EPS, 0.0, True, i)[1:],
        lambda i: launch.rms_norm_jvp_backward(x, w, t, x_dot, None, EPS, 0.0, True, True, i)[1::2],
        lambda i: launch.preconditioned_probes_backward(x, w, t, EPS, 0.0, SEED, index, LAYER, i)[1:],
    ):
        for once, again in zip(call(index), call(index.clone()), strict=True):
            assert torch.equal(once, again)


@pytest.mark.parametrize("with_rstd", [False, True])
def test_rows_in_flight_change_no_bit(device, monkeypatch, with_rstd):
    index = torch.tensor([1, 0, 0, 2, 1, 1, 0], device=device)
    x, dy, w = draw(device, F32, 7, 72), draw(device, F32, 7, 72), draw(device, F32, 3, 72)
    rstd, found = torch.rand(7, device=device) if with_rstd else None, []
    for rows in (1, 2, 3):
        chosen = dataclasses.replace(plan.plan(plan.BACKWARD, 72, F32, 8), pipeline=rows, max_programs=2)
        with monkeypatch.context() as patched:
            patched.setattr(plan, "plan", lambda *_, chosen=chosen: chosen)
            found.append(launch.rms_norm_backward(x, w, dy, None, EPS, 0.0, True, True, rstd, index))
    for dx, dw in found[1:]:
        assert torch.equal(dx, found[0][0]) and torch.equal(dw, found[0][1])


def test_rows_too_long_for_registers(device):
    size, index = 16411, torch.tensor([1, 0, 1], device=device)
    assert plan.plan(plan.FORWARD, size, F32, 1).stages == plan.BLOCKS
    x, dy, w = draw(device, F32, 3, size), draw(device, F32, 3, size), draw(device, F32, 2, size)
    dx, dw = launch.rms_norm_backward(x, w, dy, None, EPS, 0.0, True, True, None, index)
    for a, rows in adapters(index):
        scales = Scales(x[rows], w[a], dy[rows], None, None, None, 0.0)
        true_dx, true_dw = reference.rms_norm_backward(*double(x[rows], w[a], dy[rows]), EPS)
        check(dx[rows], true_dx, scales.dx, x, factors=4)
        check(dw[a], true_dw, over_all(scales.dw), x, terms=2)
