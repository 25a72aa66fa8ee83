"""Where the CPU kernels round: the reciprocal root, transformers' order, NaNs, infinities and subnormals."""

import math

import pytest
import torch

from ofa_kernels import native, reference
from ofa_kernels.dtypes import accumulation_dtype
from tests.ofa_kernels.bounds import BF16, EPS, F16, F32, TYPES, type_names
from tests.ofa_kernels.native_calls import CALLS, SEED, arguments, results, same_bits

pytestmark = [
    pytest.mark.usefixtures("nan_poisoned_empty"),
    pytest.mark.skipif(native.missing() is not None, reason=f"CPU kernels: {native.missing()}"),
]

types = pytest.mark.parametrize("types", TYPES, ids=type_names)
offsets = pytest.mark.parametrize("offset", [0.0, 1.0])

ROWS = {
    "normal": lambda x: x,
    "one element dominates": lambda x: x.index_fill(1, torch.tensor([x.shape[1] // 2]), 1000.0),
    "two equal elements dominate": lambda x: x.index_fill(
        1, torch.tensor([x.shape[1] // 3, x.shape[1] // 2]), 3000.0
    ),
    "ascending": lambda x: (x * torch.randn(x.shape).mul(3).exp()).abs().sort(1).values,
    "descending": lambda x: (x * torch.randn(x.shape).mul(3).exp()).abs().sort(1, descending=True).values,
    # beside the 1 each square alone is lost in a chain of float32
    "squares of half a unit": lambda x: torch.full(x.shape, 2**-12.5) * (1 - 0.3 * torch.rand(len(x), 1)),
    "equal": lambda x: (0.5 + torch.rand(len(x), 1)).expand(x.shape),
}


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
def test_reciprocal_root_is_right_to_one_unit_in_the_last_place(dtype, rows):
    worst = 0.0
    for size in (1, 2, 33, 576, 4099, 65537):
        x = ROWS[rows](torch.randn(8, size)).to(dtype, copy=True)
        x[:, 0] = 1
        truth = (x.double().pow(2).mean(1) + EPS).rsqrt()
        ulp = torch.nextafter(truth.float(), torch.tensor(torch.inf)).double() - truth.float()
        # where x is 1, dw of one row whose dy is 1 is r, as is y with a weight of 1
        one, dy = torch.ones(size), torch.ones(1, size).to(dtype)
        backward = (native.rms_norm_backward(row[None], one, dy, None, EPS, 0.0, True, True)[1] for row in x)
        got = [torch.stack([dw[0] for dw in backward])]
        if dtype == F32:
            got.append(native.rms_norm_forward(x, one, EPS, 0.0, "fp32")[:, 0])
        worst = max([worst, *(((r.double() - truth).abs() / ulp).max().item() for r in got)])
    assert worst <= 1, f"{worst:.3f} units"


@offsets
@types
def test_rounding_is_that_of_transformers(types, offset):
    # sums of a few small integers are exact in any order, so the root is known to the bit
    x, weight = torch.randint(-9, 10, (64, 256)).to(types[0]), torch.randn(256).to(types[1])
    acc = accumulation_dtype(x)
    means = x.double().pow(2).sum(1, keepdim=True) / 256 + EPS
    r = means.apply_(lambda mean: 1 / math.sqrt(mean)).to(acc)  # torch's own may be off by a bit
    x_hat = x.to(acc) * r
    llama, gemma = (weight * x_hat.to(x.dtype)).to(x.dtype), (x_hat * (offset + weight.to(acc))).to(x.dtype)
    got = [native.rms_norm_forward(x, weight, EPS, offset, rounding) for rounding in ("hf", "fp32")]
    assert torch.equal(got[0], gemma if offset else llama)
    assert torch.equal(got[1], gemma)


def ordered(t):
    """The numbers of a 16-bit type counted through, so that neighbours differ by one."""
    bits = t.view(torch.int16).int()
    return torch.where(bits < 0, -(bits & 0x7FFF), bits)


@offsets
@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_values_are_those_of_transformers(dtype, offset):
    family = "gemma" if offset else "llama"
    modeling = pytest.importorskip(f"transformers.models.{family}.modeling_{family}")
    norm = getattr(modeling, f"{family.title()}RMSNorm")(4096, EPS).to(dtype)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(64, 4096).to(dtype)
    with torch.no_grad():
        apart = native.rms_norm_forward(x, norm.weight, EPS, offset, "hf"), norm(x)
    distance = (ordered(apart[0]) - ordered(apart[1])).abs()
    assert distance.max() <= 1
    assert (distance == 0).double().mean() >= 0.999


@types
def test_nan_patterns_are_those_of_pytorch(types):
    x = torch.randn(8, 70).to(types[0])
    x[0], x[1], x[2] = 0, 1e-30, 6e4 if types[0] == F16 else 1e30
    x[3, 5], x[4, 5], x[5, 5:7], x[6, :] = (
        torch.inf,
        torch.nan,
        torch.tensor([torch.inf, -torch.inf]),
        -torch.inf,
    )
    weight, dy = torch.randn(70).to(types[1]), torch.randn(8, 70).to(types[0])
    x_dot, weight_dot = torch.randn(2, 8, 70).to(types[0]), torch.randn(2, 70).to(types[1])
    tangents = x_dot, weight_dot, x_dot
    ones = torch.ones(2, 8, 70).to(types[0])
    for got, expected in (
        (native.rms_norm_forward(x, weight, EPS, 0.0, "hf"), reference.rms_norm(x, weight, EPS)),
        (
            native.rms_norm_backward(x, weight, dy, None, EPS, 0.0, True, True),
            reference.rms_norm_backward(x, weight, dy, EPS),
        ),
        (
            native.rms_norm_jvp(x, weight, *tangents[:2], EPS, 0.0),
            reference.rms_norm_jvp(x, weight, *tangents[:2], EPS),
        ),
        (
            native.rms_norm_backward_tangent(x, weight, dy, *tangents, EPS, 0.0, True),
            reference.rms_norm_backward_tangent(x, weight, dy, *tangents, EPS),
        ),
        (
            native.preconditioned_probes(x, weight, EPS, 0.0, 1, 2, torch.arange(8), 0),
            reference.preconditioner(x, weight, EPS).to(x.dtype) * ones,
        ),
    ):
        for a, b in zip(*(t if isinstance(t, tuple) else (t,) for t in (got, expected)), strict=True):
            assert torch.equal(a.isnan(), b.isnan())


NAN_BITS = [0x7FFFFFFF, -1, 0x7F800001, 0x7FFF8000]


@pytest.mark.parametrize("name", CALLS)
def test_no_bits_of_a_float32_nan_become_a_bfloat16_number(name):
    tensors = arguments(name, columns=70, types=(BF16, F32))
    for key in [key for key, t in tensors.items() if t.dtype == F32]:
        patterns = []
        for bits in (NAN_BITS, [0x7FC00000] * 4):
            changed = tensors[key].clone()
            changed.view(torch.int32).view(-1)[1:5] = torch.tensor(bits, dtype=torch.int32)
            patterns.append([t.isnan() for t in results(name, {**tensors, key: changed})])
        assert same_bits(*patterns), key
        if key != "lengths":  # one that is not positive has no gradient
            assert any(t.any() for t in patterns[0]), key


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
def test_every_float32_rounds_as_pytorch_rounds_it(dtype):
    bits = torch.randint(-(2**31), 2**31, (2, 2**14), dtype=torch.int64).int()
    bits[0] &= -32768  # half of them halfway between two bfloat16, or on one
    bits[0, ::2] &= ~0x7F800000  # of those half again subnormal
    bits[1, ::2] = 0x38000000 - torch.randint(2**28, (2**13,)).int()  # subnormal float16
    values = bits.view(F32)
    ids = torch.arange(2**14)
    got = native.probe_scale(values, 3, SEED, ids, 0, dtype)
    signs = reference.rademacher_signs(3, ids, 2, torch.zeros(1, dtype=torch.int64), SEED, F32)[0]
    expected = (values[..., None] * signs).to(dtype)
    assert torch.equal(got.isnan(), expected.isnan())
    assert torch.equal(got.nan_to_num(nan=0.0), expected.nan_to_num(nan=0.0))


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_subnormals_are_neither_flushed_nor_rounded_twice(dtype):
    bits = torch.randint(1, 2 ** (7 if dtype == BF16 else 10), (2, 3, 256)).to(torch.int16)
    x, residual = bits.view(dtype)
    y, s = native.add_rms_norm_forward(x, residual, torch.ones(256, dtype=dtype), EPS, 0.0, "hf")
    assert torch.equal(s, x + residual)
    assert torch.equal(
        y, (s.float() * (1 / (s.double().pow(2).mean(1, keepdim=True) + EPS).sqrt()).float()).to(dtype)
    )
