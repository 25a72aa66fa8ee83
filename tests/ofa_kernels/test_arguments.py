"""Every argument that is no floating-point tensor, given everything: what works, and what the error says."""

import numpy as np
import pytest
import torch

import ofa_kernels as ok

pytestmark = pytest.mark.host

X, W, T, STATES = torch.randn(3, 4), torch.ones(4), torch.randn(2, 3, 4), torch.randn(4, 3, 4)
CALLS = {
    "rms_norm": lambda **given: ok.rms_norm(X, **{"weight": W, **given}),
    "add_rms_norm": lambda **given: ok.add_rms_norm(X, X, **{"weight": W, **given}),
    "layer_norm": lambda **given: ok.layer_norm(X, **{"weight": W, **given}),
    "rms_norm_jvp": lambda **given: ok.rms_norm_jvp(X, **{"weight": W, "x_dot": T, **given}),
    "rademacher": lambda **given: ok.rademacher(**{"shape": (2, 3), "seed": 1, **given}),
    "preconditioned_probes": lambda **given: ok.preconditioned_probes(
        **{"z": X, "weight": W, "eps": 1e-6, "seed": 1, "n_probes": 2, **given}
    ),
    "probe_dot": lambda **given: ok.probe_dot(**{"t": T, "seed": 1, **given}),
    "hutchinson_trace": lambda **given: ok.hutchinson_trace(
        **{"fn": torch.tanh, "z": X, "preconditioner": W, "n_probes": 2, "seed": 1, **given}
    ),
    "step_ratio": lambda **given: ok.step_ratio(**{"states": STATES, **given}),
}
NORMS = ("rms_norm", "add_rms_norm", "rms_norm_jvp")
PROBES = ("preconditioned_probes", "probe_dot", "hutchinson_trace")

# (operators, argument, value, error and what it says; the value it counts as where it works)
REFUSED = [
    *[
        ((*NORMS, "preconditioned_probes"), argument, value, TypeError, f"{argument} must be a number, got")
        for argument in ("eps", "offset")
        for value in (None, "1e-6", torch.tensor(1e-6), [1e-6], 1j)
    ],
    (("layer_norm",), "eps", None, TypeError, "eps must be a number, got None"),
    (NORMS[:2], "rounding", "bf16", ValueError, "rounding must be one of"),
    ((*PROBES, "rademacher"), "seed", 1.0, TypeError, "seed is an int or an int64 tensor.*1.0 of type float"),
    ((*PROBES, "rademacher"), "seed", True, TypeError, "seed is an int"),
    ((*PROBES, "rademacher"), "seed", "1", TypeError, "seed is an int"),
    ((*PROBES, "rademacher"), "seed", None, TypeError, "seed is an int"),
    ((*PROBES, "rademacher"), "seed", -1, ValueError, "64-bit unsigned integer, got -1"),
    ((*PROBES, "rademacher"), "seed", 2**64, ValueError, "64-bit unsigned integer"),
    ((*PROBES, "rademacher"), "seed", torch.tensor(1.0), TypeError, "must be int64, got torch.float32"),
    ((*PROBES, "rademacher"), "seed", torch.tensor([1, 2]), ValueError, "must be one number"),
    (PROBES, "layer", 1.0, TypeError, "layer must be an int, got 1.0"),
    (PROBES, "layer", torch.tensor(1), TypeError, "layer must be an int, got tensor"),
    (PROBES, "layer", None, TypeError, "layer must be an int"),
    (PROBES, "example_ids", torch.ones(3), TypeError, "example_ids must be integers, got torch.float32"),
    (PROBES, "example_ids", torch.ones(3).bool(), TypeError, "example_ids must be integers"),
    (PROBES, "example_ids", [0, 1, 2], TypeError, "example_ids must be a tensor, got list"),
    (PROBES, "example_ids", torch.arange(2), ValueError, "one id a row"),
    (PROBES[::2], "n_probes", 0, ValueError, "n_probes must be at least 1, got 0"),
    (PROBES[::2], "n_probes", 2.0, TypeError, "n_probes must be an int, got 2.0"),
    (PROBES[::2], "n_probes", torch.tensor(2), TypeError, "n_probes must be an int"),
    (PROBES[::2], "n_probes", True, TypeError, "n_probes must be an int"),
    (("hutchinson_trace",), "fn", lambda z: (z, z), TypeError, "fn must return a tensor like z, got tuple"),
    (("hutchinson_trace",), "fn", lambda z: None, TypeError, "got NoneType"),
    (("hutchinson_trace",), "fn", lambda z: z[:, :2], ValueError, "fn must keep z's shape"),
    (("hutchinson_trace",), "preconditioner", torch.ones(3), ValueError, "preconditioner must be"),
    (("hutchinson_trace",), "method", "exact", ValueError, "method must be one of"),
    (("rademacher",), "shape", (), ValueError, "1 to 4 sizes"),
    (("rademacher",), "shape", (1,) * 5, ValueError, "1 to 4 sizes"),
    (("rademacher",), "shape", (2, -1), ValueError, "of 0 or more"),
    (("rademacher",), "shape", (2.0,), TypeError, "a size must be an int"),
    (("rademacher",), "dtype", torch.int64, TypeError, "dtype must be float64.*got torch.int64"),
    # no columns
    (("preconditioned_probes",), "z", X[:, :0], ValueError, "N >= 1"),
    (("probe_dot",), "t", T[..., :0], ValueError, r"with both >= 1, got \(2, 3, 0\)"),
    (("hutchinson_trace",), "z", X[:, :0], ValueError, "D >= 1"),
    (("step_ratio",), "states", STATES[..., :0], ValueError, "T, B, D >= 1"),
    (("step_ratio",), "states", [1.0], TypeError, "states must be a tensor, got list"),
    (("rms_norm",), "weight", W.to(torch.float8_e4m3fn), TypeError, "weight must be floating point .float64"),
    (("layer_norm",), "weight", W.to_sparse(), TypeError, "weight must be dense, got torch.sparse_coo"),
    (NORMS, "weight", W.to_sparse(), TypeError, "must be dense, got one that is torch.sparse_coo"),
]
WORKS = [
    (NORMS, "eps", 0, 0.0),
    (NORMS, "eps", np.float32(0.5), 0.5),
    (NORMS, "offset", 1, 1.0),
    ((*NORMS, "layer_norm", "preconditioned_probes"), "weight", None, W),
    ((*PROBES, "rademacher"), "seed", np.int64(7), 7),
    ((*PROBES, "rademacher"), "seed", torch.tensor(7), 7),
    (PROBES, "layer", np.int32(3), 3),
    (PROBES, "layer", -1, 2**64 - 1),
    (PROBES, "example_ids", torch.arange(3, dtype=torch.int16), torch.arange(3)),
    (("rademacher",), "shape", 3, (3,)),
    (("rademacher",), "shape", torch.Size([2, 3]), (2, 3)),
    (("rademacher",), "device", "cpu", None),
]


def rows(table):
    return [
        pytest.param(name, *row, id=f"{name}-{row[0]}-{i}")
        for i, (names, *row) in enumerate(table)
        for name in names
    ]


@pytest.mark.parametrize(("name", "argument", "value", "error", "message"), rows(REFUSED))
def test_what_does_not_fit_is_named(name, argument, value, error, message):
    with pytest.raises(error, match=message):
        CALLS[name](**{argument: value})


@pytest.mark.parametrize(("name", "argument", "value", "same_as"), rows(WORKS))
def test_what_works_counts_as_something(backend, name, argument, value, same_as):
    got, expected = (CALLS[name](**{argument: v}) for v in (value, same_as))
    if name == "hutchinson_trace":
        got, expected = got.per_probe, expected.per_probe
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_an_empty_shape_has_no_signs(backend):
    assert ok.rademacher((0, 3), 1).shape == (0, 3) and ok.rademacher((3, 0), 1).shape == (3, 0)
