"""Hutchinson traces: against the full Jacobian, and the error they state against the error they make."""

import pytest
import torch
from torch.autograd import gradcheck

from ofa_kernels import hutchinson_trace, reference, rms_norm
from tests.conftest import WITH_CUDA

BACKENDS = WITH_CUDA

ROWS, SIZE = 3, 5


@pytest.fixture
def problem():
    """A nonlinear map of rows, where to differentiate it, and a preconditioner, in float64."""
    matrix = torch.randn(SIZE, SIZE, dtype=torch.float64)
    z, p = (torch.randn(ROWS, SIZE, dtype=torch.float64) for _ in range(2))
    return lambda z: (z @ matrix).tanh() * z, z, p


@pytest.mark.parametrize("shared", [False, True])
def test_value_is_the_trace_within_its_standard_error(problem, shared):
    fn, z, p = problem
    p = p[0] if shared else p
    estimate = hutchinson_trace(fn, z, p, 400, seed=1)
    assert estimate.value.shape == estimate.stderr.shape == (ROWS,)
    assert estimate.per_probe.shape == (400, ROWS)
    assert torch.equal(estimate.value, estimate.per_probe.mean(0))
    torch.testing.assert_close(estimate.stderr, estimate.per_probe.std(0, correction=1) / 20)
    assert ((estimate.value - reference.jacobian_trace(fn, z, p)).abs() < 4 * estimate.stderr).all()


def test_trace_of_a_norm_on_every_backend(backend, device):
    z, weight = (torch.randn(shape, dtype=torch.float64, device=device) for shape in ((ROWS, 6), (6,)))
    p = reference.preconditioner(z, weight, 1e-6)
    estimate = hutchinson_trace(lambda z: rms_norm(z, weight), z, p, 100, seed=1)
    truth = reference.jacobian_trace(lambda z: reference.rms_norm(z, weight, 1e-6), z, p)
    assert ((estimate.value - truth).abs() < 4 * estimate.stderr).all()


def test_diagonal_map_is_exact(problem):
    _, z, p = problem
    estimate = hutchinson_trace(torch.tanh, z, p, 8, seed=1)
    exact = ((1 - z.tanh() ** 2) * p).sum(-1)
    torch.testing.assert_close(estimate.value, exact, rtol=1e-14, atol=1e-14)
    assert (estimate.stderr < 1e-15).all()


def test_standard_error_shrinks_with_the_root_of_the_probes(problem):
    few, many = (hutchinson_trace(*problem, n, seed=1).stderr for n in (256, 4096))
    # a standard deviation from 256 draws is itself 4 % off, so 20 % is beyond chance
    torch.testing.assert_close(many, few / 4, rtol=0.2, atol=0)


def test_stated_standard_error_is_the_one_made(problem):
    runs = [hutchinson_trace(*problem, 16, seed=seed) for seed in range(200)]
    made = torch.stack([run.value for run in runs]).std(0)
    stated = torch.stack([run.stderr for run in runs]).square().mean(0).sqrt()
    # a standard deviation from 200 draws is 5 % off
    torch.testing.assert_close(stated, made, rtol=0.2, atol=0)


def test_variance_of_a_linear_map_is_the_formula():
    matrix, p = torch.randn(SIZE, SIZE, dtype=torch.float64), torch.rand(SIZE, dtype=torch.float64)
    product = matrix.T * p  # fn(z) = z A has the Jacobian Aᵀ
    symmetric = (product + product.T) / 2
    variance = 2 * (symmetric.square().sum() - symmetric.diagonal().square().sum())
    z = torch.zeros(1, SIZE, dtype=torch.float64)
    estimate = hutchinson_trace(lambda z: z @ matrix, z, p, 20_000, seed=1)
    # sqrt((kurtosis - 1) / 20,000) is 1 to 2 % for a quadratic form in ±1
    torch.testing.assert_close(estimate.per_probe.var(0), variance[None], rtol=0.08, atol=0)


def test_finite_differences_agree(problem):
    jvp, fd = (
        hutchinson_trace(*problem, 8, seed=1, method=method, fd_eps=1e-6).per_probe
        for method in ("jvp", "fd")
    )
    torch.testing.assert_close(fd, jvp, rtol=1e-5, atol=1e-5)


def test_finite_difference_is_the_one_sided_formula(problem):
    fn, z, p = problem
    ids = torch.arange(ROWS)
    nu = reference.rademacher_signs(SIZE, ids, 2, torch.tensor([3]), 1, z.dtype)[0]
    expected = torch.stack([(v * (fn(z + 1e-3 * p * v) - fn(z))).sum(-1) / 1e-3 for v in nu])
    got = hutchinson_trace(fn, z, p, 2, seed=1, method="fd", layer=3).per_probe
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", ["jvp", "fd"])
def test_gradients_reach_state_preconditioner_and_closed_over_weights(method):
    matrix, z, p = (
        torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in ((4, 4), (2, 4), (2, 4))
    )

    def value(z, p, matrix):
        # a step of 0.1 keeps the rounding of the difference below gradcheck's own
        return hutchinson_trace(lambda z: (z @ matrix).tanh() * z, z, p, 3, 1, method, fd_eps=0.1).value

    assert gradcheck(value, (z, p, matrix))


def test_rows_follow_their_example_ids(problem):
    fn, z, p = problem
    ids = torch.tensor([2, 0])
    whole, part = (
        hutchinson_trace(fn, z, p, 4, 1),
        hutchinson_trace(fn, z[ids], p[ids], 4, 1, example_ids=ids),
    )
    torch.testing.assert_close(part.per_probe, whole.per_probe[:, ids], rtol=1e-14, atol=1e-14)


def test_one_probe_has_no_standard_error(problem):
    estimate = hutchinson_trace(*problem, 1, seed=1)
    assert estimate.stderr.isnan().all()
    assert torch.equal(estimate.value, estimate.per_probe[0])


def test_bfloat16_states_are_summed_in_float32():
    z = torch.ones(1, 301, dtype=torch.bfloat16)
    estimate = hutchinson_trace(lambda z: z, z, torch.ones(301), 2, seed=1)
    assert estimate.value.dtype == torch.float32
    assert estimate.value.item() == 301  # bfloat16 has 300 and 302


def test_standard_error_has_no_gradient(problem):
    fn, z, p = problem
    estimate = hutchinson_trace(fn, z.requires_grad_(), p, 2, seed=1)
    assert estimate.value.requires_grad and not estimate.stderr.requires_grad


Z, P = torch.ones(2, 3), torch.ones(3)
MISTAKES = {
    "one row without its dimension": (
        r"\[rows, D\] with D >= 1, got \(3,\)",
        lambda: hutchinson_trace(torch.tanh, P, P, 1, 0),
    ),
    "other method": ("'central'", lambda: hutchinson_trace(torch.tanh, Z, P, 1, 0, method="central")),
    "no probes": ("at least 1, got 0", lambda: hutchinson_trace(torch.tanh, Z, P, 0, 0)),
    "negative seed": ("64-bit", lambda: hutchinson_trace(torch.tanh, Z, P, 1, -1)),
    "fn to another shape": (
        r"\(2, 3\), got \(2,\)",
        lambda: hutchinson_trace(lambda z: z.sum(-1), Z, P, 1, 0),
    ),
    "other ids": (
        "one id a row",
        lambda: hutchinson_trace(torch.tanh, Z, P, 1, 0, example_ids=torch.arange(3)),
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(mistake):
    message, call = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        call()
