"""Every operator of a backend against float64 where its arguments are large or small."""

import torch

from ofa_kernels import reference
from tests.ofa_kernels.bounds import EPS, F32, F64, LAYER, SEED, assert_within, doubles, magnitudes

K = 2
SHAPES = {"weight": (70,), "weight_dot": (K, 70), **dict.fromkeys(("x_dot", "dy_dot"), (K, 3, 70))}


def ids_of(t):
    return torch.tensor([5, -1, 2**63 - 1], device=t.device)


def signs(z):
    layers = torch.tensor([LAYER], device=z.device)
    return reference.rademacher_signs(70, ids_of(z), K, layers, SEED, z.dtype)[0]


def forward(kernels, x, weight):
    got = kernels.rms_norm_forward(x, weight, EPS, 0.0, "fp32")
    yield got, reference.rms_norm(*doubles(x, weight), EPS), magnitudes(x, weight).y, 1


def backward(kernels, x, weight, dy):
    got = kernels.rms_norm_backward(x, weight, dy, None, EPS, 0.0, True, True)
    truth, scale = reference.rms_norm_backward(*doubles(x, weight, dy), EPS), magnitudes(x, weight, 0, dy)
    yield from zip(got, truth, (scale.dx, scale.dw.sum(0)), (3, 2), strict=True)


def jvp(kernels, x, weight, x_dot, weight_dot):
    call = x, weight, x_dot, weight_dot
    truth, scale = reference.rms_norm_jvp(*doubles(*call), EPS), magnitudes(x, weight, 0, None, *call[2:])
    yield kernels.rms_norm_jvp(*call, EPS, 0.0), truth, scale.y_dot, 3


def backward_tangent(kernels, x, weight, dy, x_dot, weight_dot, dy_dot):
    call = x, weight, dy, x_dot, weight_dot, dy_dot
    got = kernels.rms_norm_backward_tangent(*call, EPS, 0.0, True)
    truth = reference.rms_norm_backward_tangent(*doubles(*call), EPS)
    scale = magnitudes(x, weight, 0, *call[2:])
    yield from zip(got, truth, (scale.dx_dot, scale.dw_dot.sum(1)), (6, 3), strict=True)


def jvp_backward(kernels, x, weight, dy_dot, x_dot, weight_dot):
    call = x, weight, dy_dot, x_dot, weight_dot
    got = kernels.rms_norm_jvp_backward(*call, EPS, 0.0, True, True)
    truth = reference.rms_norm_jvp_backward(*doubles(*call), EPS)
    scale = magnitudes(x, weight, 0, *call[2:])
    scales = scale.dx_dot.sum(0), scale.dw_dot.sum((0, 1)), scale.dx, scale.dw.sum(1)
    yield from zip(got, truth, scales, (6, 3, 3, 2), strict=True)


def probes(kernels, x, weight):
    truth = reference.preconditioner(*doubles(x, weight), EPS) * signs(x.double())
    yield kernels.preconditioned_probes(x, weight, EPS, 0.0, SEED, K, ids_of(x), LAYER), truth, truth.abs(), 1


def probes_backward(kernels, x, weight, dy_dot):
    got = kernels.preconditioned_probes_backward(x, weight, dy_dot, EPS, 0.0, SEED, ids_of(x), LAYER)
    z, w, dp = doubles(x, weight, dy_dot)
    truth = reference.preconditioned_probes_backward(z, w, signs(z), dp, EPS)
    (z_hat, r), q = reference.normalise(z, EPS), dp.abs().sum(0)
    scales = r**2 * z_hat.abs() * reference.mean(w.abs() * q), (q * r).sum(0)
    yield from zip(got, truth, scales, (3, 2), strict=True)


def probe_dot(kernels, x_dot):
    truth = (x_dot.double() * signs(x_dot.double())).sum(-1)
    yield kernels.probe_dot(x_dot, SEED, ids_of(x_dot), LAYER), truth, x_dot.double().abs().sum(-1), 1


def step_lengths(kernels, x_dot):
    truth = reference.step_lengths(x_dot.double())
    yield kernels.step_lengths(x_dot), truth, truth, 1


def step_lengths_backward(kernels, x_dot, dlengths):
    lengths = kernels.step_lengths(x_dot)
    z, n, dn = doubles(x_dot, lengths, dlengths)
    pulls = torch.nn.functional.pad(z.diff(dim=0).abs() * (dn / n).abs()[..., None], (0, 0, 0, 0, 1, 1))
    truth = reference.step_lengths_backward(z, n, dn)
    yield kernels.step_lengths_backward(x_dot, lengths, dlengths), truth, pulls[1:] + pulls[:-1], 1


OPERATORS = [
    forward, backward, jvp, backward_tangent, jvp_backward,
    probes, probes_backward, probe_dot, step_lengths, step_lengths_backward,
]  # fmt: skip
SCALES = [1e-38, 1e-30, 1e-19, 1e-10, 1e10, 1e19, 1e30, 1e37]


def arguments(operator):
    """The names of its tensors."""
    return operator.__code__.co_varnames[1 : operator.__code__.co_argcount]


def check_at(scales, kernels, operator, types=(F32, F32), device="cpu"):
    """An operator whose arguments are as large as `scales` says, and near 1 where it says nothing."""
    tensors = []
    for name in arguments(operator):
        shape = (K - 1, 3) if name == "dlengths" else SHAPES.get(name, (3, 70))
        dtype = F32 if name == "dlengths" else types[name.startswith("weight")]
        values = torch.randn(shape, dtype=F64, device=device)
        tensors.append((values * scales.get(name, 1.0)).to(dtype))
    for got, truth, scale, sums in operator(kernels, *tensors):
        if scale.max() < torch.finfo(got.dtype).max / 8:  # else terms that cancel may be infinite
            assert_within(got, truth, scale, tensors[0], got.dtype, sums=sums, terms=6)
