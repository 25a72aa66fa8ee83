"""Probes: the same bits everywhere, independent of the batch, and as random as they should be."""

import itertools
import random

import pytest
import torch

from ofa_kernels import hutchinson_trace, preconditioned_probes, probe_dot, rademacher, reference
from ofa_kernels.probes import mix, probe_signs
from tests.conftest import WITH_CUDA

BACKENDS = WITH_CUDA

pytestmark = pytest.mark.usefixtures("nan_poisoned_empty")

EPS = 1e-5
SEEDS = [0, 1, 2**32, 2**63, 2**64 - 1]
SHAPES = [(5,), (3, 129), (2, 3, 70), (2, 2, 2, 300), (1, 1, 1, 1), (2, 1025), (0, 4), (2, 0)]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bits_are_the_definition(backend, device, shape, seed):
    layers, probes, examples, columns = (1,) * (4 - len(shape)) + shape
    ids, layers = torch.arange(examples), torch.arange(layers)
    expected = reference.rademacher_signs(columns, ids, probes, layers, seed, torch.float32).reshape(shape)
    assert torch.equal(rademacher(shape, seed, device).cpu(), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_bits_do_not_depend_on_the_type(backend, device, dtype):
    signs = rademacher((3, 200), 7, device, dtype)
    assert signs.dtype == dtype
    assert torch.equal(signs.float(), rademacher((3, 200), 7, device))


def test_rademacher_is_the_sign_of_the_preconditioned_probes(backend, device):
    z, weight = torch.randn(3, 150, device=device), torch.randn(150, device=device)
    signs, probes = rademacher((4, 3, 150), 9, device), preconditioned_probes(z, weight, EPS, 9, 4)
    assert torch.equal(probes.sign(), (signs * weight).sign())
    expected = reference.preconditioner(z.double(), weight.double(), EPS) * signs
    assert ((probes - expected).abs() <= 4 * torch.finfo(torch.float32).eps * expected.abs()).all()


def test_probes_follow_the_example_not_the_batch(backend, device):
    z, weight = torch.randn(4, 70, device=device), torch.rand(70, device=device)
    whole = preconditioned_probes(z, weight, EPS, 3, 5, layer=2)
    ids = torch.tensor([2, 0], device=device)
    part = preconditioned_probes(z[ids], weight, EPS, 3, 5, example_ids=ids, layer=2)
    assert torch.equal(part, whole[:, ids])
    as_grid = preconditioned_probes(z.reshape(2, 2, 70), weight, EPS, 3, 5, layer=2)
    assert torch.equal(as_grid.reshape(5, 4, 70), whole)


def test_more_probes_or_columns_extend_fewer(backend, device):
    few, many = rademacher((2, 3, 70), 5, device), rademacher((4, 3, 300), 5, device)
    assert torch.equal(many[:2, :, :70], few)


def test_example_ids_count_modulo_two_to_the_32(backend, device):
    z, weight = torch.randn(2, 70, device=device), torch.ones(70, device=device)
    ids = torch.tensor([3, 2**32 - 1], device=device)
    first, second = (
        preconditioned_probes(z, weight, EPS, 1, 2, example_ids=i)
        for i in (ids, ids + torch.tensor([2**32, -(2**32)], device=device))
    )
    assert torch.equal(first, second)


@pytest.mark.parametrize("change", ["seed", "layer", "example_ids"])
def test_every_part_of_the_counter_matters(backend, device, change):
    z, weight = torch.ones(2, 128, device=device), torch.ones(128, device=device)
    other = torch.tensor([8, 9], device=device) if change == "example_ids" else 5
    arguments = {"seed": 0, "n_probes": 2}
    first = preconditioned_probes(z, weight, EPS, **arguments)
    second = preconditioned_probes(z, weight, EPS, **{**arguments, change: other})
    # of 512 fair coins about half agree: 5 standard errors either side
    assert abs((first == second).double().mean().item() - 0.5) < 5 * 0.5 / 512**0.5


def test_mean_and_correlations_are_those_of_fair_coins():
    rows, columns = 64, 4096
    streams = {
        "examples": rademacher((rows, columns), 1),
        "probes": rademacher((rows, 1, columns), 1)[:, 0],
        "layers": rademacher((rows, 1, 1, columns), 1)[:, 0, 0],
        "seeds": torch.stack([rademacher((columns,), seed) for seed in range(rows)]),
        "mixed seeds": torch.stack([rademacher((columns,), mix(0, step)) for step in range(rows)]),
        "columns": rademacher((columns, rows), 1).T,
    }
    for name, signs in streams.items():
        assert signs.mean().abs() < 5 / (rows * columns) ** 0.5, name
        correlation = signs @ signs.T / columns
        assert (correlation - torch.eye(rows)).abs().max() < 5 / columns**0.5, name


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_gradients_of_preconditioned_probes(backend, device, offset):
    z, weight = (
        torch.randn(shape, dtype=torch.float64, device=device).requires_grad_() for shape in ((2, 3), (3,))
    )
    assert torch.autograd.gradcheck(
        lambda z, w: preconditioned_probes(z, w, EPS, 4, 3, offset), (z, weight), check_forward_ad=True
    )


SPLITMIX64_OF_SEED_0 = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_mix_is_splitmix64():
    assert [mix(0, step) for step in range(3)] == SPLITMIX64_OF_SEED_0


def test_mix_is_a_probe_seed_for_any_run_seed():
    outputs = {mix(seed, step) for seed, step in itertools.product([0, 1, -1, 2**64 - 1, 2**70], range(3))}
    assert all(0 <= output < 2**64 for output in outputs)
    assert len(outputs) == 9  # -1 and 2^64 - 1 are the same seed, and so are 0 and 2^70


def in_memory(seed, device):
    """An int64 tensor with the bits of a seed."""
    return torch.tensor(seed - (seed >> 63 << 64), device=device)


def test_mix_of_tensors_has_the_same_bits(device):
    draws = random.Random(0)
    seeds = [0, 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1, *(draws.getrandbits(64) for _ in range(200))]
    for seed in seeds:
        step = draws.choice([0, 1, draws.getrandbits(20), draws.getrandbits(62)])
        expected, (seed_t, step_t) = mix(seed, step), (in_memory(value, device) for value in (seed, step))
        for found in (mix(seed_t, step), mix(seed, step_t), mix(seed_t, step_t), mix(seed - 2**64, step_t)):
            assert found.dtype == torch.int64 and found.item() % 2**64 == expected


@pytest.mark.parametrize("seed", SEEDS)
def test_a_seed_in_memory_makes_the_same_bits(backend, device, seed):
    z, weight = torch.randn(3, 150, device=device).requires_grad_(), torch.rand(150, device=device)
    tensor = in_memory(seed, device)

    def results(seed):
        probes = preconditioned_probes(z, weight, EPS, seed, 2, layer=-2)
        dots = probe_dot(probes, seed, layer=3)
        trace = hutchinson_trace(torch.sin, z, weight, 2, seed)
        values = rademacher((2, 3, 150), seed, device), probe_signs(z, seed, 2), probes, dots
        return [*values, trace.value, *torch.autograd.grad(dots.sum() + probes.sin().sum(), z)]

    for found, expected in zip(results(tensor[None]), results(seed), strict=True):
        assert torch.equal(found, expected)
    assert torch.equal(rademacher((5, 7), tensor), rademacher((5, 7), seed, device))


def test_probes_are_made_inside_every_transform(backend, device):
    z, weight = torch.randn(3, 40, device=device), torch.rand(40, device=device)

    def trace(z, seed=5):
        return (z * rademacher((3, 40), 5, device)).sum() + hutchinson_trace(
            torch.sin, z, weight, 2, seed
        ).value

    expected = torch.autograd.grad(trace(z.requires_grad_()).sum(), z)[0]
    z = z.detach()
    torch.testing.assert_close(torch.func.grad(lambda z: trace(z).sum())(z), expected)
    torch.testing.assert_close(torch.func.jvp(lambda z: trace(z).sum(), (z,), (z,))[1], (expected * z).sum())
    torch.testing.assert_close(torch.func.vmap(trace)(z.expand(2, 3, 40)), trace(z).expand(2, 3))
    seeds = torch.arange(2, device=device)
    torch.testing.assert_close(
        torch.func.vmap(lambda seed: trace(z, seed))(seeds), torch.stack([trace(z, 0), trace(z, 1)])
    )


def test_seeds_of_a_batch(backend, device):
    seeds, t = torch.arange(4, device=device), torch.randn(2, 3, 40, device=device)
    got = torch.func.vmap(lambda seed: probe_dot(t, seed))(seeds)
    torch.testing.assert_close(got, torch.stack([probe_dot(t, seed) for seed in range(4)]))


WRONG_SEEDS = {
    "float": (TypeError, r"int64 tensor of one element, got 1\.0 of type float", lambda device: 1.0),
    "bool": (TypeError, "got True of type bool", lambda device: True),
    "negative": (ValueError, r"got -1; use seed % 2\*\*64", lambda device: -1),
    "float tensor": (TypeError, "must be int64, got torch.float32", lambda d: torch.zeros(1, device=d)),
    "three": (ValueError, r"one number.*, got \(3,\)", lambda d: torch.arange(3, device=d)),
    "elsewhere": (ValueError, "on meta and the tensors on", lambda d: torch.arange(1, device="meta")),
}


@pytest.mark.parametrize("wrong", WRONG_SEEDS)
def test_what_is_no_seed_is_refused(device, wrong):
    error, message, make = WRONG_SEEDS[wrong]
    z, seed = torch.ones(2, 3, device=device), make(device)
    for call in (
        lambda: preconditioned_probes(z, z[0], EPS, seed, 1),
        lambda: probe_dot(z[None], seed),
        lambda: hutchinson_trace(torch.tanh, z, z, 1, seed),
        lambda: rademacher((3,), seed, device),
    ):
        with pytest.raises(error, match=message):
            call()


def test_mix_takes_no_fractions(device):
    with pytest.raises(TypeError, match="must be int64, got torch"):
        mix(0, torch.ones((), device=device))


Z, W = torch.ones(2, 3), torch.ones(3)
MISTAKES = {
    "negative seed": ("64-bit unsigned integer, got -1", lambda: rademacher((2,), -1)),
    "long seed": ("64-bit unsigned integer", lambda: rademacher((2,), 2**64)),
    "no sizes": ("1 to 4 sizes", lambda: rademacher((), 0)),
    "five sizes": (r"1 to 4 sizes of 0 or more, got \(1, 1, 1, 1, 1\)", lambda: rademacher((1,) * 5, 0)),
    "no probes": ("at least 1, got 0", lambda: preconditioned_probes(Z, W, EPS, 0, 0)),
    "other weight": (r"\(4,\) for \(2, 3\)", lambda: preconditioned_probes(Z, torch.ones(4), EPS, 0, 1)),
    "long seed of probes": ("64-bit", lambda: preconditioned_probes(Z, W, EPS, 2**64, 1)),
    "other ids": (
        r"one id a row, \(2,\), got \(3,\)",
        lambda: preconditioned_probes(Z, W, EPS, 0, 1, example_ids=torch.arange(3)),
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(mistake):
    message, call = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("shape", [(4, 3, 150), (2, 2, 3, 70), (5, 33)], ids=str)
def test_probe_dot_is_the_product_with_the_probes(backend, device, shape):
    t = torch.randn(shape, device=device, dtype=torch.float64)
    ids = torch.randint(1 << 40, shape[1:-1], device=device)
    signs = probe_signs(t[0], 8, shape[0], ids, 3)
    torch.testing.assert_close(probe_dot(t, 8, ids, 3), (signs * t).sum(-1))
    narrow = probe_dot(t.bfloat16(), 8, ids, 3)
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow, (signs * t.bfloat16().double()).sum(-1).float())


def test_gradients_of_probe_dot(backend, device):
    t = torch.randn(2, 3, 40, device=device, dtype=torch.float64, requires_grad=True)
    # entry by entry would be minutes of interpreted Triton; the map is linear and its values are tested above
    assert torch.autograd.gradcheck(lambda t: probe_dot(t, 4), t, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda t: probe_dot(t, 4).tanh(), t, fast_mode=True)


def test_probe_dot_of_a_batch(backend, device):
    t, ids = torch.randn(6, 2, 3, 40, device=device), torch.arange(18, device=device).view(6, 3)
    got = torch.func.vmap(lambda t, i: probe_dot(t, 4, i))(t, ids)
    expected = torch.stack([probe_dot(t[i], 4, ids[i]) for i in range(6)])
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("message", "shape", "options"),
    [
        ("n_probes, ..., D", (3,), {}),
        ("one id a row", (2, 3, 4), {"example_ids": torch.arange(2)}),
        ("64-bit unsigned", (2, 3, 4), {"seed": -1}),
    ],
    ids=["no rows", "ids", "seed"],
)
def test_mistakes_of_probe_dot_are_named(message, shape, options):
    with pytest.raises(ValueError, match=message):
        probe_dot(torch.ones(shape), **{"seed": 0, **options})
