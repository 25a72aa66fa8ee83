"""rstd that the forward has left is read by the backward, but only where x is what it was then."""

import pytest
import torch
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

import ofa_kernels as ok
from ofa_kernels import autograd, native, reference
from ofa_kernels.cuda import calls
from tests.ofa_kernels.uses import Watching

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(native.missing() is not None, reason=f"CPU kernels: {native.missing()}"),
]
ROWS, COLUMNS, EPS = 3, 70, 1e-6


def norm(x, w):
    return ok.rms_norm(x, w, EPS)


def add_norm(x, w):
    return ok.add_rms_norm(x, torch.ones_like(x), w, EPS)[0]


NORMS = {"rms_norm": norm, "add_rms_norm": add_norm}
norms = pytest.mark.parametrize("f", NORMS.values(), ids=NORMS)


def watch(kernels, monkeypatch):
    """Let a backend save rstd of the smallest tensors; the rstd of each call, in order."""
    monkeypatch.setattr(kernels, "SAVES_RSTD", True)
    monkeypatch.setattr(autograd, "RSTD_FROM", 0)
    found = {"forward": [], "backward": []}
    places = {"rms_norm_forward": 5, "add_rms_norm_forward": 6, "rms_norm_backward": 8}
    for name, place in places.items():
        spy = spied(getattr(kernels, name), place, found[name.rpartition("_")[2]])
        monkeypatch.setattr(kernels, name, spy)
    return found


@pytest.fixture
def passed(monkeypatch):
    """What native's calls are given."""
    monkeypatch.setenv("OFA_BACKEND", "native")
    return watch(native, monkeypatch)


def spied(own, place, found):
    """The function, which writes down what it is given at a place."""

    def spy(*given, **named):
        found.append(given[place] if len(given) > place else None)
        return own(*given, **named)

    return spy


def leaves():
    generator = torch.Generator().manual_seed(2)
    shapes = (ROWS, COLUMNS), (COLUMNS,)
    return tuple(torch.randn(s, generator=generator, requires_grad=True) for s in shapes)


def gradients(f, x, w, **options):
    return torch.autograd.grad(f(x, w).sin().sum(), (x, w), **options)


@norms
def test_the_backward_reads_what_the_forward_left(passed, monkeypatch, f):
    got = gradients(f, *leaves())
    (left,), (read,) = passed.values()
    assert read is left and left.shape == (ROWS,) and left.dtype == torch.float32
    s = leaves()[0] + (f is add_norm)
    assert torch.allclose(left, reference.normalise(s, EPS)[1].squeeze(-1))
    monkeypatch.setattr(native, "SAVES_RSTD", False)
    assert all(map(torch.equal, got, gradients(f, *leaves())))
    assert passed["backward"] == [left, None]


@norms
def test_the_cuda_kernels_leave_it_and_read_it(emulated_cuda, monkeypatch, f):
    monkeypatch.setenv("OFA_BACKEND", "cuda")
    expected = gradients(f, *leaves())
    passed = watch(calls, monkeypatch)
    got = gradients(f, *leaves())
    (left,), (read,) = passed.values()
    assert read is left and all(torch.allclose(a, b, atol=1e-6) for a, b in zip(got, expected, strict=True))
    s = leaves()[0] + (f is add_norm)
    assert torch.allclose(left, reference.normalise(s, EPS)[1].squeeze(-1))


@norms
def test_a_wrong_rstd_is_noticed(passed, f):
    x, w = leaves()
    y = f(x, w).sin().sum()
    expected = torch.autograd.grad(y, (x, w), retain_graph=True)
    passed["forward"][0].mul_(2)
    assert not torch.equal(torch.autograd.grad(y, x)[0], expected[0])


@norms
def test_a_graph_that_is_kept_reads_it_again(passed, f):
    x, w = leaves()
    y = f(x, w).sin().sum()
    first, second = (torch.autograd.grad(y, (x, w), retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, first, second))
    assert passed["backward"] == passed["forward"] * 2


@norms
def test_nothing_is_left_where_no_gradient_is_wanted(passed, f):
    x, w = leaves()
    f(x.detach(), w.detach())
    with torch.no_grad():
        f(x, w)
    torch.func.jvp(f, (x.detach(), w.detach()), (x.detach(), w.detach()))
    torch.func.grad(lambda x: f(x, w.detach()).sum())(x.detach())
    torch.func.vmap(f, (0, None))(x.detach()[:, None], w.detach())
    assert set(passed["forward"]) == {None} and set(passed["backward"]) == {None}


def test_nothing_is_left_of_few_rows(passed, monkeypatch):
    monkeypatch.setattr(autograd, "RSTD_FROM", ROWS * COLUMNS + 1)
    gradients(norm, *leaves())
    assert passed == {"forward": [None], "backward": [None]}


@norms
def test_hooks_that_change_x_are_obeyed(passed, f):
    x, w = leaves()
    with saved_tensors_hooks(lambda t: t, lambda t: 2 * t):
        y = f(x, w)
    dy = torch.randn_like(y)
    got = torch.autograd.grad(y, x, dy)[0]
    s = 2 * (x + (f is add_norm)).detach()
    assert torch.allclose(got, reference.rms_norm_backward(s, 2 * w.detach(), dy, EPS)[0], atol=1e-5)
    assert passed["backward"] == [None]


@norms
def test_hooks_of_a_single_saved_tensor_are_obeyed(passed, f):
    x, w = leaves()
    y = f(x, w)
    y.grad_fn._raw_saved_tensors[0].register_hooks(lambda t: t, lambda t: 2 * t)
    y.sum().backward()
    assert passed["backward"] == [None]


@pytest.mark.parametrize("watcher", [save_on_cpu, Watching])
@norms
def test_who_watches_gets_the_same_gradients(passed, f, watcher):
    expected = gradients(f, *leaves())
    with watcher():
        got = gradients(f, *leaves())
    assert all(map(torch.equal, got, expected))


@norms
def test_a_watched_backward_reads_none(passed, f):
    x, w = leaves()
    y = f(x, w).sin().sum()
    expected = torch.autograd.grad(y, (x, w), retain_graph=True)
    with Watching():
        got = torch.autograd.grad(y, (x, w), retain_graph=True)
    recorded = torch.autograd.grad(y, (x, w), create_graph=True)
    for found in (got, recorded):
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))
    assert passed["backward"][1:] == [None, None]
    torch.autograd.grad(recorded[0].square().sum(), (x, w))


@norms
def test_checkpointing_reads_none(passed, f):
    expected = gradients(f, *leaves())
    got = gradients(lambda x, w: checkpoint(f, x, w, use_reentrant=False), *leaves())
    assert all(map(torch.equal, got, expected))
    assert passed["backward"][1:] == [None]


def test_what_was_changed_in_place_is_refused(passed):
    x, w = leaves()
    h = x * 1
    y = norm(h, w)
    h.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
