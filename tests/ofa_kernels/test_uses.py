"""Use against operator against backend: every cell is right against float64, or an error that has a name."""

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import jvp, vjp
from torch.utils._pytree import tree_leaves

import ofa_kernels as ok
from tests.ofa_kernels.kinds import KINDS
from tests.ofa_kernels.uses import OPERATORS, USES, from_other_types, gradient, linear_gradient, value

pytestmark = [pytest.mark.host, pytest.mark.filterwarnings("ignore")]

operators = pytest.mark.parametrize("name", OPERATORS)
# AssertionError: PyTorch's own, where fake tensors meet others
NAMED = (TypeError, IndexError, ValueError, RuntimeError, NotImplementedError, AssertionError)


def tensors(tree) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def check(got, truth, tolerance=1e-10, terms=0.0):
    """Tree against tree, errors beside the largest tensor: what is zero in truth may be rounded."""
    got, truth = ([t.detach().double() for t in tensors(tree)] for tree in (got, truth))
    assert [t.shape for t in got] == [t.shape for t in truth]
    scale = max((b.norm() for b in truth), default=0.0)
    for a, b in zip(got, truth, strict=True):
        assert (a - b).norm() <= tolerance * max(scale, terms * b.numel() ** 0.5), (a, b)


@pytest.mark.parametrize("use", USES)
@operators
def test_every_use(backend, name, use):
    if use == "threads" and backend == "triton" and not torch.cuda.is_available():
        pytest.skip("Triton's interpreter patches the language globally: one thread at a time")
    run, like = USES[use]
    operator = OPERATORS[name]
    truth = (like or run)(operator.formula, operator.arguments())
    check(run(operator.call, operator.arguments()), truth)


@operators
def test_a_fake_mode_over_real_tensors_computes_nothing(backend, name):
    operator = OPERATORS[name]
    expected = operator.formula(*operator.arguments())
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        y = operator.call(*operator.arguments())
    assert type(y).__name__ == "FakeTensor" and (y.shape, y.dtype) == (expected.shape, expected.dtype)


@operators
def test_saved_tensors_of_other_types_are_right_or_named(backend, name):
    operator = OPERATORS[name]
    try:
        got = from_other_types(operator.call, operator.arguments())
    except Exception as error:
        assert named(error), repr(error)
        return
    check(got, gradient(operator.formula, operator.arguments()), tolerance=0.1, terms=1.0)


def test_signs_are_deaf_to_a_default_device(backend):
    with torch.device("meta"):
        signs = ok.rademacher((2, 8), 0, device="cpu")
    assert torch.equal(signs, ok.rademacher((2, 8), 0))


def test_the_third_order_of_layer_norm():
    """Of the weights 0, 1, 2 on y and 1, 2, 0 on each gradient, three times."""
    x = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    total = ok.layer_norm(x, None, None, 1e-5) @ torch.arange(3.0, dtype=torch.float64)
    for _ in range(3):
        (g,) = torch.autograd.grad(total, x, create_graph=True)
        total = g @ torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)
    assert total.item() == pytest.approx(0.25656, abs=1e-5)  # PyTorch's own gives -2.854


def named(error: Exception) -> bool:
    """Whether an error says something, and not that PyTorch is broken inside."""
    return isinstance(error, NAMED) and bool(str(error)) and "INTERNAL ASSERT" not in str(error)


def plain(t) -> Tensor:
    """The values of a tensor of any kind, in float64."""
    if type(t).__name__ == "TwoTensor":
        t = t.a
    return t.to_dense().detach().as_subclass(Tensor).double().clone()


def known(*given) -> bool:
    """Whether values can be compared: there are some, and they are real."""
    return not any(
        t.device.type == "meta" or type(t).__name__ == "FakeTensor" or t.is_complex() for t in tensors(given)
    )


def outcome(run, truth, *given, must_work=False, terms=1.0):
    """Run with tensors of some kind: a named error, or what the formula gives for the same values."""
    try:
        got = run()
    except Exception as error:
        assert named(error) and not must_work, repr(error)
        return
    if not known(got, *given):
        return
    types = [t.dtype for t in tensors((got, given)) if t.is_floating_point()]
    tolerance = 30 * max(torch.finfo(dtype).eps for dtype in types)
    # what cancels in an element is of the order of 1, as all numbers here
    check([plain(t) for t in tensors(got)], truth(), tolerance, terms)


# PyTorch sees gradients and tangents first: it dies of freed memory, and a fake tensor that meets others
# within a transform leaves its dispatcher broken, for F.rms_norm too
HANDED_OVER = [kind for kind in KINDS if kind not in ("freed", "fake")]
# the same values in another guise, and zeros that PyTorch itself hands over: no error will do
IN_GUISE = {"negated view", "expanded", "every second column", "a subclass", "a parameter"}
MUST_WORK = IN_GUISE | {"zeros never written"}
CELLS = [
    pytest.param(name, argument, kind, id=f"{name}-{argument}-{kind}")
    for name, operator in OPERATORS.items()
    for argument in operator.shapes
    for kind in KINDS
    # that weight is the test's own
    if name != "hutchinson_trace" or (argument != "weight" and kind != "fake")
]


@pytest.mark.parametrize(("name", "argument", "kind"), CELLS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_every_kind_of_argument(backend, name, argument, kind, dtype):
    operator = OPERATORS[name]
    given, i = list(operator.arguments(dtype)), list(operator.shapes).index(argument)
    try:
        given[i] = KINDS[kind](given[i])
    except (TypeError, RuntimeError, IndexError):
        pytest.skip(f"PyTorch makes no {kind} of this one")
    of_numbers = isinstance(given[i], Tensor) and given[i].is_floating_point()
    for run in (value, linear_gradient) if of_numbers else (value,):

        def truth(run=run):
            absent = None if argument == "bias" else torch.ones(4, dtype=torch.float64)
            return run(operator.formula, [absent if t is None else plain(t) for t in given])

        outcome(lambda run=run: run(operator.call, given), truth, *given, must_work=kind in IN_GUISE)


@pytest.mark.parametrize("kind", HANDED_OVER)
@operators
def test_every_kind_of_gradient(backend, name, kind):
    operator = OPERATORS[name]
    args = operator.arguments(torch.float32)
    leaves = [a.clone().requires_grad_() for a in args]
    y = operator.call(*leaves)
    try:
        dy = KINDS[kind](y.detach().cos())
    except (TypeError, RuntimeError, IndexError):
        pytest.skip(f"PyTorch makes no {kind} of this one")

    def truth():
        return vjp(operator.formula, *map(plain, args))[1](plain(dy))

    if isinstance(dy, Tensor):
        must = kind in MUST_WORK
        outcome(lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True), truth, dy, y, must_work=must)
        outcome(lambda: vjp(operator.call, *args)[1](dy), truth, dy, y.detach())


@pytest.mark.parametrize("kind", HANDED_OVER)
@operators
def test_every_kind_of_tangent(backend, name, kind):
    operator = OPERATORS[name]
    args = operator.arguments(torch.float32)
    for i, argument in enumerate(args):
        try:
            dot = KINDS[kind](argument.cos())
        except (TypeError, RuntimeError, IndexError):
            pytest.skip(f"PyTorch makes no {kind} of this one")
        if not isinstance(dot, Tensor):
            continue

        def along(f, values, dot, i=i):
            def of_one(t):
                return f(*values[:i], t, *values[i + 1 :])

            return jvp(of_one, (values[i],), (dot,))[1]

        def with_dual(f, values, dot, i=i):
            with forward_ad.dual_level():
                changed = forward_ad.make_dual(values[i], dot)
                return forward_ad.unpack_dual(f(*values[:i], changed, *values[i + 1 :])).tangent

        def truth(along=along, dot=dot):
            return along(operator.formula, list(map(plain, args)), plain(dot))

        for run in (along, with_dual):
            outcome(partial(run, operator.call, args, dot), truth, dot, *args, must_work=kind in MUST_WORK)
