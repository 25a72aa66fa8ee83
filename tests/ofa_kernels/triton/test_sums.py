"""Sums of squares, in float64 and as pairs of float32, and the rstd that comes of them: saved and given."""

import dataclasses

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

import triton
import triton.language as tl

from ofa_kernels import reference
from ofa_kernels.dtypes import accumulation_dtype
from ofa_kernels.triton import launch, plan, row
from tests.ofa_kernels.bounds import BF16, EPS, F16, F32, F64, LAYER, SEED
from tests.ofa_kernels.triton_checks import (
    Scales,
    check,
    check_forward,
    check_jvp,
    cut,
    double,
    draw,
    over_all,
    tangents,
)

pytestmark = [
    pytest.mark.usefixtures("nan_poisoned_empty"),
    pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning"),  # of the interpreter's NumPy
]


@pytest.fixture(params=["row", "blocks"])
def stages(request, monkeypatch):
    if request.param == "blocks":
        cut(monkeypatch)


@pytest.fixture(params=["float64", "float32"])
def sums(request, monkeypatch):
    """How squares are added up."""
    monkeypatch.setattr(plan, "float64_is_fast", lambda device: request.param == "float64")
    return request.param


@triton.jit
def both_sums(x_ptr, other_ptr, out_ptr, SUM_F64: tl.constexpr, BLOCK_N: tl.constexpr):
    """Σ x² by itself, then with Σ other."""
    o = tl.arange(0, BLOCK_N)
    b_x = tl.load(x_ptr + o)
    tl.store(out_ptr, row.sum_of_squares(b_x, SUM_F64))
    squares, other = row.sum_of_squares_and(b_x, tl.load(other_ptr + o), SUM_F64)
    tl.store(out_ptr + 1, squares)
    tl.store(out_ptr + 2, other.to(tl.float64))


def hard_rows(size):
    """Values whose squares float32 adds up badly, or has no room for."""
    x = torch.randn(size)
    spread = torch.randn(size) * torch.logspace(-6, 6, size)
    large_first = torch.full((size,), 1.0 - 2.0**-24)
    large_first[0] = 4096.0
    return {
        "random": x,
        "spread": spread,
        "one large": large_first,
        "equal": torch.full((size,), 1.1),
        "large": x * 1e25,
        "small": x * 1e-25,
        "subnormal": x * 1e-42,
        "zero": 0 * x,
    }


@pytest.mark.parametrize("size", [128, 4096])
@pytest.mark.parametrize("in_f64", [True, False])
def test_squares_are_added_up_to_what_rstd_needs(device, size, in_f64):
    other = torch.randn(size, device=device)
    for name, x in hard_rows(size).items():
        out = torch.empty(3, dtype=F64, device=device)
        both_sums[(1,)](x.to(device), other, out, SUM_F64=in_f64, BLOCK_N=size)
        alone, with_other, total = out.tolist()
        truth = x.double().square().sum().item()
        for squares in (alone, with_other):
            assert abs(squares - truth) <= 2.0**-28 * truth, name
        assert abs(total - other.double().sum().item()) <= 1e-6 * other.abs().sum().item()


@pytest.mark.parametrize("size", [1, 3, 576, 4096, 16411])
@pytest.mark.parametrize("with_residual", [False, True])
def test_saved_rstd_is_within_one_ulp(device, sums, size, with_residual):
    rows = 60 if size < 4000 else 4
    x = torch.randn(rows, size, device=device) * torch.logspace(-4, 4, rows, device=device)[:, None]
    weight = torch.ones(size, device=device)
    rstd = torch.empty(rows, device=device)
    if with_residual:
        _, x = launch.add_rms_norm_forward(x, x.flip(0), weight, EPS, 0.0, "fp32", rstd)
    else:
        launch.rms_norm_forward(x, weight, EPS, 0.0, "fp32", rstd)
    truth = (x.double().square().mean(-1) + EPS).rsqrt()
    ulp = torch.exp2(torch.floor(torch.log2(truth)) - 23)
    assert ((rstd.double() - truth).abs() <= ulp).all()


@pytest.mark.parametrize("dtype", [F64, F32, BF16, F16], ids=str)
def test_rstd_is_saved_in_the_accumulation_type_and_changes_nothing_else(device, stages, dtype):
    x, w = draw(device, dtype, 2, 3, 300), draw(device, F32, 300)
    rstd = torch.empty(6 + 1, dtype=accumulation_dtype(x), device=device)
    y = launch.rms_norm_forward(x, w, EPS, 0.0, "hf", rstd[:6])
    assert torch.equal(y, launch.rms_norm_forward(x, w, EPS, 0.0, "hf"))
    truth = (x.double().square().mean(-1) + EPS).rsqrt().flatten()
    ulps = 4 if dtype == F64 else 1  # of which the truth has some, too
    assert ((rstd[:6] - truth).abs() <= ulps * torch.finfo(rstd.dtype).eps * truth).all()
    assert rstd[6:].isnan().all()


@pytest.mark.parametrize("dtype", [F64, F32, BF16], ids=str)
@pytest.mark.parametrize("columns", [129, 304])
def test_backward_with_the_rstd_of_the_forward(device, stages, dtype, columns):
    x, dy, ds = (draw(device, dtype, 7, columns) for _ in range(3))
    w = draw(device, F32, columns)
    rstd = torch.empty(7, dtype=accumulation_dtype(x), device=device)
    launch.rms_norm_forward(x, w, EPS, 1.0, "hf", rstd)
    scales = Scales(x, w, dy, None, None, None, 1.0)
    true_dx, true_dw = reference.rms_norm_backward(*double(x, w, dy), EPS, 1.0)
    for skip, need_dx, need_dw in ((None, True, True), (ds, True, False), (None, False, True)):
        dx, dw = launch.rms_norm_backward(x, w, dy, skip, EPS, 1.0, need_dx, need_dw, rstd)
        if need_dx:
            added = 0 if skip is None else ds.double()
            check(dx, true_dx + added, scales.dx + abs(added), x, factors=4)
        if need_dw:
            check(dw, true_dw, over_all(scales.dw), x, factors=1, terms=7)


def test_a_given_rstd_is_what_is_used(device, stages):
    x, dy, w = draw(device, F32, 4, 129), draw(device, F32, 4, 129), draw(device, F32, 129)
    given = torch.tensor([0.0, 1.0, 2.0, 0.5], device=device)
    dx, dw = launch.rms_norm_backward(x, w, dy, None, EPS, 0.0, True, True, given)
    r, x64, g = given.double()[:, None], x.double(), w.double() * dy.double()
    torch.testing.assert_close(dx.double(), r * (g - x64 * r**2 * (g * x64).mean(-1, keepdim=True)))
    torch.testing.assert_close(dw.double(), (r * x64 * dy.double()).sum(0))


@pytest.mark.parametrize("dtype", [F64, F32, BF16, F16], ids=str)
def test_every_kernel_with_either_sum(device, sums, stages, dtype):
    x, dy, w = draw(device, dtype, 3, 129), draw(device, dtype, 3, 129), draw(device, F32, 129)
    x_dot, w_dot, _ = tangents(device, (dtype, F32), (2,), 3, 129)
    check_forward(x, w, 0.0, "hf", residual=dy)
    check_jvp(x, w, x_dot, w_dot, 1.0)
    dx, _ = launch.rms_norm_backward(x, w, dy, None, EPS, 0.0, True, True)
    true_dx, _ = reference.rms_norm_backward(*double(x, w, dy), EPS)
    check(dx, true_dx, Scales(x, w, dy, None, None, None, 0.0).dx, x, factors=4)
    ids, layers = torch.arange(3, device=device), torch.tensor([LAYER], device=device)
    signs = reference.rademacher_signs(129, ids, 2, layers, SEED, F64)[0]
    truth = reference.preconditioner(*double(x, w), EPS) * signs
    check(launch.preconditioned_probes(x, w, EPS, 0.0, SEED, 2, ids, LAYER), truth, truth.abs(), x)


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e20, float("inf"), float("nan")])
def test_extreme_rows_with_either_sum(device, sums, stages, value):
    x, w = draw(device, F32, 4, 129), draw(device, F32, 129)
    x[1], x[2, 5] = value, value
    got, eager = launch.rms_norm_forward(x, w, EPS, 0.0, "hf"), reference.rms_norm(x, w, EPS)
    assert torch.equal(got.isnan(), eager.isnan())
    assert torch.equal(got.isinf(), eager.isinf())


def test_float64_is_for_cards_that_are_fast_in_it_and_for_float64(device, monkeypatch):
    plan.float64_is_fast.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    slow = [(8, 6), (8, 7), (8, 9), (10, 3), (12, 0)]
    for capability in [(8, 0), (9, 0), (10, 0), *slow]:
        fast = capability not in slow
        plan.float64_is_fast.cache_clear()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert plan.float64_is_fast(0) == fast, capability
        for residency, dtype in ((plan.FORWARD, F32), (plan.TANGENT, F32), (plan.FORWARD, F64)):
            chosen = plan.plan(residency, 64, dtype, 8)
            x = torch.empty(1, 64, dtype=dtype, device=device)
            expected = fast or residency is plan.TANGENT or dtype == F64
            assert chosen._constants("row", x)["SUM_F64"] == expected
    plan.float64_is_fast.cache_clear()


def test_rows_in_flight_with_a_given_rstd_change_no_bit(device, monkeypatch):
    x, dy, w = draw(device, F32, 7, 72), draw(device, F32, 7, 72), draw(device, F32, 72)
    rstd = torch.rand(7, device=device)
    found = []
    for rows in (1, 2, 3):
        chosen = dataclasses.replace(plan.plan(plan.BACKWARD, 72, F32, 8), pipeline=rows, max_programs=2)
        with monkeypatch.context() as patched:
            patched.setattr(plan, "plan", lambda *_, chosen=chosen: chosen)
            found.append(launch.rms_norm_backward(x, w, dy, dy, EPS, 0.0, True, True, rstd))
    for dx, dw in found[1:]:
        assert torch.equal(dx, found[0][0])
        assert torch.equal(dw, found[0][1])
