"""Every Triton launcher against the float64 formulas, for whole rows and for rows cut into blocks."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from ofa_kernels import reference
from ofa_kernels.dtypes import accumulation_dtype
from ofa_kernels.triton import launch, plan
from tests.ofa_kernels.bounds import BF16, EPS, F16, F32, F64, LAYER, SEED, steps_apart
from tests.ofa_kernels.triton_checks import (
    Scales,
    check,
    check_backward_tangent,
    check_forward,
    check_jvp,
    check_jvp_backward,
    cut,
    double,
    draw,
    over_all,
    tangents,
)

pytestmark = pytest.mark.usefixtures("nan_poisoned_empty")

TYPES = [(x, w) for x in (F64, F32, BF16, F16) for w in (F64, F32, BF16, F16)]
CASES = [(types, 129) for types in TYPES] + [((F32, F32), n) for n in (1, 3, 70, 576)]

cases = pytest.mark.parametrize(("types", "size"), CASES, ids=lambda case: str(case).replace("torch.", ""))
k_shapes = pytest.mark.parametrize("k_shape", [(), (3,), (2, 2)], ids=str)


@pytest.fixture(params=["row", "blocks"])
def stages(request, monkeypatch):
    """Rows held whole, a program each, or cut into blocks."""
    if request.param == "blocks":
        cut(monkeypatch)


@cases
def test_forward(device, stages, types, size):
    x, residual, w = (draw(device, *args) for args in ((types[0], 3, size),) * 2 + ((types[1], size),))
    for offset in (0.0, 1.0):
        for rounding in ("hf", "fp32"):
            check_forward(x, w, offset, rounding)
    check_forward(x, w, 0.0, "hf", residual)


def test_hf_rounds_where_llama_does_and_gemma_does_not(device):
    x = draw(device, F32, 4, 129)
    x, w = (x + 0.1 * x.sign()).half(), draw(device, F16, 129)  # so that no x̂ is subnormal
    x_hat, _ = reference.normalise(x.double(), EPS)
    late, early = (w.double() * x_hat).half(), (w.double() * x_hat.half().double()).half()
    gemma = ((w.double() + 1) * x_hat).half()
    assert (steps_apart(early, late) > 0).sum() > 50
    for offset, rounding, expected, most in ((0, "hf", early, 2), (0, "fp32", late, 1), (1, "hf", gemma, 1)):
        steps = steps_apart(launch.rms_norm_forward(x, w, EPS, float(offset), rounding), expected)
        # an rstd that is an ULP of float32 off takes a value over the boundary between two neighbours in
        # 2^-11 of all places, 0.25 of these 516; a step of the rounded x̂ is up to two of y
        assert steps.max() <= most and (steps > 0).sum() <= 5


@cases
def test_backward(device, stages, types, size):
    x, dy, ds = (draw(device, types[0], 3, size) for _ in range(3))
    w = draw(device, types[1], size)
    for offset, skip, need_dx, need_dw in ((0, None, 1, 1), (1, ds, 1, 0), (1, None, 0, 1)):
        scales = Scales(x, w, dy, None, None, None, offset)
        true_dx, true_dw = reference.rms_norm_backward(*double(x, w, dy), EPS, offset)
        dx, dw = launch.rms_norm_backward(x, w, dy, skip, EPS, float(offset), bool(need_dx), bool(need_dw))
        assert ((dx is None), (dw is None)) == (not need_dx, not need_dw)
        if need_dx:
            assert (dx.dtype, dx.is_contiguous()) == (x.dtype, True)
            added = 0 if skip is None else ds.double()
            check(dx, true_dx + added, scales.dx + abs(added), x, factors=4)
        if need_dw:
            assert dw.dtype == w.dtype
            check(dw, true_dw, over_all(scales.dw), x, factors=1, terms=3)


@cases
def test_second_order(device, stages, types, size):
    x, dy, w = draw(device, types[0], 3, size), draw(device, types[0], 3, size), draw(device, types[1], size)
    x_dot, w_dot, dy_dot = tangents(device, types, (2,), 3, size)
    check_jvp(x, w, x_dot, w_dot, 1.0)
    check_backward_tangent(x, w, dy, x_dot, w_dot, dy_dot, 1.0)
    check_jvp_backward(x, w, dy_dot, x_dot, w_dot, 1.0)


@k_shapes
def test_tangents_of_any_number_and_absent_ones(device, stages, k_shape):
    x, dy, w = draw(device, F32, 3, 2, 70), draw(device, F32, 3, 2, 70), draw(device, F32, 70)
    x_dot, w_dot, dy_dot = tangents(device, (F32, F32), k_shape, 3, 2, 70)
    check_jvp(x, w, x_dot, w_dot, 0.0)
    check_jvp(x, w, x_dot, None, 0.0)
    check_jvp(x, w, None, w_dot, 0.0)
    for given in ((1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1)):
        some = (t if g else None for t, g in zip((x_dot, w_dot, dy_dot), given, strict=True))
        check_backward_tangent(x, w, dy, *some, 0.0, need_dw=given != (1, 0, 1))
    check_jvp_backward(x, w, dy_dot, x_dot, w_dot, 0.0)
    check_jvp_backward(x, w, dy_dot, x_dot, None, 0.0, need_dw_dot=False)
    check_jvp_backward(x, w, dy_dot, None, w_dot, 0.0, need_dw=False)
    check_jvp_backward(x, w, dy_dot, None, w_dot, 0.0)


def test_no_tangents(device):
    x, w = draw(device, F32, 2, 3), draw(device, F32, 3)
    x_dot, w_dot, dy_dot = tangents(device, (F32, F32), (0,), 2, 3)
    assert launch.rms_norm_jvp(x, w, x_dot, w_dot, EPS, 0.0).shape == (0, 2, 3)
    got = launch.rms_norm_backward_tangent(x, w, x, x_dot, w_dot, dy_dot, EPS, 0.0, True)
    assert [t.shape for t in got] == [(0, 2, 3), (0, 3)]
    dx, dw, dx_dot, dw_dot = launch.rms_norm_jvp_backward(x, w, dy_dot, x_dot, w_dot, EPS, 0.0, True, True)
    assert torch.equal(dx, torch.zeros_like(x))
    assert torch.equal(dw, torch.zeros_like(w))
    assert (dx_dot.shape, dw_dot.shape) == ((0, 2, 3), (0, 3))


LAYOUTS = {
    "one dimension": lambda d: draw(d, F32, 70),
    "every second column": lambda d: draw(d, F32, 3, 140)[:, ::2],
    "every second row": lambda d: draw(d, F32, 6, 70)[::2],
    "columns of a wider tensor": lambda d: draw(d, F32, 3, 100)[:, 7:77],
    "transposed": lambda d: draw(d, F32, 70, 3).T,
    "permuted": lambda d: draw(d, F32, 2, 70, 3).transpose(1, 2),
    "one row expanded": lambda d: draw(d, F32, 70).expand(3, 70),
    "one column expanded": lambda d: draw(d, F32, 3, 1).expand(3, 70),
    "one column, transposed": lambda d: draw(d, F32, 1, 4).T,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(device, stages, layout):
    x, dy, ds = (LAYOUTS[layout](device) for _ in range(3))
    size = x.shape[-1]
    w = draw(device, F32, 2 * size)[::2]
    check_forward(x, w, 0.0, "hf", residual=dy)
    dx, dw = launch.rms_norm_backward(x, w, dy, ds, EPS, 0.0, True, True)
    dense = (t.contiguous() for t in (x, w, dy, ds))
    true_dx, true_dw = launch.rms_norm_backward(*dense, EPS, 0.0, True, True)
    assert torch.equal(dx, true_dx)
    assert torch.equal(dw, true_dw)
    x_dot = LAYOUTS[layout](device).expand(2, *x.shape)
    w_dot = draw(device, F32, size).expand(2, size)
    dy_dot = torch.stack([LAYOUTS[layout](device) for _ in range(4)])[::2]
    check_jvp(x, w, x_dot, w_dot, 0.0)
    check_backward_tangent(x, w, dy, x_dot, w_dot, dy_dot, 0.0)
    check_jvp_backward(x, w, dy_dot, x_dot, w_dot, 0.0)


def test_every_argument_has_strides_of_its_own(device, stages):
    def strided(gap, *shape):
        return draw(device, F32, *shape[:-1], shape[-1] + gap)[..., : shape[-1]]

    x, dy, ds, w = strided(1, 3, 70), strided(2, 3, 70), strided(3, 3, 70), draw(device, F32, 70)
    x_dot, w_dot, dy_dot = strided(4, 2, 3, 70), strided(5, 2, 70), strided(6, 2, 3, 70)
    check_forward(x, w, 0.0, "hf", residual=dy)
    for got, dense in zip(
        launch.rms_norm_backward(x, w, dy, ds, EPS, 0.0, True, True),
        launch.rms_norm_backward(*(t.contiguous() for t in (x, w, dy, ds)), EPS, 0.0, True, True),
        strict=True,
    ):
        assert torch.equal(got, dense)
    check_jvp(x, w, x_dot, w_dot, 0.0)
    check_backward_tangent(x, w, dy, x_dot, w_dot, dy_dot, 0.0)
    check_jvp_backward(x, w, dy_dot, x_dot, w_dot, 0.0)


def test_more_partial_sums_than_one_block_of_them(device):
    rows = 2 * plan.PARTIALS_BLOCK[0] + 3
    x, dy, w = draw(device, F32, rows, 3), draw(device, F32, rows, 3), draw(device, F32, 3)
    _, dw = launch.rms_norm_backward(x, w, dy, None, EPS, 0.0, False, True)
    _, truth = reference.rms_norm_backward(*double(x, w, dy), EPS)
    check(dw, truth, over_all(Scales(x, w, dy, None, None, None, 0.0).dw), x, terms=rows)


def test_rows_are_read_in_place(device):
    t = draw(device, F32, 4, 6, 8)
    for view, sizes in (
        (t[:, ::2, 1:7], (4, 3)),
        (t.transpose(0, 1), (6, 4)),
        (t[0].expand(5, 6, 8), (5, 6)),
        (t[0, 0].expand(2, 3, 8), (6,)),
    ):
        assert plan.as_rows(view, *sizes).data_ptr() == view.data_ptr()


def test_no_rows(device, stages):
    x, w = draw(device, F32, 0, 3, 5), draw(device, F32, 5)
    x_dot, w_dot, dy_dot = tangents(device, (F32, F32), (2,), 0, 3, 5)
    zero = torch.zeros_like(w)
    assert launch.rms_norm_forward(x, w, EPS, 0.0, "hf").shape == x.shape
    assert [t.shape for t in launch.add_rms_norm_forward(x, x, w, EPS, 0.0, "hf")] == [x.shape] * 2
    dx, dw = launch.rms_norm_backward(x, w, x, None, EPS, 0.0, True, True)
    assert dx.shape == x.shape
    assert torch.equal(dw, zero)
    assert launch.rms_norm_jvp(x, w, x_dot, w_dot, EPS, 0.0).shape == x_dot.shape
    dx_dot, dw_dot = launch.rms_norm_backward_tangent(x, w, x, x_dot, w_dot, dy_dot, EPS, 0.0, True)
    assert dx_dot.shape == x_dot.shape
    assert torch.equal(dw_dot, torch.zeros_like(w_dot))
    dx, dw, dx_dot, dw_dot = launch.rms_norm_jvp_backward(x, w, dy_dot, x_dot, w_dot, EPS, 0.0, True, True)
    assert (dx.shape, dx_dot.shape) == (x.shape, x_dot.shape)
    assert torch.equal(dw, zero)
    assert torch.equal(dw_dot, torch.zeros_like(w_dot))
    z, ids = x.reshape(0, 5), torch.arange(0, device=device)
    assert launch.preconditioned_probes(z, w, EPS, 0.0, SEED, 2, ids, LAYER).shape == (2, 0, 5)
    dp = z.expand(2, 0, 5)
    dz, dw = launch.preconditioned_probes_backward(z, w, dp, EPS, 0.0, SEED, ids, LAYER)
    assert dz.shape == z.shape
    assert torch.equal(dw, zero)
    assert launch.probe_dot(dp, SEED, ids, LAYER).shape == (2, 0)
    assert launch.probe_scale(dp[..., 0], 5, SEED, ids, LAYER, F32).shape == (2, 0, 5)
    assert launch.step_lengths(z.expand(4, 0, 5)).shape == (3, 0)


def test_sums_over_rows_have_the_same_bits_every_time(device, stages):
    x, dy, w = draw(device, BF16, 5, 129), draw(device, BF16, 5, 129), draw(device, F32, 129)
    x_dot, w_dot, dy_dot = tangents(device, (BF16, F32), (2,), 5, 129)
    for call in (
        lambda: launch.rms_norm_backward(x, w, dy, None, EPS, 0.0, False, True)[1],
        lambda: launch.rms_norm_backward_tangent(x, w, dy, x_dot, w_dot, dy_dot, EPS, 0.0, True)[1],
        lambda: launch.rms_norm_jvp_backward(x, w, dy_dot, x_dot, w_dot, EPS, 0.0, True, True)[1],
    ):
        assert torch.equal(call(), call())


@pytest.mark.parametrize("size", [1, 2, 3, 64, 576, 4096, 16411])
def test_rstd_is_within_one_ulp(device, size):
    rows = 300 if size < 5000 else 8
    x = torch.randn(rows, size, device=device) * torch.logspace(-4, 4, rows, device=device)[:, None]
    x[:, 0] = 1
    weight = torch.ones(size, device=device)
    rstd = launch.rms_norm_forward(x, weight, EPS, 0.0, "fp32")[:, 0]
    truth = reference.normalise(x.double(), EPS)[1][:, 0]
    ulp = torch.exp2(torch.floor(torch.log2(truth)) - 23)
    assert ((rstd.double() - truth).abs() <= ulp).all()


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e20, float("inf"), float("nan")])
def test_extreme_rows_are_nan_where_eager_pytorch_is(device, stages, value):
    x, dy, w = draw(device, F32, 4, 129), draw(device, F32, 4, 129), draw(device, F32, 129)
    x[1], x[2, 5] = value, value
    x_dot, w_dot, dy_dot = tangents(device, (F32, F32), (2,), 4, 129)
    pairs = zip(
        (
            launch.rms_norm_forward(x, w, EPS, 0.0, "hf"),
            *launch.rms_norm_backward(x, w, dy, None, EPS, 0.0, True, True),
            launch.rms_norm_jvp(x, w, x_dot, w_dot, EPS, 0.0),
            *launch.rms_norm_backward_tangent(x, w, dy, x_dot, w_dot, dy_dot, EPS, 0.0, True),
            *launch.rms_norm_jvp_backward(x, w, dy_dot, x_dot, w_dot, EPS, 0.0, True, True),
        ),
        (
            reference.rms_norm(x, w, EPS),
            *reference.rms_norm_backward(x, w, dy, EPS),
            reference.rms_norm_jvp(x, w, x_dot, w_dot, EPS),
            *reference.rms_norm_backward_tangent(x, w, dy, x_dot, w_dot, dy_dot, EPS),
            *reference.rms_norm_jvp_backward(x, w, dy_dot, x_dot, w_dot, EPS),
        ),
        strict=True,
    )
    for got, eager in pairs:
        assert torch.equal(got.isnan(), eager.isnan())
        assert torch.equal(got.isinf(), eager.isinf())


def signs_of(n_cols, n_probes, ids):
    layers = torch.tensor([LAYER], device=ids.device)
    return reference.rademacher_signs(n_cols, ids, n_probes, layers, SEED, F64)[0]


IDS = (5, 1, 2**33 + 3, -1, 0)


@cases
def test_probes(device, stages, types, size):
    ids = torch.tensor(IDS, device=device)
    z, dp = draw(device, types[0], 5, size), draw(device, types[0], 3, 5, size)
    w, signs = draw(device, types[1], size), signs_of(size, 3, ids)
    z64, w64, dp64 = double(z, w, dp)
    got = launch.preconditioned_probes(z, w, EPS, 1.0, SEED, 3, ids, LAYER)
    truth = reference.preconditioner(z64, w64, EPS, 1.0) * signs
    assert got.dtype == z.dtype
    check(got, truth, truth.abs(), z)

    dz, dw = launch.preconditioned_probes_backward(z, w, dp, EPS, 1.0, SEED, ids, LAYER)
    true_dz, true_dw = reference.preconditioned_probes_backward(z64, w64, signs, dp64, EPS, 1.0)
    z_hat, r = reference.normalise(z64, EPS)
    q = dp64.abs().sum(0)
    assert (dz.dtype, dw.dtype) == (z.dtype, w.dtype)
    check(dz, true_dz, r**2 * z_hat.abs() * reference.mean((w64 + 1).abs() * q), z, 5, terms=3)
    check(dw, true_dw, over_all(r * q), z, factors=1, terms=15)


@pytest.mark.parametrize("dtype", [F64, F32, BF16, F16], ids=str)
def test_probe_dot_and_scale(device, dtype):
    ids = torch.tensor(IDS, device=device)
    for size in (3, 129, 1500):
        t, signs = draw(device, dtype, 3, 5, size), signs_of(size, 3, ids)
        dot = launch.probe_dot(t, SEED, ids, LAYER)
        assert dot.dtype == accumulation_dtype(t)
        check(dot, (t.double() * signs).sum(-1), t.double().abs().sum(-1), t)
        scaled = launch.probe_scale(dot, size, SEED, ids, LAYER, dtype)
        truth = dot.double()[..., None] * signs
        assert scaled.dtype == dtype
        check(scaled, truth, truth.abs(), t)
    strided = draw(device, dtype, 5, 3, 200).transpose(0, 1)[..., 7:137]
    dense = launch.probe_dot(strided.contiguous(), SEED, ids, LAYER)
    assert torch.equal(launch.probe_dot(strided, SEED, ids, LAYER), dense)


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1, 2**63, SEED])
def test_signs_of_any_seed(device, seed):
    ids, layers = torch.tensor([0, 7, 2**32 - 1], device=device), torch.tensor([0, 3], device=device)
    got = launch.rademacher(1100, ids, 2, layers, seed, F32)
    assert torch.equal(got, reference.rademacher_signs(1100, ids, 2, layers, seed, F32))


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1, 2**63, SEED])
def test_words_of_any_seed_are_int32_so_that_one_build_serves_all(seed):
    _, low, high = launch.probes.words(seed)
    assert (high % 2**32 << 32) + low % 2**32 == seed
    assert all(-(2**31) <= word < 2**31 for word in (low, high, launch.probes.signed_word(-LAYER)))


def test_rows_too_long_for_registers(device):
    size, ids = 16411, torch.tensor([3, 4], device=device)
    assert plan.plan(plan.FORWARD, size, F32, 1).stages == plan.BLOCKS
    x, dy, w = draw(device, F32, 2, size), draw(device, F32, 2, size), draw(device, F32, size)
    x_dot, w_dot, dy_dot = tangents(device, (F32, F32), (2,), 2, size)
    check_forward(x, w, 0.0, "hf", residual=dy)
    dx, _ = launch.rms_norm_backward(x, w, dy, None, EPS, 0.0, True, False)
    truth, _ = reference.rms_norm_backward(*double(x, w, dy), EPS)
    check(dx, truth, Scales(x, w, dy, None, None, None, 0.0).dx, x, factors=4)
    check_jvp(x, w, x_dot, w_dot, 0.0)
    check_backward_tangent(x, w, dy, x_dot, w_dot, dy_dot, 0.0)
    check_jvp_backward(x, w, dy_dot, x_dot, w_dot, 0.0)
    truth = reference.preconditioner(*double(x, w), EPS) * signs_of(size, 2, ids)
    check(launch.preconditioned_probes(x, w, EPS, 0.0, SEED, 2, ids, LAYER), truth, truth.abs(), x)


def test_scratch_holds_the_sums_and_no_more(device, monkeypatch):
    handed, guard = [], 64

    def scratch(self, x, n_rows, n_sums):
        handed.append(
            torch.full((n_rows * n_sums * self.n_blocks + guard,), torch.nan, dtype=F64, device=device)
        )
        return handed[-1]

    cut(monkeypatch)
    monkeypatch.setattr(plan.Plan, "scratch", scratch)
    x, w, ids = draw(device, F32, 3, 300), draw(device, F32, 300), torch.arange(3, device=device)
    x_dot, w_dot, dy_dot = tangents(device, (F32, F32), (2,), 3, 300)
    launch.rms_norm_forward(x, w, EPS, 0.0, "hf")
    launch.rms_norm_backward(x, w, x, None, EPS, 0.0, True, True)
    launch.rms_norm_jvp(x, w, x_dot, w_dot, EPS, 0.0)
    launch.rms_norm_backward_tangent(x, w, x, x_dot, w_dot, dy_dot, EPS, 0.0, True)
    launch.rms_norm_jvp_backward(x, w, dy_dot, x_dot, w_dot, EPS, 0.0, True, True)
    launch.preconditioned_probes(x, w, EPS, 0.0, SEED, 2, ids, LAYER)
    launch.preconditioned_probes_backward(x, w, dy_dot, EPS, 0.0, SEED, ids, LAYER)
    assert len(handed) == 7
    for sums in handed:
        assert not sums[:-guard].isnan().any()
        assert sums[-guard:].isnan().all()
