"""What people do with an operator, as tables: the operators, and the uses."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functionalize, grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import ofa_kernels as ok
from ofa_kernels import formulas, reference
from tests.ofa_kernels.bounds import LAYER, SEED

EPS, OFFSET, PROBES = 1e-3, 1.0, 2
# which of three weights each row has, and a probe seed for each
INDEX, SEEDS = (2, 0, 2), (5, 6, -7)


@dataclass(frozen=True)
class Operator:
    """A public operator as a function of floating-point tensors, and the same by its formula."""

    call: Callable[..., Tensor]
    formula: Callable[..., Tensor]
    shapes: dict[str, tuple[int, ...]]

    def arguments(self, dtype=torch.float64) -> tuple[Tensor, ...]:
        """Fresh tensors, the same at every call."""
        generator = torch.Generator().manual_seed(1)
        made = [torch.randn(s, generator=generator, dtype=torch.float64) for s in self.shapes.values()]
        return tuple(t.to(dtype) for t in made)


def _joined(pair):
    return torch.cat(pair)


def _ids(n_rows):
    return torch.arange(n_rows)


def _probes(z, weight):
    rows = z.reshape(z[..., 0].numel(), z.shape[-1])
    found = formulas.preconditioned_probes(rows, weight, EPS, OFFSET, SEED, PROBES, _ids(len(rows)), LAYER)
    return found.reshape(PROBES, *z.shape)


def _of_rows(numbers, x):
    """Made at every call: real tensors that a fake mode did not make are none of its business."""
    return torch.tensor(numbers, device=getattr(x, "device", "cpu"))


def _probes_by_rows(z, weight):
    """Row by row, each with its own weight and seed."""
    keys = [(seed % 2**64, PROBES, _of_rows((i,), z), LAYER) for i, seed in enumerate(SEEDS)]
    own = zip(z.split(1), weight[list(INDEX)], keys, strict=True)
    return torch.cat([formulas.preconditioned_probes(*row, EPS, OFFSET, *key) for *row, key in own], 1)


def _dots(t):
    n_rows = t[0, ..., 0].numel()
    rows = t.reshape(t.shape[0], n_rows, t.shape[-1])
    return formulas.probe_dot(rows, SEED, _ids(n_rows), LAYER).reshape(t.shape[:-1])


def _ratio(states):
    lengths = reference.step_lengths(states)
    return (lengths[1:] / lengths[:-1]).sum(0).mean()


def _map(weight):
    return lambda z: torch.tanh(z * z.roll(1, -1)) * weight


def _trace(z, p, weight):
    ones = torch.ones(PROBES, len(z), dtype=z.dtype)
    signs = formulas.probe_scale(ones, z.shape[-1], SEED, _ids(len(z)), LAYER, z.dtype)
    products = torch.stack([reference_jvp(_map(weight), z, p * s) for s in signs])
    return _dots(products).mean(0)


def reference_jvp(f, z, v):
    """A directional derivative by two reverse passes, which nest with everything."""
    y, pull = vjp(f, z)
    return vjp(lambda c: pull(c)[0], torch.zeros_like(y))[1](v)[0]


OPERATORS = {
    "rms_norm": Operator(
        lambda x, w: ok.rms_norm(x, w, EPS, OFFSET),
        lambda x, w: reference.rms_norm(x, w, EPS, OFFSET),
        {"x": (3, 4), "weight": (4,)},
    ),
    "add_rms_norm": Operator(
        lambda x, r, w: _joined(ok.add_rms_norm(x, r, w, EPS, OFFSET)),
        lambda x, r, w: _joined(reference.add_rms_norm(x, r, w, EPS, OFFSET)),
        {"x": (3, 4), "residual": (3, 4), "weight": (4,)},
    ),
    "rms_norm, a weight a row": Operator(
        lambda x, w: ok.rms_norm(x, w, EPS, OFFSET, weight_index=_of_rows(INDEX, x)),
        lambda x, w: reference.rms_norm(x, w[list(INDEX)], EPS, OFFSET),
        {"x": (3, 4), "weight": (3, 4)},
    ),
    "add_rms_norm, a weight a row": Operator(
        lambda x, r, w: _joined(ok.add_rms_norm(x, r, w, EPS, OFFSET, weight_index=_of_rows(INDEX, x))),
        lambda x, r, w: _joined(reference.add_rms_norm(x, r, w[list(INDEX)], EPS, OFFSET)),
        {"x": (3, 4), "residual": (3, 4), "weight": (3, 4)},
    ),
    "rms_norm_jvp, a weight a row": Operator(
        lambda x, w, v: ok.rms_norm_jvp(x, w, v, EPS, OFFSET, weight_index=_of_rows(INDEX, x)),
        lambda x, w, v: reference.rms_norm_jvp(x, w[list(INDEX)], v, None, EPS, OFFSET),
        {"x": (3, 4), "weight": (3, 4), "x_dot": (2, 3, 4)},
    ),
    "layer_norm": Operator(
        lambda x, w, b: ok.layer_norm(x, w, b, EPS),
        lambda x, w, b: reference.layer_norm(x, w, b, EPS),
        {"x": (3, 4), "weight": (4,), "bias": (4,)},
    ),
    "rms_norm_jvp": Operator(
        lambda x, w, v: ok.rms_norm_jvp(x, w, v, EPS, OFFSET),
        lambda x, w, v: reference.rms_norm_jvp(x, w, v, None, EPS, OFFSET),
        {"x": (3, 4), "weight": (4,), "x_dot": (2, 3, 4)},
    ),
    "preconditioned_probes": Operator(
        lambda z, w: ok.preconditioned_probes(z, w, EPS, SEED, PROBES, OFFSET, layer=LAYER),
        _probes,
        {"z": (3, 4), "weight": (4,)},
    ),
    "preconditioned_probes, a weight and a seed a row": Operator(
        lambda z, w: ok.preconditioned_probes(
            z, w, EPS, _of_rows(SEEDS, z), PROBES, OFFSET, layer=LAYER, weight_index=_of_rows(INDEX, z)
        ),
        _probes_by_rows,
        {"z": (3, 4), "weight": (3, 4)},
    ),
    "probe_dot": Operator(
        lambda t: ok.probe_dot(t, SEED, layer=LAYER),
        _dots,
        {"t": (2, 3, 4)},
    ),
    "step_ratio": Operator(lambda states: ok.step_ratio(states), _ratio, {"states": (4, 3, 4)}),
    "hutchinson_trace": Operator(
        lambda z, p, w: ok.hutchinson_trace(_map(w), z, p, PROBES, SEED, layer=LAYER).value,
        _trace,
        {"z": (3, 4), "preconditioner": (4,), "weight": (4,)},
    ),
}


# --- uses: run(f, args) gives tensors ------------------------------------------------------------------


def weighed(y: Tensor) -> Tensor:
    """A scalar of y in which no derivative vanishes."""
    c = torch.linspace(0.3, 0.9, max(y.numel(), 1), dtype=y.dtype, device=y.device)[: y.numel()]
    return (y * c.reshape(y.shape)).sin().sum()


def _loss(f):
    return lambda *args: weighed(f(*args))


def _all(args):
    return tuple(range(len(args)))


def _like(args):
    """Tangents: of the same sizes, and other numbers."""
    return tuple((0.7 * a).cos() for a in args)


def _leaves(args):
    return tuple(a.detach().requires_grad_() for a in args)


def value(f, args):
    return f(*args)


def gradient(f, args):
    leaves = _leaves(args)
    return torch.autograd.grad(weighed(f(*leaves)), leaves)


def linear_gradient(f, args):
    """Of a sum with fixed weights, which no rounding of the value changes."""
    leaves = tuple(a.detach().requires_grad_() for a in args if a is not None)
    y = f(*(a if a is None else leaves[i] for i, a in enumerate(args)))
    weights = torch.linspace(0.3, 0.9, max(y.numel(), 1), dtype=y.dtype, device=y.device)
    return torch.autograd.grad(y, leaves, weights[: y.numel()].reshape(y.shape))


def tangent(f, args):
    return jvp(f, args, _like(args))[1]


def dual(f, args):
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(a, t) for a, t in zip(args, _like(args), strict=True)]
        return forward_ad.unpack_dual(f(*duals)).tangent


def pullback(f, args):
    y, pull = vjp(f, *args)
    return pull(y.cos())


def vmapped_pullback(f, args):
    y, pull = vjp(f, *args)
    return vmap(pull)(torch.stack([y.cos(), y.sin()]))


def tangent_of_pullback(f, args):
    y, pull = vjp(f, *args)
    return jvp(pull, (y.cos(),), (y.sin(),))[1]


def gradient_of_pullback(f, args):
    y, pull = vjp(f, *args)
    return grad(lambda c: sum(weighed(g) for g in pull(c)))(y.cos())


def batched_gradient(f, args):
    leaves = _leaves(args)
    y = f(*leaves)
    return torch.autograd.grad(y, leaves, torch.stack([y.cos(), y.sin()]), is_grads_batched=True)


def from_other_types(f, args):
    """Saved tensors come back in other types, and the rest of the backward pass is of the first."""
    leaves = _leaves(args)
    types = iter([torch.float32, torch.bfloat16, torch.float16] * 9)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: _as_real(t, next(types))):
        total = weighed(f(*leaves))
    return torch.autograd.grad(total, leaves)


def _as_real(t, dtype):
    return t.to(dtype) if t.is_floating_point() else t


def gradient_of_batched(f, args):
    leaves = _leaves(args)
    y = f(*leaves)
    grads = torch.autograd.grad(
        y, leaves, torch.stack([y.cos(), y.sin()]), is_grads_batched=True, create_graph=True
    )
    found = torch.autograd.grad(sum(weighed(0.3 * g) for g in grads), leaves, allow_unused=True)
    return tuple(g for g in found if g is not None)


def batched_second_gradient(f, args):
    leaves = _leaves(args)
    first = torch.autograd.grad(weighed(f(*leaves)), leaves, create_graph=True)
    g = torch.cat([t.flatten() for t in first])
    found = torch.autograd.grad(
        g, leaves, torch.stack([g.cos(), g.sin()]), is_grads_batched=True, allow_unused=True
    )
    return tuple(t for t in found if t is not None)


def high_order(n, f, args):
    leaves = _leaves(args)
    total = weighed(f(*leaves))
    for _ in range(n):
        found = torch.autograd.grad(total, leaves, create_graph=True, allow_unused=True)
        total = sum(weighed(0.1 * g) for g in found if g is not None)
    return total


def vmapped(f, args, which):
    dims = tuple(0 if i in which else None for i in _all(args))
    batched = tuple(torch.stack([a, a.sin()]) if i in which else a for i, a in enumerate(args))
    return vmap(f, dims)(*batched)


def traced(mode, wrap, f, args):
    run = wrap(f)
    return make_fx(run, tracing_mode=mode)(*(a.sin() for a in args))(*args)


def scripted(f, args):
    return torch.jit.trace(f, tuple(a.sin() for a in args), check_trace=False)(*args)


def scripted_gradient(f, args):
    program = torch.jit.trace(f, _leaves(a.sin() for a in args), check_trace=False)
    return gradient(program, args)


def compiled_backward(f, args):
    from torch._dynamo import compiled_autograd

    leaves = _leaves(args)
    total = weighed(f(*leaves))
    with compiled_autograd._enable(lambda graph: graph):
        total.backward()
    return tuple(leaf.grad for leaf in leaves)


def with_inference(f, args):
    with torch.inference_mode():
        return tuple(f(*(a.clone() for a in given)).clone() for given in (args, _leaves(args)))


class Watching(TorchDispatchMode):
    """Sees every operator and changes nothing."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def under(mode, run, f, args):
    with mode():
        return run(f, args)


def on_threads(f, args):
    with ThreadPoolExecutor(3) as pool:
        return list(pool.map(lambda _: gradient(f, args), range(6)))


def checkpointed(f, args):
    return gradient(lambda *a: checkpoint(f, *a, use_reentrant=False), args)


def twice(run, f, args):
    return run(f, args), run(f, args)


def _grad(f):
    return lambda *args: grad(_loss(f), _all(args))(*args)


def _jvp(f):
    return lambda *args: tangent(f, args)


# name -> (what is run, what it is compared with on the formula: the same where that is None)
USES: dict[str, tuple[Callable, Callable | None]] = {
    "value": (value, None),
    "no grad": (partial(under, torch.no_grad, value), value),
    "inference mode": (with_inference, lambda f, args: (f(*args), f(*args))),
    "gradient": (gradient, None),
    "gradient, twice": (partial(twice, gradient), None),
    "jvp": (tangent, None),
    "dual numbers": (dual, tangent),
    "pullback": (pullback, None),
    "vmap of a pullback": (vmapped_pullback, None),
    "jvp of a pullback": (tangent_of_pullback, None),
    "gradient of a pullback": (gradient_of_pullback, None),
    "is_grads_batched": (batched_gradient, None),
    "is_grads_batched at second order": (batched_second_gradient, None),
    "gradient of is_grads_batched": (gradient_of_batched, None),
    "second order": (partial(high_order, 2), None),
    "third order": (partial(high_order, 3), None),
    "fourth order": (partial(high_order, 4), None),
    "vmap": (lambda f, args: vmapped(f, args, _all(args)), None),
    "vmap of the first": (lambda f, args: vmapped(f, args, (0,)), None),
    "vmap of the last": (lambda f, args: vmapped(f, args, (len(args) - 1,)), None),
    "vmap of a gradient": (lambda f, args: vmapped(_grad(f), args, (0,)), None),
    "gradient of a vmap": (lambda f, args: _grad(lambda *a: vmapped(f, a, (0,)))(*args), None),
    "jvp of a gradient": (lambda f, args: jvp(_grad(f), args, _like(args))[1], None),
    "gradient of a jvp": (lambda f, args: _grad(_jvp(f))(*args), None),
    "jvp of a jvp": (lambda f, args: jvp(_jvp(f), args, _like(args))[1], None),
    "hessian": (lambda f, args: hessian(_loss(f), _all(args))(*args), None),
    "jacrev of jacfwd": (lambda f, args: jacrev(jacfwd(_loss(f)))(*args), None),
    "linearize": (lambda f, args: linearize(f, *args)[1](*_like(args)), tangent),
    "functionalize": (lambda f, args: functionalize(f)(*args), value),
    "functionalize a gradient": (lambda f, args: functionalize(_grad(f))(*args), gradient),
    "gradient of functionalize": (lambda f, args: _grad(functionalize(f))(*args), gradient),
    "functionalize a pullback": (lambda f, args: functionalize(vjp(f, *args)[1])(f(*args).cos()), pullback),
    **{
        f"make_fx, {mode}, {name}": (partial(traced, mode, wrap), run)
        for mode in ("real", "fake", "symbolic")
        for name, wrap, run in (
            ("value", lambda f: f, value),
            ("gradient", _grad, gradient),
            ("jvp", _jvp, tangent),
        )
    },
    "jit.trace": (scripted, value),
    "jit.trace of a gradient": (scripted_gradient, gradient),
    "compiled autograd": (compiled_backward, gradient),
    "checkpoint": (checkpointed, gradient),
    "saved on the host": (partial(under, torch.autograd.graph.save_on_cpu, gradient), gradient),
    "a watching mode": (partial(under, Watching, gradient), gradient),
    "a flop counter": (partial(under, lambda: FlopCounterMode(display=False), gradient), gradient),
    "another default device": (partial(under, lambda: torch.device("meta"), tangent), tangent),
    "anomaly mode": (partial(under, torch.autograd.detect_anomaly, gradient), gradient),
    "autocast": (partial(under, lambda: torch.autocast("cpu", torch.bfloat16), gradient), gradient),
    "threads": (on_threads, lambda f, args: [gradient(f, args)] * 6),
}
