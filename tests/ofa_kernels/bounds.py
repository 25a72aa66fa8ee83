"""How far a result may be from the float64 truth: what its sums add up in magnitude, times the roundings."""

from types import SimpleNamespace

import torch

from ofa_kernels import reference
from ofa_kernels.dtypes import accumulation_dtype

EPS = 1e-6
# of the probes, where nothing depends on which they are: no 63 bits hold it; and a layer below 0
SEED, LAYER = 2**64 - 3, -2
F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
TYPES = [(F64, F64), (F64, F32), (F32, F32), (BF16, BF16), (BF16, F32), (F16, F16), (F16, F32)]
# below, at and above one vector, one pair of them, one panel and one sum of panels; two lengths are primes
SIZES = [1, 3, 31, 32, 33, 70, 129, 576, 1100, 4099]
LONG_SIZES = [8191, 65537]
# a sum is a chain of 32 products, then of float64; some products and a rounding or two surround it
CHAIN, PANEL = 40, 512


def type_names(types):
    return "-".join(str(dtype)[6:] for dtype in types)


def unit(dtype):
    """The largest relative error of rounding to dtype once."""
    return torch.finfo(dtype).eps / 2


def steps_apart(a, b):
    """How many numbers of their 16-bit type lie from a to b, which have one sign: neighbours as integers."""
    return (a.view(torch.int16).int() - b.view(torch.int16).int()).abs()


def assert_within(got, truth, scale, x, *roundings, sums=1, terms=0):
    """The error is at most what the roundings, `sums` sums along x's rows and one of `terms` explain."""
    acc = accumulation_dtype(x)
    exact = 2 if acc == F64 else 1  # the truth itself is rounded, too
    relative = 1 + exact * (sums * (CHAIN + x.shape[-1] / PANEL) + terms) * unit(acc)
    for dtype in roundings:
        relative *= 1 + unit(dtype)
    finfo = torch.finfo(got.dtype)
    bound = scale * (relative - 1) + 8 * finfo.smallest_normal * finfo.eps  # subnormals are absolute steps
    assert got.shape == truth.shape
    # what overflows its type is infinite there
    got, truth = (t.double().clamp(-finfo.max, finfo.max) for t in (got, truth))
    error = (got - truth).abs() / bound
    assert (error <= 1).all(), f"{error.max().item():.3g} times the bound"


def doubles(*tensors):
    return tuple(None if t is None else t.double() for t in tensors)


def magnitudes(x, weight, offset=0.0, dy=None, x_dot=None, weight_dot=None, dy_dot=None):
    """RMSNorm's results with every term taken positive; those of dw per row."""
    x, dy, x_dot, dy_dot = (
        torch.zeros(()) if t is None else t.double().abs() for t in (x, dy, x_dot, dy_dot)
    )
    mean, (x_hat, r) = reference.mean, reference.normalise(x, EPS)
    w = (weight.double() + offset).abs()
    weight_dot = reference.beside_rows(None if weight_dot is None else weight_dot.abs(), x_hat)
    g, m = w * dy, mean(x_hat * x_dot)
    c, x_hat_dot = mean(g * x_hat), r * (x_dot + x_hat * m)
    g_dot = w * dy_dot + weight_dot * dy
    c_dot = mean(g_dot * x_hat + g * x_hat_dot)
    return SimpleNamespace(
        y=w * x_hat,
        dx=r * (g + x_hat * c),
        dw=dy * x_hat,
        y_dot=w * x_hat_dot + weight_dot * x_hat,
        dx_dot=r**2 * m * (g + x_hat * c) + r * (g_dot + x_hat_dot * c + x_hat * c_dot),
        dw_dot=dy_dot * x_hat + dy * x_hat_dot,
    )
