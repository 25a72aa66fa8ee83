"""The CPU kernels at first order against float64, and what holds for all of them: layouts, threads, NaNs."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ofa_kernels import native, reference
from tests.ofa_kernels.bounds import (
    BF16,
    EPS,
    F16,
    F32,
    LONG_SIZES,
    SIZES,
    TYPES,
    assert_within,
    doubles,
    magnitudes,
    type_names,
)
from tests.ofa_kernels.native_calls import CALLS, OFFSET, arguments, results, same_bits

pytestmark = [
    pytest.mark.usefixtures("nan_poisoned_empty"),
    pytest.mark.skipif(native.missing() is not None, reason=f"CPU kernels: {native.missing()}"),
]

ROOT = Path(__file__).parents[3]
types = pytest.mark.parametrize("types", TYPES, ids=type_names)
calls = pytest.mark.parametrize("name", CALLS)


def check_first_order(x, weight, dy, offset, rounding):
    """y, dx and dw within their bounds; with a residual y is that of the stored sum."""
    rows, residual = x.numel() // x.shape[-1], dy
    hf = [x.dtype] if rounding == "hf" and offset == 0 else []
    y = native.rms_norm_forward(x, weight, EPS, offset, rounding)
    added, s = native.add_rms_norm_forward(x, residual, weight, EPS, offset, rounding)
    assert torch.equal(s, x + residual)
    for normed, got in ((x, y), (s, added)):
        assert got.dtype == x.dtype
        truth = reference.rms_norm(*doubles(normed, weight), EPS, offset)
        assert_within(got, truth, truth.abs(), x, x.dtype, *hf)

    dx, dw = native.rms_norm_backward(x, weight, dy, None, EPS, offset, True, True)
    truth = reference.rms_norm_backward(*doubles(x, weight, dy), EPS, offset)
    scale = magnitudes(x, weight, offset, dy)
    assert (dx.dtype, dw.dtype) == (x.dtype, weight.dtype)
    assert_within(dx, truth[0], scale.dx, x, x.dtype, sums=3)
    assert_within(dw, truth[1], reference.sum_rows(scale.dw), x, weight.dtype, sums=2, terms=rows)
    with_ds, _ = native.rms_norm_backward(x, weight, dy, residual, EPS, offset, True, False)
    ds = residual.double()
    assert_within(with_ds, truth[0] + ds, scale.dx + ds.abs(), x, x.dtype, sums=3)


@pytest.mark.parametrize("size", SIZES)
@types
def test_parity(types, size):
    x = (torch.randn(3, size) * torch.tensor([[0.01], [1.0], [100.0]])).to(types[0])
    for offset, rounding in itertools.product([0.0, 1.0], ["hf", "fp32"]):
        check_first_order(
            x, torch.randn(size).to(types[1]), torch.randn(3, size).to(types[0]), offset, rounding
        )


@pytest.mark.parametrize("shape", [(70,), (1, 70), (2, 1, 3, 31), *((2, n) for n in LONG_SIZES)], ids=str)
def test_parity_of_any_shape(set_threads, shape):
    set_threads(2)  # they share the rows of the longest
    for x_type, w_type in TYPES:
        x, dy = (torch.randn(shape).to(x_type) for _ in range(2))
        check_first_order(x, torch.randn(shape[-1]).to(w_type), dy, 0.0, "hf")


@pytest.mark.parametrize("types", [t for t in TYPES if t[0] in (F32, BF16)], ids=type_names)
@pytest.mark.parametrize("factor", [1e30, 1e-30])
def test_squares_neither_overflow_nor_underflow(types, factor):
    x = (torch.randn(3, 1100) * factor).to(types[0])
    check_first_order(x, torch.randn(1100).to(types[1]), torch.randn(3, 1100).to(types[0]), 0.0, "fp32")


def test_what_is_not_needed_changes_nothing():
    call = arguments("rms_norm_backward")
    dx, dw = CALLS["rms_norm_backward"](**call)
    for dx_needed, dw_needed in itertools.product([True, False], repeat=2):
        got = native.rms_norm_backward(*call.values(), EPS, OFFSET, dx_needed, dw_needed)
        assert torch.equal(got[0], dx) if dx_needed else got[0] is None
        assert torch.equal(got[1], dw) if dw_needed else got[1] is None


@pytest.mark.parametrize("factor", [1.0, 1e30, 1e-30])
@types
def test_a_saved_rstd_is_that_of_the_backward(types, factor):
    factor = factor if types[0] in (F32, BF16) else 1.0
    x, residual = ((torch.randn(5, 1100) * factor).to(types[0]) for _ in range(2))
    weight, dy = torch.randn(1100).to(types[1]), torch.randn(5, 1100).to(types[0])
    rstd, rstd_of_sum = (x.new_empty(5, dtype=reference.accumulation_dtype(x)) for _ in range(2))
    y = native.rms_norm_forward(x, weight, EPS, OFFSET, "hf", rstd)
    added, s = native.add_rms_norm_forward(x, residual, weight, EPS, OFFSET, "hf", rstd_of_sum)
    assert torch.equal(y, native.rms_norm_forward(x, weight, EPS, OFFSET, "hf"))
    assert torch.equal(added, native.rms_norm_forward(s, weight, EPS, OFFSET, "hf"))
    for normed, saved in ((x, rstd), (s, rstd_of_sum)):
        truth = reference.normalise(normed.double(), EPS)[1].squeeze(-1)
        assert_within(saved, truth, truth, normed, saved.dtype)
        for needed in ((True, True), (True, False), (False, True)):
            given = normed, weight, dy, residual, EPS, OFFSET, *needed
            got, expected = native.rms_norm_backward(*given, saved), native.rms_norm_backward(*given)
            assert all(a is b or torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    if factor == 1.0:
        given = x, weight, dy, None, EPS, OFFSET, False, True
        assert not torch.equal(*(native.rms_norm_backward(*given, r)[1] for r in (rstd, 2 * rstd)))


# --- memory: where the tensors lie, what is read and written ---


def one_element_in(t):
    return t.new_zeros(t.numel() + 1)[1:].view(t.shape)


LAYOUTS = {
    "one element into its buffer": one_element_in,
    "columns of a wider tensor": lambda t: t.new_zeros(*t.shape[:-1], t.shape[-1] + 9)[..., 5:-4],
    "every second column": lambda t: t.new_zeros(*t.shape[:-1], 2 * t.shape[-1])[..., ::2],
    "every second row": lambda t: t.new_zeros(2 * t.shape[0], *t.shape[1:])[::2],
    "transposed": lambda t: t.new_zeros(t.T.shape if t.dim() < 3 else t.mT.shape).transpose(-1, -2),
    "dimensions reversed": lambda t: t.new_zeros(t.shape[::-1]).permute(*reversed(range(t.dim()))),
    "rows first": lambda t: t.new_zeros(t.shape[1], t.shape[0], *t.shape[2:]).transpose(0, 1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@calls
def test_layouts_change_no_bit(name, layout):
    for types in [(F32, F32), (BF16, BF16), (F16, F32)]:
        tensors = arguments(name, types=types)
        expected = results(name, tensors)
        for key, t in tensors.items():
            if t.dim() > 1 or layout in ("one element into its buffer", "every second row"):
                moved = LAYOUTS[layout](t).copy_(t)
                assert same_bits(results(name, {**tensors, key: moved}), expected), key


@calls
def test_expanded_tensors_are_read_as_they_are(name):
    tensors = arguments(name)
    for key, t in tensors.items():
        for dim in range(t.dim() if t.is_floating_point() else 0):
            expanded = t.narrow(dim, 0, 1).expand(t.shape)
            pair = [results(name, {**tensors, key: v}) for v in (expanded, expanded.contiguous())]
            assert same_bits(*pair), (key, dim)


@calls
def test_elements_beyond_two_to_the_31(name, tmp_path):
    stride = 2**30 + 5
    # a sparse file: only the pages of the few rows are ever there
    far = torch.from_file(str(tmp_path / "far"), shared=True, size=2 * stride + 4096, dtype=BF16)
    tensors = arguments(name, types=(BF16, BF16))
    expected = results(name, tensors)
    for key, t in tensors.items():
        for dim in range(t.dim() - 1 if t.dtype == BF16 else 0):
            strides = [stride if i == dim else s for i, s in enumerate(t.stride())]
            moved = far.as_strided(t.shape, strides, 3).copy_(t)
            assert (t.shape[dim] - 1) * stride > 2**31
            assert same_bits(results(name, {**tensors, key: moved}), expected), (key, dim)


@pytest.mark.parametrize("name", [name for name in CALLS if name.startswith(("rms", "add"))])
def test_outputs_written_past_the_caches(name):
    rows = 4001  # no output of half of them is that large
    tensors = arguments(name, rows=rows, columns=1050, tangents=1, types=(BF16, BF16))

    def of_rows(t, begin, end):
        return t.narrow(t.shape.index(rows), begin, end - begin) if rows in t.shape else t

    whole = results(name, tensors)
    for part in ((0, rows // 2), (rows // 2, rows)):
        got = results(name, {key: of_rows(t, *part) for key, t in tensors.items()})
        for half, full in zip(got, whole, strict=True):
            assert rows not in full.shape or torch.equal(half, of_rows(full, *part))


@calls
def test_inputs_are_never_written(name):
    tensors = arguments(name)
    before = {key: (t.clone(), t._version) for key, t in tensors.items()}
    results(name, tensors)
    for key, (values, version) in before.items():
        assert torch.equal(tensors[key], values)
        assert tensors[key]._version == version


@calls
def test_no_rows(name):
    usual, none = (results(name, arguments(name, rows=rows)) for rows in (5, 0))
    for some, empty in zip(usual, none, strict=True):
        assert empty.shape == tuple(0 if size == 5 else size for size in some.shape)
        assert not empty.any()  # a sum over no rows


# --- threads and instruction sets ---


@calls
def test_threads_change_only_the_order_of_sums_over_rows(name, set_threads):
    tensors = arguments(name, rows=301, columns=300)
    set_threads(1)
    expected = results(name, tensors)
    for threads in (2, 3, 7):
        set_threads(threads)
        first = results(name, tensors)
        for of_rows, alone in zip(first, expected, strict=True):
            assert torch.equal(of_rows, alone) or 301 not in of_rows.shape
        for _ in range(5):
            assert same_bits(results(name, {key: t.clone() for key, t in tensors.items()}), first)


def python(code, **environment):
    done = subprocess.run(
        [sys.executable, *code], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


COUNT_THREADS = """
import os, torch
from ofa_kernels import native

x, weight = torch.randn(512, 1024), torch.randn(1024)
operations = {
    "native": lambda: native.rms_norm_backward(x, weight, x, None, 1e-6, 0.0, True, True),
    "torch": lambda: x.exp() @ x.T,
    "nothing": lambda: None,
}
for threads in (1, 2):
    torch.set_num_threads(threads)
    for name in ("nothing", %r, %r, %r):
        operations[name]()
        print(len(os.listdir("/proc/self/task")))
print(len(native.openmp_runtimes()))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads are counted in /proc")
@pytest.mark.parametrize("order", [("native", "torch", "native"), ("torch", "native", "torch")], ids=str)
def test_one_pool_of_threads(order):
    *counts, runtimes = map(int, python(["-c", COUNT_THREADS % order]).split())
    assert runtimes == 1
    assert set(counts[:4]) == {counts[0]}, "one thread was asked for"
    assert counts[5:] == [counts[4] + 1] * 3, "the first operation starts one thread, no other any"


SETS = ["avx512", "avx2", "portable"]  # the widest that is there is used


def test_instruction_set_in_use():
    asked = os.environ.get("OFA_NATIVE_ISA")
    assert native.instruction_set() in ([asked] if asked else SETS)


@pytest.mark.skipif("OFA_NATIVE_ISA" in os.environ, reason="one is asked for")
@pytest.mark.parametrize("name", SETS)
def test_every_instruction_set(name):
    if name == native.instruction_set():
        pytest.skip("the one that all other tests use")
    if SETS.index(name) < SETS.index(native.instruction_set()):
        pytest.skip(f"this processor has no {name}")
    files = [str(path) for path in Path(__file__).parent.glob("test_*.py")]
    chosen = "instruction_set_in_use or rounds or root or no_bits or nan_patterns or (parity and (33 or 576))"
    python(["-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen, *files], OFA_NATIVE_ISA=name)
