"""A weight for each row: every order against a row by row computation, and what is refused."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import ofa_kernels as ok

EPS, OFFSET, SEED, ROWS, COLUMNS = 1e-3, 1.0, 11, 5, 4

INDICES = {
    "random": lambda n: torch.tensor([n - 1, 0, n // 2, 0, n - 1]),
    "sorted": lambda n: torch.tensor([0, 0, n // 2, n - 1, n - 1]),
    "constant": lambda n: torch.full((ROWS,), n - 1),
}
orders = pytest.mark.parametrize("order", INDICES)
counts = pytest.mark.parametrize("n_weights", [1, 3, 1000])


def by_rows(call):
    """The call for every row by itself, with the row's own weight."""

    def separate(x, weight, *more, index, **named):
        rows = []
        for i, a in enumerate(index.tolist()):
            own = {name: value[i : i + 1] for name, value in named.items()}
            rows.append(call(x[i : i + 1], weight[a], *(t[..., i : i + 1, :] for t in more), **own))
        if isinstance(rows[0], tuple):
            return torch.cat([torch.cat(part, -2) for part in zip(*rows, strict=True)])
        return torch.cat(rows, -2)

    return separate


def together(call):
    def found(x, weight, *more, index, **named):
        y = call(x, weight, *more, weight_index=index, **named)
        return torch.cat(y) if isinstance(y, tuple) else y

    return found


def _norm(x, w, **named):
    return ok.rms_norm(x, w, EPS, OFFSET, **named)


def _add_norm(x, w, residual, **named):
    return ok.add_rms_norm(x, residual, w, EPS, OFFSET, **named)


def _jvp(x, w, x_dot, **named):
    return ok.rms_norm_jvp(x, w, x_dot, EPS, OFFSET, **named)


def _probes(z, w, example_ids, seed, **named):
    options = {"example_ids": example_ids, "seed": seed} | named
    return ok.preconditioned_probes(z, w, EPS, n_probes=2, offset=OFFSET, layer=3, **options)


# of a row's tensors besides x: their shapes, and the integers that a row has of its own
OPERATORS = {
    "rms_norm": (_norm, (), False),
    "add_rms_norm": (_add_norm, ((ROWS, COLUMNS),), False),
    "rms_norm_jvp": (_jvp, ((2, ROWS, COLUMNS),), False),
    "preconditioned_probes": (_probes, (), True),
}
operators = pytest.mark.parametrize("name", OPERATORS)


def problem(device, name, n_weights, order, columns=COLUMNS, dtype=torch.float64):
    call, shapes, numbered = OPERATORS[name]
    sizes = [(ROWS, columns), (n_weights, columns), *((*s[:-1], columns) for s in shapes)]
    tensors = [torch.randn(s, dtype=torch.float64).to(device, dtype).requires_grad_() for s in sizes]
    named = {"index": INDICES[order](n_weights).to(device)}
    if numbered:
        named["example_ids"] = torch.tensor([7, 1, 1, 0, 9], device=device)
        named["seed"] = torch.tensor([5, -6, 7, 5, 1 << 40], device=device)
    return call, tensors, named


def derivatives(call, tensors, named, n=3):
    """The value, and gradients of weighted sums up to the third order."""
    found = [call(*tensors, **named)]
    scalar = (
        found[0] * torch.linspace(-1, 2, found[0].numel(), device=found[0].device).view_as(found[0])
    ).sum()
    for _ in range(n):
        gradients = torch.autograd.grad(scalar, tensors, create_graph=True)
        found += gradients
        scalar = sum(
            (g * torch.linspace(2, -1, g.numel(), device=g.device).view_as(g)).sum() for g in gradients
        )
    return [t.detach() for t in found]


@operators
@orders
@counts
def test_every_row_has_its_own_weight_at_every_order(backend, device, name, order, n_weights):
    call, tensors, named = problem(device, name, n_weights, order)
    n = 3 if backend in ("reference", "native") else 2
    got, truth = (derivatives(how(call), tensors, named, n) for how in (together, by_rows))
    for a, b in zip(got, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@operators
@orders
def test_gradcheck_at_first_and_second_order(backend, device, name, order):
    call, tensors, named = problem(device, name, 3, order, columns=3)

    def function(*tensors):
        return together(call)(*tensors, **named)

    assert gradcheck(function, tensors, check_forward_ad=True)
    assert gradgradcheck(function, tensors)


@operators
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_types(backend, device, name, dtype):
    call, tensors, named = problem(device, name, 3, "random", columns=40, dtype=dtype)
    tensors[1] = tensors[1].detach().float().requires_grad_()  # γ, as it is held beside 16-bit states
    got = together(call)(*tensors, **named)
    truth = by_rows(call)(*(t.detach().double() for t in tensors), **named)
    assert got.dtype == dtype
    # a handful of roundings, one of them of the normalised row, beside the largest number
    assert (got - truth).abs().max() <= 4 * torch.finfo(dtype).eps * truth.abs().max()


@operators
def test_weights_without_rows_get_no_gradient(backend, device, name):
    call, tensors, named = problem(device, name, 1000, "random")
    together(call)(*tensors, **named).square().sum().backward()
    unused = torch.ones(1000, dtype=torch.bool)
    unused[named["index"].cpu()] = False
    assert (tensors[1].grad[unused.to(device)] == 0).all() and tensors[1].grad.abs().sum() > 0


@operators
def test_equal_calls_give_equal_bits(backend, device, name):
    call, tensors, named = problem(device, name, 3, "random", columns=33, dtype=torch.float32)
    first, second = (derivatives(together(call), tensors, named, 1) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_any_leading_shape_and_strides(backend, device):
    x = torch.randn(2, 3, 8, device=device).transpose(0, 1)[..., ::2].requires_grad_()
    weight = torch.randn(4, 3, device=device).T.requires_grad_()
    index = torch.tensor([[0, 2, 1], [2, 2, 0]], device=device).T
    y = ok.rms_norm(x, weight, EPS, weight_index=index)
    dx, dw = torch.autograd.grad(y.sin().sum(), (x, weight))
    rows = [t.detach().reshape(6, 4).requires_grad_() for t in (x,)]
    flat = ok.rms_norm(rows[0], weight, EPS, weight_index=index.reshape(-1))
    assert torch.equal(y.reshape(6, 4), flat)
    dx_flat, dw_flat = torch.autograd.grad(flat.sin().sum(), (rows[0], weight))
    torch.testing.assert_close(dx.reshape(6, 4), dx_flat)
    torch.testing.assert_close(dw, dw_flat)


def test_one_weight_is_the_weight_of_all(backend, device):
    x, weight = torch.randn(7, 40, device=device), torch.randn(40, device=device)
    zeros = torch.zeros(7, dtype=torch.int64, device=device)
    assert torch.equal(ok.rms_norm(x, weight[None], weight_index=zeros), ok.rms_norm(x, weight))


def test_nothing_of_nothing(backend, device):
    x, weight = torch.zeros(0, 8, device=device), torch.ones(2, 8, device=device, requires_grad=True)
    index = torch.zeros(0, dtype=torch.int64, device=device)
    y = ok.rms_norm(x, weight, weight_index=index)
    y.sum().backward()
    assert y.shape == (0, 8) and (weight.grad == 0).all()


def test_a_seed_for_each_row_is_that_of_the_single_calls(backend, device):
    t, ids = torch.randn(2, 4, 300, device=device), torch.tensor([3, 3, 0, 1], device=device)
    seeds = torch.tensor([1, 2, -3, 1], device=device)
    found = ok.probe_dot(t, seeds, ids, 5)
    single = [
        ok.probe_dot(t[:, i : i + 1], seed % 2**64, ids[i : i + 1], 5)
        for i, seed in enumerate(seeds.tolist())
    ]
    torch.testing.assert_close(found, torch.cat(single, 1))
    leaf = t.requires_grad_()
    (signs,) = torch.autograd.grad(ok.probe_dot(leaf, seeds, ids, 5).sum(), leaf)
    again = [
        ok.preconditioned_probes(torch.ones(1, 300, device=device), None, 0.0, s % 2**64, 2,
                                 example_ids=ids[i : i + 1], layer=5)
        for i, s in enumerate(seeds.tolist())
    ]  # fmt: skip
    assert torch.equal(signs, torch.cat(again, 1))


def test_an_index_that_was_changed_in_place_is_refused_or_not_read_again(backend, device):
    call, tensors, named = problem(device, "rms_norm", 3, "random")
    (expected,) = torch.autograd.grad(together(call)(*tensors, **named).sum(), tensors[1])
    y = together(call)(*tensors, **named)
    named["index"].zero_()
    if backend == "reference":  # PyTorch's own gradient keeps a copy
        assert torch.equal(torch.autograd.grad(y.sum(), tensors[1])[0], expected)
        return
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


REFUSED = {
    "a weight of one dimension": (ValueError, r"weight must be \[A, N\]", {"weight": lambda w: w[0]}),
    "no weights": (ValueError, "with A, N >= 1", {"weight": lambda w: w[:0]}),
    "no weight": (ValueError, "needs a weight", {"weight": lambda w: None}),
    "another length": (ValueError, r"weight must be \[A, N\]", {"weight": lambda w: w[:, 1:]}),
    "a list": (TypeError, "must be a tensor, got list", {"index": lambda i: i.tolist()}),
    "of int32": (TypeError, r"must be int64, got torch.int32; use .long\(\)", {"index": lambda i: i.int()}),
    "of floats": (TypeError, "must be int64", {"index": lambda i: i.double()}),
    "too few": (ValueError, r"one index a row, dense and \(5,\), got \(4,\)", {"index": lambda i: i[1:]}),
    "one for all": (ValueError, "one index a row", {"index": lambda i: i[0]}),
    "elsewhere": (ValueError, "weight_index on meta", {"index": lambda i: i.to("meta")}),
    "negative": (IndexError, "from 0 to 2.* got -1", {"index": lambda i: i - 1}),
    "too large": (IndexError, "from 0 to 2.* got 3", {"index": lambda i: i + 1}),
}


@pytest.mark.host
@operators
@pytest.mark.parametrize("wrong", REFUSED)
def test_what_does_not_fit_is_refused(backend, name, wrong):
    error, message, change = REFUSED[wrong]
    call, (x, weight, *more), named = problem("cpu", name, 3, "random")
    with torch.no_grad():
        weight = change.get("weight", lambda w: w)(weight)
        named["index"] = change.get("index", lambda i: i)(named["index"])
        with pytest.raises(error, match=message):
            together(call)(x, weight, *more, **named)


def test_weights_without_an_index_are_refused(device):
    x = torch.ones(3, 4, device=device)
    with pytest.raises(ValueError, match="a weight for each row needs a weight_index"):
        ok.rms_norm(x, x)


@pytest.mark.parametrize("value", [-1, 3])
def test_on_a_gpu_a_row_out_of_range_is_nan_or_refused(device, monkeypatch, value):
    if device != "cuda":
        pytest.skip("there is neither a GPU nor one that behaves like it")
    call, tensors, named = problem(device, "rms_norm", 3, "random")
    named["index"][1] = value
    y = together(call)(*tensors, **named)
    (dw,) = torch.autograd.grad(y.sum(), tensors[1])
    others = [0, 2, 3, 4]
    kept = call(tensors[0][others], tensors[1], weight_index=named["index"][others])
    (expected,) = torch.autograd.grad(kept.sum(), tensors[1])
    assert y[1].isnan().all() and torch.equal(y[others], kept)
    torch.testing.assert_close(dw, expected)
    monkeypatch.setenv("OFA_DEBUG", "1")
    with pytest.raises(IndexError, match=f"got {value}"):
        together(call)(*tensors, **named)
