"""The mathematics against autograd, brute force and published vectors, in float64."""

import math

import pytest
import torch

from ofa_kernels import reference

EPS = 1e-5
# float64 rounding of sums of at most ten terms, enlarged a few hundred times by cancellation
CLOSE = {"rtol": 1e-12, "atol": 1e-13}

shapes = pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 5), (4, 1)], ids=str)
offsets = pytest.mark.parametrize("offset", [0.0, 1.0])


def randn(*shape):
    return torch.randn(shape, dtype=torch.float64)


@offsets
def test_forward_is_the_formula_term_by_term(offset):
    x, w = randn(7), randn(7)
    rms = math.sqrt(math.fsum(v * v for v in x.tolist()) / 7 + EPS)
    expected = torch.tensor(
        [(b + offset) * a / rms for a, b in zip(x.tolist(), w.tolist(), strict=True)], dtype=x.dtype
    )
    torch.testing.assert_close(reference.rms_norm(x, w, EPS, offset), expected, **CLOSE)


@offsets
@shapes
def test_backward_is_the_gradient(shape, offset):
    x, w, dy = randn(*shape).requires_grad_(), randn(shape[-1]).requires_grad_(), randn(*shape)
    expected = torch.autograd.grad(reference.rms_norm(x, w, EPS, offset), (x, w), dy)
    torch.testing.assert_close(reference.rms_norm_backward(x, w, dy, EPS, offset), expected, **CLOSE)


@offsets
@shapes
def test_jvp_is_the_directional_derivative(shape, offset):
    primals, tangents = (randn(*shape), randn(shape[-1])), (randn(*shape), randn(shape[-1]))
    _, expected = torch.func.jvp(lambda x, w: reference.rms_norm(x, w, EPS, offset), primals, tangents)
    torch.testing.assert_close(reference.rms_norm_jvp(*primals, *tangents, EPS, offset), expected, **CLOSE)


@offsets
@shapes
def test_backward_tangent_is_the_jvp_of_the_backward(shape, offset):
    primals = (randn(*shape), randn(shape[-1]), randn(*shape))
    tangents = (randn(*shape), randn(shape[-1]), randn(*shape))
    _, expected = torch.func.jvp(
        lambda x, w, dy: reference.rms_norm_backward(x, w, dy, EPS, offset), primals, tangents
    )
    got = reference.rms_norm_backward_tangent(*primals, *tangents, EPS, offset)
    torch.testing.assert_close(got, expected, **CLOSE)


@offsets
def test_curvature_trace_is_the_trace_of_the_hessian(offset):
    x, w, dy = randn(3, 7), randn(7), randn(3, 7)
    expected = torch.stack(
        [
            torch.func.hessian(lambda x, dy=row_dy: dy @ reference.rms_norm(x, w, EPS, offset))(row).trace()
            for row, row_dy in zip(x, dy, strict=True)
        ]
    )
    torch.testing.assert_close(
        reference.rms_norm_curvature_trace(x, w, dy, EPS, offset), expected, rtol=1e-11, atol=1e-12
    )


def test_types_follow_their_tensors():
    x, w = randn(2, 3).bfloat16(), randn(3).float()
    dx, dw = reference.rms_norm_backward(x, w, x, EPS)
    assert (reference.rms_norm(x, w, EPS).dtype, dx.dtype, dw.dtype) == (x.dtype, x.dtype, w.dtype)


@offsets
def test_preconditioner_is_gamma_over_sigma(offset):
    z, w = randn(2, 5), randn(5)
    sigma = (z.square().sum(-1, keepdim=True) / 5 + EPS).sqrt()
    torch.testing.assert_close(reference.preconditioner(z, w, EPS, offset), (w + offset) / sigma, **CLOSE)


def test_jacobian_trace_reads_each_rows_own_block():
    matrix, z, diagonal = randn(4, 4), randn(3, 4), randn(3, 4)
    expected = ((1 - (z @ matrix.T).tanh() ** 2) * matrix.diagonal() * diagonal).sum(-1)
    got = reference.jacobian_trace(lambda z: (z @ matrix.T).tanh(), z, diagonal)
    torch.testing.assert_close(got, expected, **CLOSE)


# Random123's known-answer file for philox4x32, 10 rounds: counter, key, output
PHILOX_VECTORS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), PHILOX_VECTORS, ids=["zeros", "ones", "pi"])
def test_philox_known_answers(counter, key, expected):
    words = reference.philox(tuple(torch.tensor([c]) for c in counter), key[0] | key[1] << 32)
    assert tuple(word.item() for word in words) == expected


def philox_scalar(counter, seed):
    """Salmon et al. 2011 in Python integers."""
    c, (k0, k1) = list(counter), (seed % 2**32, seed >> 32)
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c[2], 2**32)
        c = [high1 ^ c[1] ^ k0, low1, high0 ^ c[3] ^ k1, low0]
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c


@pytest.mark.parametrize("seed", [0, 0x123456789ABCDEF0, 2**64 - 1])
def test_signs_follow_the_counter_rule(seed):
    ids, layers, columns = [0, 5, 2**32 - 1], [0, 3], 150
    got = reference.rademacher_signs(columns, torch.tensor(ids), 2, torch.tensor(layers), seed, torch.float64)
    for i_layer, layer in enumerate(layers):
        for probe in range(2):
            for i_example, example in enumerate(ids):
                words = [philox_scalar((block, example, probe, layer), seed) for block in range(2)]
                expected = [
                    -1.0 if words[c // 128][c // 32 % 4] >> (c % 32) & 1 else 1.0 for c in range(columns)
                ]
                assert got[i_layer, probe, i_example].tolist() == expected
