"""The Python boundary, fuzzed: any shapes, types, layouts, devices and flags of every tensor argument.

A case is right against float64, or ends in an error that has a name. `OFA_FUZZ_CASES` sets how many there are
for each operator.
"""

import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.func import jvp

from tests.ofa_kernels.test_uses import outcome, plain
from tests.ofa_kernels.uses import EPS, INDEX, OPERATORS, linear_gradient, value

pytestmark = [pytest.mark.host, pytest.mark.filterwarnings("ignore")]

CASES = {"native": 2000, "reference": 300, "triton": 100}  # the interpreter takes a hundred times as long
TYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
LAYOUTS = {
    "contiguous": lambda t: t,
    "wider rows": lambda t: torch.cat([t, t], -1)[..., : t.shape[-1]],
    "shifted": lambda t: torch.cat([t.flatten()[:1], t.flatten()])[1:].view(t.shape),
    "every second column": lambda t: torch.stack([t, t], -1).flatten(-2)[..., ::2],
    "every second row": lambda t: torch.stack([t, t], 0)[0],
    "transposed": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
    "flipped": lambda t: t.flip(0),
    "one value": lambda t: t.flatten()[:1].expand(t.shape),
    "rows alike": lambda t: t[:1].expand(t.shape) if t.shape[0] else t,
    "negated": lambda t: torch._neg_view(-t),
    "a parameter": torch.nn.Parameter,
    "inference": lambda t: _in_inference(t),
}


def _in_inference(t):
    with torch.inference_mode():
        return t.clone()


sizes = st.sampled_from([0, 1, 2, 3, 5, 8, 31, 32, 33, 64, 70])
few = st.integers(0, 3)


def family(name):
    """An operator without what is said of its arguments: "rms_norm, a weight a row" is an "rms_norm"."""
    return name.partition(",")[0]


@st.composite
def cases(draw, name):
    """(arguments, use): those of an operator with now and then one that does not fit."""
    n, rows = draw(sizes), tuple(draw(st.lists(few, max_size=2)))
    if name in ("step_ratio", "hutchinson_trace"):
        rows = (draw(few),)
    weights = ()
    if name != family(name):  # of which each row has its own weight
        rows, weights = (len(INDEX),), (max(INDEX) + 1,)
    # a ratio needs three states, which two of three cases have
    leading = (draw(st.integers(*((1, 6) if name == "step_ratio" else (1, 4)))),)
    row, lead = (*rows, n), (*leading, *rows, n)
    shapes = {
        **dict.fromkeys(("x", "residual", "z"), row),
        **dict.fromkeys(("x_dot", "t", "states"), lead),
        **dict.fromkeys(("weight", "bias", "preconditioner"), (*weights, n)),
    }
    dtype, seed = draw(st.sampled_from(TYPES)), draw(st.integers(0, 2**31))
    generator, arguments = torch.Generator().manual_seed(seed), []
    for argument in OPERATORS[name].shapes:
        own = name == "hutchinson_trace" and argument == "weight"  # the test's, not the operator's
        shape = shapes[argument] if own or draw(st.integers(0, 15)) else draw(st.tuples(few, sizes))
        of_type = dtype if draw(st.integers(0, 3)) else draw(st.sampled_from(TYPES))
        t = torch.randn(shape, generator=generator, dtype=torch.float64).to(of_type)
        layout = LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))]
        arguments.append(layout(t) if t.numel() else t)
        if not draw(st.integers(0, 40)) and not own:
            arguments[-1] = arguments[-1].to("meta")
    return arguments, draw(st.sampled_from(["value", "gradient", "tangent"]))


def along(f, args):
    """The tangent in all arguments, whose tangents are of another type now and then."""
    return jvp(f, tuple(args), tuple((0.7 * a).cos() for a in args))[1]


def slope(name, args):
    """How steep an operator is where its rows are short: of that order is what cancels, and of 1 near 1.

    A norm is as steep as 1 / σ, its derivatives as the square; the ratio of two steps as itself over a step.
    """
    if any(a.is_meta or not a.numel() for a in args):
        return 1.0
    rows = plain(args[0])
    if name == "step_ratio":
        steps = rows.diff(dim=0).norm(dim=-1)
        return max(1.0, (steps.max() / steps.min() ** 2).item()) if steps.numel() and steps.min() else 1.0
    name = family(name)
    if name not in STEEP:
        return 1.0
    if name == "add_rms_norm" and args[1].shape == rows.shape:
        rows = rows + plain(args[1])
    if name == "layer_norm":
        rows = rows - rows.mean(-1, keepdim=True)
    shortest = (rows.square().mean(-1) + EPS).sqrt().min().item()
    return max(1.0, 1 / shortest) ** STEEP[name]


STEEP = {"rms_norm": 1, "add_rms_norm": 1, "layer_norm": 1, "rms_norm_jvp": 2, "preconditioned_probes": 2}
RUNS = {"value": value, "gradient": linear_gradient, "tangent": along}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", OPERATORS)
def test_no_case_is_wrong_in_silence(backend, name):
    n = int(os.environ.get("OFA_FUZZ_CASES", CASES[backend]))
    right = []

    @settings(
        max_examples=n,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(cases(name))
    def check(case):
        args, use = case
        operator = OPERATORS[name]

        def truth():
            right.append(use)
            return RUNS[use](operator.formula, [plain(a) for a in args])

        # rounding alike in each of the N terms of a sum that cancels
        terms = args[0].shape[-1] if name == "hutchinson_trace" else slope(name, args)
        outcome(lambda: RUNS[use](operator.call, args), truth, *args, terms=terms)

    check()
    assert len(right) > n / 10  # most cases are to be computed, not refused
