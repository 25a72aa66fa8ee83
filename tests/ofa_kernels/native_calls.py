"""Every function of `ofa_kernels.native` as a call by name, for what must hold for all of them."""

import torch

from ofa_kernels import native
from ofa_kernels.dtypes import accumulation_dtype
from tests.ofa_kernels.bounds import BF16, EPS, F32, LAYER, SEED

OFFSET = 1.0
WEIGHTS = 3

# every function, and what it is called with
CALLS = {
    "rms_norm_forward": lambda x, weight: native.rms_norm_forward(x, weight, EPS, OFFSET, "hf"),
    "add_rms_norm_forward": lambda x, residual, weight: native.add_rms_norm_forward(
        x, residual, weight, EPS, 0.0, "hf"
    ),
    "rms_norm_backward": lambda x, weight, dy, ds: native.rms_norm_backward(
        x, weight, dy, ds, EPS, OFFSET, True, True
    ),
    "rms_norm_jvp": lambda x, weight, x_dot, weight_dot: native.rms_norm_jvp(
        x, weight, x_dot, weight_dot, EPS, OFFSET
    ),
    "rms_norm_backward_tangent": lambda x, weight, dy, x_dot, weight_dot, dy_dot: (
        native.rms_norm_backward_tangent(x, weight, dy, x_dot, weight_dot, dy_dot, EPS, OFFSET, True)
    ),
    "rms_norm_jvp_backward": lambda x, weight, dy_dot, x_dot, weight_dot: native.rms_norm_jvp_backward(
        x, weight, dy_dot, x_dot, weight_dot, EPS, OFFSET, True, True
    ),
    "rademacher": lambda ids, layers: native.rademacher(70, ids, 3, layers, SEED, F32),
    "preconditioned_probes": lambda x, weight, ids: native.preconditioned_probes(
        x, weight, EPS, OFFSET, SEED, 3, ids, LAYER
    ),
    "preconditioned_probes_backward": lambda x, weight, dy_dot, ids: native.preconditioned_probes_backward(
        x, weight, dy_dot, EPS, OFFSET, SEED, ids, LAYER
    ),
    "probe_dot": lambda x_dot, ids: native.probe_dot(x_dot, SEED, ids, LAYER),
    "probe_scale": lambda scale, ids: native.probe_scale(scale, 70, SEED, ids, LAYER, BF16),
    "rms_norm_forward, a weight per row": lambda x, weights, index: native.rms_norm_forward(
        x, weights, EPS, OFFSET, "hf", index=index
    ),
    "add_rms_norm_forward, a weight per row": lambda x, residual, weights, index: native.add_rms_norm_forward(
        x, residual, weights, EPS, 0.0, "hf", index=index
    ),
    "rms_norm_backward, a weight per row": lambda x, weights, dy, ds, index: native.rms_norm_backward(
        x, weights, dy, ds, EPS, OFFSET, True, True, index=index
    ),
    "rms_norm_jvp, a weight per row": lambda x, weights, x_dot, weights_dot, index: native.rms_norm_jvp(
        x, weights, x_dot, weights_dot, EPS, OFFSET, index
    ),
    "rms_norm_backward_tangent, a weight per row": lambda x, weights, dy, x_dot, weights_dot, dy_dot, index: (
        native.rms_norm_backward_tangent(x, weights, dy, x_dot, weights_dot, dy_dot, EPS, OFFSET, True, index)
    ),
    "rms_norm_jvp_backward, a weight per row": lambda x, weights, dy_dot, x_dot, weights_dot, index: (
        native.rms_norm_jvp_backward(x, weights, dy_dot, x_dot, weights_dot, EPS, OFFSET, True, True, index)
    ),
    "preconditioned_probes, all per row": lambda x, weights, ids, seeds, index: native.preconditioned_probes(
        x, weights, EPS, OFFSET, seeds, 3, ids, LAYER, index
    ),
    "preconditioned_probes_backward, all per row": lambda x, weights, dy_dot, ids, seeds, index: (
        native.preconditioned_probes_backward(x, weights, dy_dot, EPS, OFFSET, seeds, ids, LAYER, index)
    ),
    "probe_dot, a seed per row": lambda x_dot, ids, seeds: native.probe_dot(x_dot, seeds, ids, LAYER),
    "probe_scale, a seed per row": lambda scale, ids, seeds: native.probe_scale(
        scale, 70, seeds, ids, LAYER, BF16
    ),
    "step_lengths": lambda x_dot: native.step_lengths(x_dot),
    "step_lengths_backward": lambda x_dot, lengths, dlengths: native.step_lengths_backward(
        x_dot, lengths, dlengths
    ),
}


def arguments(name, rows=3, columns=70, tangents=3, types=(F32, F32)):
    """Fresh tensors for the call, by name."""
    acc = accumulation_dtype(torch.empty(0, dtype=types[0]))
    shapes = {
        **dict.fromkeys(("x", "residual", "dy", "ds"), ((rows, columns), types[0])),
        **dict.fromkeys(("x_dot", "dy_dot"), ((tangents, rows, columns), types[0])),
        "weight": ((columns,), types[1]),
        "weight_dot": ((tangents, columns), types[1]),
        "weights": ((WEIGHTS, columns), types[1]),
        "weights_dot": ((tangents, WEIGHTS, columns), types[1]),
        "scale": ((tangents, rows), acc),
        **dict.fromkeys(("lengths", "dlengths"), ((tangents - 1, rows), acc)),
    }
    fresh = {"ids": torch.arange(rows) * 2**31 - 5, "layers": torch.tensor([0, -1, 2**40])}
    # neither sorted nor without a weight that no row has
    fresh |= {"seeds": SEED - 2**64 - fresh["ids"], "index": torch.arange(rows).flip(0) % (WEIGHTS - 1)}
    fresh |= {key: torch.randn(shape).to(dtype) for key, (shape, dtype) in shapes.items()}
    code = CALLS[name].__code__
    return {key: fresh[key] for key in code.co_varnames[: code.co_argcount]}


def results(name, tensors):
    got = CALLS[name](**tensors)
    return got if isinstance(got, tuple) else (got,)


def same_bits(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
