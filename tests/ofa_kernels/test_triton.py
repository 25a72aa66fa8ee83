"""Every Triton launcher against the float64 formulas, for whole rows and for rows cut into blocks."""

import dataclasses

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from ofa_kernels import reference
from ofa_kernels.triton import launch, launch_probes, launch_tangent, plan

pytestmark = pytest.mark.usefixtures("nan_poisoned_empty")

EPS, SEED, LAYER = 1e-6, (1 << 64) - 5, 7
F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
TYPES = [(x, w) for x in (F64, F32, BF16, F16) for w in (F64, F32, BF16, F16)]
# Triton's interpreter takes bfloat16 for an integer wherever it is cast from or to float64
TYPES.remove((F64, BF16))
CASES = [(types, 129) for types in TYPES] + [((F32, F32), n) for n in (1, 3, 70, 576)]

cases = pytest.mark.parametrize(("types", "size"), CASES, ids=lambda case: str(case).replace("torch.", ""))
k_shapes = pytest.mark.parametrize("k_shape", [(), (3,), (2, 2)], ids=str)


def cut(monkeypatch, block=128):
    """Make every row one of blocks, and two programs share the rows."""

    def blocks(residency, n_cols, dtype, whole=plan.plan):
        n_blocks = -(-n_cols // block)
        return dataclasses.replace(
            whole(residency, n_cols, dtype), block=block, n_blocks=n_blocks, stages=plan.BLOCKS
        )

    monkeypatch.setattr(plan, "MAX_PROGRAMS", 2)
    for module in (launch, launch_tangent, launch_probes):
        monkeypatch.setattr(module, "plan", blocks)


@pytest.fixture(params=["row", "blocks"])
def stages(request, monkeypatch):
    """Rows held whole, a program each, or cut into blocks."""
    if request.param == "blocks":
        cut(monkeypatch)


@pytest.fixture(autouse=True, scope="module")
def quick_interpreter():
    """Let the interpreter patch a function that kernels call once, not at every call: half of its time."""
    with pytest.MonkeyPatch.context() as patch:
        interpreted = type(launch.kernels.rms_norm_forward)
        if interpreted.__name__ == "InterpretedFunction":
            original, patched = interpreted.__call__, set()

            def call(self, *args, **kwargs):
                if self in patched:
                    return self.rewrite()(*args, **kwargs)
                patched.add(self)
                return original(self, *args, **kwargs)

            patch.setattr(interpreted, "__call__", call)
        yield


def draw(device, dtype, *shape):
    return torch.randn(shape, device=device).to(dtype)


def unit(t):
    """The largest relative error of rounding to t's type once."""
    # Triton's interpreter truncates where it stores bfloat16: one ULP instead of half
    truncated = t.dtype == BF16 and t.device.type == "cpu"
    return torch.finfo(t.dtype).eps * (1 if truncated else 0.5)


def check(got, truth, scale, like, factors=1, terms=0):
    """`got` is `truth` rounded once, but for the products of `factors` sums over x's columns.

    `scale` is what cancels in the result, `like` an x, and `terms` how many rows were added up.
    """
    assert got.shape == truth.shape
    eps = torch.finfo(reference.accumulation_dtype(like)).eps
    sums = factors * (like.shape[-1] ** 0.5 + 8) + terms**0.5
    finfo = torch.finfo(got.dtype)
    subnormal = 8 * finfo.smallest_normal * finfo.eps  # an absolute step
    bound = ((1 + unit(got)) * (1 + sums * eps) - 1) * scale + subnormal
    assert ((got.double() - truth).abs() <= bound).all()


def rows_of(t):
    return t.numel() // t.shape[-1]


def double(*tensors):
    return tuple(None if t is None else t.double() for t in tensors)


class Scales:
    """What cancels in each result: its formula with every term's magnitude added."""

    def __init__(self, x, w, dy, x_dot, w_dot, dy_dot, offset):
        x, w, dy, x_dot, w_dot, dy_dot = double(x, w, dy, x_dot, w_dot, dy_dot)
        x_hat, r = (t.abs() for t in reference._normalise(x, EPS))
        mean = reference._mean
        w = (w + offset).abs()
        dy, x_dot, dy_dot = (0 * x_hat if t is None else t.abs() for t in (dy, x_dot, dy_dot))
        w_dot = reference._beside_rows(None if w_dot is None else w_dot.abs(), x_hat)
        m, c = mean(x_hat * x_dot), mean(w * dy * x_hat)
        x_hat_dot = r * (x_dot + x_hat * m)
        g_dot = w * dy_dot + w_dot * dy
        c_dot = mean(g_dot * x_hat + w * dy * x_hat_dot)
        self.y = w * x_hat
        self.dx = r * (w * dy + x_hat * c)
        self.dw = dy * x_hat
        self.y_dot = w * x_hat_dot + w_dot * x_hat
        self.dx_dot = r * m * self.dx + r * (g_dot + x_hat_dot * c + x_hat * c_dot)
        self.dw_dot = dy_dot * x_hat + dy * x_hat_dot


def over_rows(t, x):
    """The sum over x's rows, with any tangents before them kept."""
    return reference._sum_rows(t, x.dim() - 1)


def over_all(t):
    return reference._sum_rows(t)


def check_forward(x, w, offset, rounding, residual=None):
    if residual is None:
        y, s = launch.rms_norm_forward(x, w, EPS, offset, rounding), x
    else:
        y, s = launch.add_rms_norm_forward(x, residual, w, EPS, offset, rounding)
        assert (s.dtype, s.is_contiguous()) == (x.dtype, True)
        check(s, x.double() + residual.double(), s.double().abs() / (1 - unit(s)), x, factors=0)
    assert (y.dtype, y.is_contiguous()) == (x.dtype, True)
    scale = Scales(s, w, None, None, None, None, offset).y
    if rounding == "hf" and offset == 0:
        scale = scale * 2 * (1 + unit(y))  # x̂ is rounded too
    check(y, reference.rms_norm(*double(s, w), EPS, offset), scale, x)


@cases
def test_forward(device, stages, types, size):
    x, residual, w = (draw(device, *args) for args in ((types[0], 3, size),) * 2 + ((types[1], size),))
    for offset in (0.0, 1.0):
        for rounding in ("hf", "fp32"):
            check_forward(x, w, offset, rounding)
    check_forward(x, w, 0.0, "hf", residual)


def test_hf_rounds_where_llama_does_and_gemma_does_not(device):
    x = draw(device, F16, 4, 129)
    w = draw(device, F16, 129)
    x_hat, _ = reference._normalise(x.double(), EPS)
    late, early = (w.double() * x_hat).half(), (w.double() * x_hat.half().double()).half()
    assert not torch.equal(early, late)
    assert torch.equal(launch.rms_norm_forward(x, w, EPS, 0.0, "hf"), early)
    assert torch.equal(launch.rms_norm_forward(x, w, EPS, 0.0, "fp32"), late)
    gemma = ((w.double() + 1) * x_hat).half()
    assert torch.equal(launch.rms_norm_forward(x, w, EPS, 1.0, "hf"), gemma)


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


def check_jvp(x, w, x_dot, w_dot, offset):
    got = launch.rms_norm_jvp(x, w, x_dot, w_dot, EPS, offset)
    truth = reference.rms_norm_jvp(*double(x, w, x_dot, w_dot), EPS, offset)
    assert got.dtype == x.dtype
    scale = Scales(x, w, None, x_dot, w_dot, None, offset).y_dot
    check(got, truth, scale, x, factors=4)


def check_backward_tangent(x, w, dy, x_dot, w_dot, dy_dot, offset, need_dw=True):
    args = (x, w, dy, x_dot, w_dot, dy_dot)
    dx_dot, dw_dot = launch.rms_norm_backward_tangent(*args, EPS, offset, need_dw)
    true_dx_dot, true_dw_dot = reference.rms_norm_backward_tangent(*double(*args), EPS, offset)
    scales = Scales(*args, offset)
    assert dx_dot.dtype == x.dtype
    check(dx_dot, true_dx_dot, scales.dx_dot, x, factors=6)
    assert (dw_dot is None) == (not need_dw)
    if need_dw:
        assert dw_dot.dtype == w.dtype
        shape = torch.broadcast_shapes(true_dw_dot.shape, true_dx_dot.shape[: -x.dim()] + w.shape)
        scale = over_rows(scales.dw_dot, x)
        check(dw_dot, true_dw_dot.expand(shape), scale, x, factors=3, terms=rows_of(x))


def check_jvp_backward(x, w, dy, x_dot, w_dot, offset, need_dw=True, need_dw_dot=True):
    args = (x, w, dy, x_dot, w_dot)
    needs = (need_dw, need_dw_dot)
    dx, dw, dx_dot, dw_dot = launch.rms_norm_jvp_backward(*args, EPS, offset, *needs)
    true_dx, true_dw, true_dx_dot, true_dw_dot = reference.rms_norm_jvp_backward(*double(*args), EPS, offset)
    scales = Scales(*args, None, offset)
    n_tangents = rows_of(dy) // max(rows_of(x), 1)
    k_dims = tuple(range(dy.dim() - x.dim()))
    assert (dx.dtype, dx_dot.dtype) == (x.dtype, x.dtype)
    check(dx, true_dx, scales.dx_dot.sum(k_dims) if k_dims else scales.dx_dot, x, 6, n_tangents)
    check(dx_dot, true_dx_dot, scales.dx, x, factors=4)
    assert ((dw is None), (dw_dot is None)) == (not need_dw, not need_dw_dot)
    if need_dw:
        assert dw.dtype == w.dtype
        check(dw, true_dw, over_all(scales.dw_dot), x, factors=3, terms=rows_of(dy))
    if need_dw_dot:
        assert dw_dot.dtype == w.dtype
        check(dw_dot, true_dw_dot, over_rows(scales.dw, x), x, factors=1, terms=rows_of(x))


def tangents(device, types, k_shape, *x_shape):
    """(ẋ, ẇ, dẏ) with leading sizes k_shape."""
    x_dot, dy_dot = (draw(device, types[0], *k_shape, *x_shape) for _ in range(2))
    return x_dot, draw(device, types[1], *k_shape, x_shape[-1]), dy_dot


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
    truth = reference._normalise(x.double(), EPS)[1][:, 0]
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
    z_hat, r = reference._normalise(z64, EPS)
    q = dp64.abs().sum(0)
    assert (dz.dtype, dw.dtype) == (z.dtype, w.dtype)
    check(dz, true_dz, r**2 * z_hat.abs() * reference._mean((w64 + 1).abs() * q), z, 5, terms=3)
    check(dw, true_dw, over_all(r * q), z, factors=1, terms=15)


@pytest.mark.parametrize("dtype", [F64, F32, BF16, F16], ids=str)
def test_probe_dot_and_scale(device, dtype):
    ids = torch.tensor(IDS, device=device)
    for size in (3, 129, 1500):
        t, signs = draw(device, dtype, 3, 5, size), signs_of(size, 3, ids)
        dot = launch.probe_dot(t, SEED, ids, LAYER)
        assert dot.dtype == reference.accumulation_dtype(t)
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


@pytest.mark.parametrize("dtype", [F64, F32, BF16, F16], ids=str)
def test_step_lengths(device, dtype):
    for size in (3, 129, 1500):
        for states in (draw(device, dtype, 5, 3, size), draw(device, dtype, 3, 5, size).transpose(0, 1)):
            states[2, 1] = states[1, 1]
            lengths = launch.step_lengths(states)
            truth = reference.step_lengths(states.double())
            assert lengths.dtype == reference.accumulation_dtype(states)
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


def test_rows_too_long_for_registers(device):
    size, ids = 16411, torch.tensor([3, 4], device=device)
    assert plan.plan(plan.FORWARD, size, F32).stages == plan.BLOCKS
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


@pytest.mark.parametrize("n_cols", [1, 576, 4096, 8191, 8192, 65536, 65537])
def test_plans_cover_every_column(n_cols):
    for residency in (plan.FORWARD, plan.BACKWARD, plan.JVP, plan.TANGENT, plan.PROBES):
        for dtype in (F32, F64):
            chosen = plan.plan(residency, n_cols, dtype)
            assert chosen.block * (chosen.n_blocks - 1) < n_cols <= chosen.block * chosen.n_blocks
            assert chosen.n_blocks <= chosen.n_blocks_padded
            assert chosen.num_warps * 32 * chosen.registers <= 65536
            assert 1 <= chosen.programs(10**6) <= plan.MAX_PROGRAMS
