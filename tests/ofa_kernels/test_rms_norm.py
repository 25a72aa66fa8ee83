"""RMSNorm on every backend: values against float64, then derivatives of every order and nesting."""

import itertools
import shutil

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from ofa_kernels import reference, rms_norm
from ofa_kernels.dtypes import accumulation_dtype
from tests.conftest import WITH_CUDA
from tests.ofa_kernels.bounds import steps_apart

BACKENDS = WITH_CUDA

pytestmark = pytest.mark.usefixtures("nan_poisoned_empty")

EPS = 1e-6
F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
TYPES = [(F64, F64), (F64, F32), (F32, F32), (BF16, BF16), (BF16, F32), (F16, F16), (F16, F32)]
SIZES = [1, 3, 70, 129, 576]

types = pytest.mark.parametrize("types", TYPES, ids=lambda t: "-".join(str(d)[6:] for d in t))
offsets = pytest.mark.parametrize("offset", [0.0, 1.0])
roundings = pytest.mark.parametrize("rounding", ["hf", "fp32"])


def truncates(dtype, backend):
    """Whether results are cut to dtype: Triton's interpreter does so where it stores bfloat16."""
    return dtype == BF16 and backend == "triton" and not torch.cuda.is_available()


def rounding_unit(dtype, backend):
    """The largest relative error of rounding to dtype once."""
    return torch.finfo(dtype).eps * (1 if truncates(dtype, backend) else 0.5)


def sum_unit(x, n_terms):
    """The relative error of a sum in the accumulation type and of the few operations around it."""
    return (n_terms**0.5 + 8) * torch.finfo(accumulation_dtype(x)).eps


def worst(got, truth, scale, tolerance):
    """The error as a multiple of the bound; `scale` is what cancels in the result."""
    finfo = torch.finfo(got.dtype)
    bound = tolerance * scale + 8 * finfo.smallest_normal * finfo.eps  # subnormals are absolute steps
    return ((got.double() - truth).abs() / bound).max().item()


def check_parity(x, weight, dy, backend, offset=0.0, rounding="hf"):
    """y, dx and dw of rms_norm against the float64 formulas, within derived bounds."""
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    y = rms_norm(x, weight, EPS, offset, rounding)
    dx, dw = torch.autograd.grad(y, (x, weight), dy)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert (dx.shape, dx.dtype, dw.shape, dw.dtype) == (x.shape, x.dtype, weight.shape, weight.dtype)

    with torch.no_grad():
        x64, w64, dy64 = x.double(), weight.double() + offset, dy.double()
        x_hat, r = reference.normalise(x64, EPS)
        g = w64 * dy64
        truth = reference.rms_norm(x64, w64, EPS)
        true_dx, true_dw = reference.rms_norm_backward(x64, w64, dy64, EPS)
        dx_scale = r * (g.abs() + x_hat.abs() * (g * x_hat).abs().mean(-1, keepdim=True))
        dw_scale = reference.sum_rows((dy64 * x_hat).abs())

    u_x, u_w = (rounding_unit(t.dtype, backend) for t in (x, weight))
    s, rows = sum_unit(x, x.shape[-1]), x.numel() // x.shape[-1]
    # y: x̂, y, and weight + offset in its own type; dx: also g = w dy; dw: x̂, dy x̂, and dw in its own type
    w_error = u_w if offset and rounding == "hf" else 0.0
    assert worst(y, truth, truth.abs(), (1 + u_x) ** 2 * (1 + w_error) * (1 + s) - 1) <= 1
    assert worst(dx, true_dx, dx_scale, (1 + u_x) ** 2 * (1 + w_error) * (1 + 4 * s) - 1) <= 1
    dw_tolerance = (1 + u_x) ** 2 * (1 + u_w) * (1 + s + sum_unit(x, rows)) - 1
    assert worst(dw, true_dw, dw_scale, dw_tolerance) <= 1


@roundings
@offsets
@pytest.mark.parametrize("size", SIZES)
@types
def test_parity(backend, device, types, size, offset, rounding):
    x = torch.randn(3, size, device=device, dtype=types[0])
    weight = (1 - offset + 0.5 * torch.randn(size, device=device)).to(types[1])
    check_parity(x, weight, torch.randn_like(x), backend, offset, rounding)


def base(device, *shape):
    return torch.randn(shape, device=device)


LAYOUTS = {
    "one dimension": lambda d: base(d, 70),
    "four dimensions": lambda d: base(d, 2, 1, 3, 70),
    "every second column": lambda d: base(d, 3, 140)[:, ::2],
    "every second row": lambda d: base(d, 6, 70)[::2],
    "columns of a wider tensor": lambda d: base(d, 3, 100)[:, 7:77],
    "transposed": lambda d: base(d, 70, 3).T,
    "permuted": lambda d: base(d, 2, 70, 3).transpose(1, 2),
    "one row expanded": lambda d: base(d, 70).expand(3, 70),
    "one column expanded": lambda d: base(d, 3, 1).expand(3, 70),
    "one column, transposed": lambda d: base(d, 1, 4).T,
    "more rows than backward programs": lambda d: base(d, 300, 3),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("strided", ["x", "dy", "weight"])
def test_any_strides(backend, device, layout, strided):
    tensors = {"x": LAYOUTS[layout](device), "dy": LAYOUTS[layout](device)}
    tensors = {name: t if name == strided else t.contiguous() for name, t in tensors.items()}
    size = tensors["x"].shape[-1]
    weight = base(device, 2 * size)[::2] if strided == "weight" else base(device, size)
    check_parity(tensors["x"], weight, tensors["dy"], backend)


def test_no_rows(backend, device):
    x, weight = (base(device, 0, 3, 5).requires_grad_(), base(device, 5).requires_grad_())
    y = rms_norm(x, weight)
    y.sum().backward()
    assert (y.shape, x.grad.shape) == (x.shape, x.shape)
    assert torch.equal(weight.grad, torch.zeros_like(weight))


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_reference_has_the_bits_of_llama(monkeypatch, device, dtype):
    modeling = pytest.importorskip("transformers.models.llama.modeling_llama")
    monkeypatch.setenv("OFA_BACKEND", "reference")
    llama = modeling.LlamaRMSNorm(129, EPS).to(device, dtype)
    torch.nn.init.normal_(llama.weight)
    x, dy = (torch.randn(2, 5, 129, device=device, dtype=dtype) for _ in range(2))

    def with_gradients(norm):
        leaf = x.clone().requires_grad_()
        y = norm(leaf)
        return y, *torch.autograd.grad(y, (leaf, llama.weight), dy)

    for got, expected in zip(
        with_gradients(lambda x: rms_norm(x, llama.weight, EPS)), with_gradients(llama), strict=True
    ):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("family", ["llama", "gemma"])
@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_rounds_where_transformers_does(backend, device, dtype, family):
    if truncates(dtype, backend):
        pytest.skip("Triton's interpreter truncates where it stores bfloat16")
    modeling = pytest.importorskip(f"transformers.models.{family}.modeling_{family}")
    norm = getattr(modeling, f"{family.capitalize()}RMSNorm")(512, EPS).to(device, dtype)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(64, 512, device=device)
    x = (x + 0.1 * x.sign()).to(dtype)  # so that no x̂ is subnormal
    y, eager = rms_norm(x, norm.weight, EPS, float(family == "gemma")), norm(x)
    # either rstd may be an ULP of float32 off, which takes x̂ over the boundary between two neighbours in
    # 2^-11 of all places; where x̂ itself is rounded, its step is up to eps |x̂|, and one of y no less than
    # eps |y| / 2: two of y
    steps = steps_apart(y, eager)
    assert (steps == 0).float().mean() >= 0.999 and steps.max() <= (2 if family == "llama" else 1)
    if backend == "reference":
        assert torch.equal(y, eager)


def test_float32_weight_with_bfloat16_values_changes_no_bit(backend, device):
    x, weight = (base(device, *shape).bfloat16() for shape in ((5, 129), (129,)))
    assert torch.equal(rms_norm(x, weight.float()), rms_norm(x, weight))


def test_incoming_gradient_is_never_written(backend, device):
    x, dy = base(device, 4, 70).requires_grad_(), base(device, 4, 70)
    weight, before = base(device, 70).requires_grad_(), dy.clone()
    rms_norm(x, weight).backward(dy)
    assert torch.equal(dy, before)


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_weight_costs_no_dw(monkeypatch, device, frozen):
    launch = pytest.importorskip("ofa_kernels.triton.launch")
    monkeypatch.setenv("OFA_BACKEND", "triton")
    asked, original = [], launch.rms_norm_backward

    def spy(*args, **named):
        asked.append(args[-1])
        return original(*args, **named)

    monkeypatch.setattr(launch, "rms_norm_backward", spy)
    x, weight = base(device, 2, 5).requires_grad_(), base(device, 5).requires_grad_(not frozen)
    rms_norm(x, weight).sum().backward()
    assert asked == [not frozen]
    assert (weight.grad is None) == frozen


@offsets
def test_gradcheck_at_first_and_second_order(backend, device, offset):
    x, weight = (base(device, *shape).double().requires_grad_() for shape in ((2, 3), (3,)))

    def norm(x, weight):
        return rms_norm(x, weight, 1e-3, offset)

    # the batched checks use the old vmap, which knows no Function
    batched = {"check_batched_grad": True, "check_batched_forward_grad": True}
    assert gradcheck(norm, (x, weight), check_forward_ad=True, **batched)
    assert gradgradcheck(
        norm, (x, weight), check_fwd_over_rev=True, check_rev_over_rev=True, check_batched_grad=True
    )


def relative_error(got, truth):
    """The largest ‖a - b‖ / ‖b‖ over the tensors of two nested tuples."""
    pairs = zip(tree_leaves(got), tree_leaves(truth), strict=True)
    return torch.stack([(a - b).norm() / b.norm() for a, b in pairs]).max().item()


@pytest.fixture
def mlp(device):
    """(f with `norm` to fill in, its arguments): a scalar of an MLP with two norms, every block nonzero."""
    mix, out = base(device, 4, 4).double(), base(device, 4).double()

    def f(norm, x, w1, w2):
        return (norm(torch.tanh(norm(x, w1) @ mix), w2) @ out).tanh().sum()

    return f, tuple(base(device, *shape).double() for shape in ((2, 4), (4,), (4,)))


def with_norms(f):
    """f with the tested operator, and with the composition that PyTorch differentiates by itself."""
    return tuple(
        lambda *args, norm=norm: f(lambda x, w: norm(x, w, EPS, 1.0), *args)
        for norm in (rms_norm, reference.rms_norm)
    )


TRANSFORMS = {"jacfwd": torch.func.jacfwd, "jacrev": torch.func.jacrev}


@pytest.mark.parametrize("argnums", [(0, 1, 2), (0,), (1, 2)], ids=["all", "x", "weights"])
@pytest.mark.parametrize("order", [1, 2])
def test_every_nesting_of_derivatives(backend, mlp, order, argnums):
    f, args = mlp
    for nesting in itertools.product(TRANSFORMS, repeat=order):
        got, truth = with_norms(f)
        for name in nesting:
            got, truth = (TRANSFORMS[name](g, argnums=argnums) for g in (got, truth))
        assert relative_error(got(*args), truth(*args)) < 1e-10, nesting


def test_every_nesting_of_third_derivatives(backend, mlp):
    f, (x, w1, w2) = mlp
    at, truth = torch.zeros_like(w1), None
    for nesting in itertools.product(TRANSFORMS, repeat=3):
        got, plain = (lambda v, g=g: g(x + v, w1 + v, w2 - v) for g in with_norms(f))
        for name in nesting:
            got, plain = TRANSFORMS[name](got), TRANSFORMS[name](plain)
        truth = plain(at) if truth is None else truth
        assert relative_error(got(at), truth) < 1e-10, nesting


def test_hessian_is_jacfwd_of_jacrev(backend, mlp):
    f, args = mlp
    got, truth = (torch.func.hessian(g, argnums=(0, 1, 2))(*args) for g in with_norms(f))
    assert relative_error(got, truth) < 1e-10


def test_grad_vjp_and_jvp(backend, mlp):
    f, args = mlp
    tangents = tuple(torch.randn_like(arg) for arg in args)
    for transform in (
        lambda g: torch.func.grad(g, argnums=(0, 1, 2))(*args),
        lambda g: torch.func.vjp(g, *args)[1](torch.ones((), dtype=F64, device=args[0].device)),
        lambda g: torch.func.jvp(g, args, tangents),
        lambda g: torch.func.jvp(lambda x: g(x, *args[1:]), args[:1], tangents[:1]),
        lambda g: torch.func.jvp(lambda *w: g(args[0], *w), args[1:], tangents[1:]),
    ):
        got, truth = (transform(g) for g in with_norms(f))
        assert relative_error(got, truth) < 1e-10


VMAPS = {
    "x": ((0, None), (5, 2, 4), (4,)),
    "x, last": ((2, None), (2, 4, 5), (4,)),
    "weight": ((None, 0), (2, 4), (5, 4)),
    "both": ((1, 0), (2, 5, 4), (5, 4)),
}


@pytest.mark.parametrize("case", VMAPS)
def test_vmap_of_values_and_derivatives(backend, device, case):
    in_dims, *shapes = VMAPS[case]
    x, weight = (base(device, *shape).double() for shape in shapes)

    def loss(norm):
        return lambda x, w: norm(x, w, EPS, 1.0).square().mul(x).sum()

    for transform in (
        lambda norm: lambda x, w: norm(x, w, EPS, 1.0),
        lambda norm: torch.func.grad(loss(norm), argnums=(0, 1)),
        lambda norm: torch.func.hessian(loss(norm), argnums=(0, 1)),
        lambda norm: torch.func.hessian(loss(norm), argnums=0),
    ):
        got, truth = (
            torch.func.vmap(transform(norm), in_dims)(x, weight) for norm in (rms_norm, reference.rms_norm)
        )
        assert relative_error(got, truth) < 1e-10


@pytest.mark.parametrize("case", VMAPS)
def test_derivatives_of_vmap(backend, device, case):
    in_dims, *shapes = VMAPS[case]
    args = tuple(base(device, *shape).double() for shape in shapes)

    def loss(norm):
        return lambda x, w: torch.func.vmap(lambda x, w: norm(x, w, EPS, 1.0), in_dims)(x, w).tanh().sum()

    for transform in (torch.func.grad, torch.func.hessian, torch.func.jacfwd):
        got, truth = (transform(loss(norm), argnums=(0, 1))(*args) for norm in (rms_norm, reference.rms_norm))
        assert relative_error(got, truth) < 1e-10


def test_reverse_over_vmap_of_jvp_reaches_a_closed_over_weight(backend, device):
    z, weight = (base(device, *shape).double().requires_grad_() for shape in ((3, 4), (4,)))
    probes = base(device, 6, 3, 4).double().sign()

    def gradients(norm):
        def product(v):
            return torch.func.jvp(lambda z: norm(z, weight, EPS).tanh(), (z,), (v * weight,))[1]

        return torch.autograd.grad((probes * torch.func.vmap(product)(probes)).sum(), (z, weight))

    assert relative_error(gradients(rms_norm), gradients(reference.rms_norm)) < 1e-10


@pytest.mark.skipif(
    not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler"
)
def test_compiles_without_graph_breaks(backend, device):
    if backend == "cuda":
        pytest.skip("Inductor's programs are the same for every backend")
    x, weight, dy = base(device, 3, 70), base(device, 70), base(device, 3, 70)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, w: rms_norm(x, w, EPS, 1.0), fullgraph=True)
    results = []
    for norm in (compiled, lambda x, w: rms_norm(x, w, EPS, 1.0)):
        leaves = [t.clone().requires_grad_() for t in (x, weight)]
        y = norm(*leaves)
        results.append((y, *torch.autograd.grad(y, leaves, dy)))
    # both are within sum_unit of the truth, and the sums of dx cancel by no more than |g| / |dx|
    for got, expected in zip(*results, strict=True):
        scale = expected.abs().max().double()
        assert worst(got.detach(), expected.detach().double(), scale, 2 * sum_unit(x, 70)) <= 1


def test_checkpointing_changes_nothing(backend, device):
    x, weight = base(device, 3, 70), base(device, 70)
    results = []
    for run in (lambda f, *args: checkpoint(f, *args, use_reentrant=False), lambda f, *args: f(*args)):
        leaves = [t.clone().requires_grad_() for t in (x, weight)]
        y = run(lambda x, w: rms_norm(x, w).tanh(), *leaves)
        results.append((y, *torch.autograd.grad(y.sum(), leaves)))
    for got, expected in zip(*results, strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_autocast_changes_nothing(backend, device, dtype):
    x, weight = base(device, 3, 70).to(dtype), base(device, 70)
    results = []
    for enabled in (True, False):
        leaves = [t.clone().requires_grad_() for t in (x, weight)]
        with torch.autocast(device, BF16, enabled=enabled):
            y = rms_norm(*leaves)
        results.append((y, *torch.autograd.grad(y.sum(), leaves)))
    for got, expected in zip(*results, strict=True):
        assert torch.equal(got, expected)


ONES = torch.ones
MISTAKES = {
    "integer x": (TypeError, "floating point.*int64", (ONES(2, 3, dtype=torch.int64), ONES(3)), {}),
    "integer weight": (TypeError, "floating point.*int32", (ONES(2, 3), ONES(3, dtype=torch.int32)), {}),
    "short weight": (ValueError, r"\(4,\) for \(2, 3\)", (ONES(2, 3), ONES(4)), {}),
    "matrix weight": (ValueError, r"\(1, 3\) for \(2, 3\)", (ONES(2, 3), ONES(1, 3)), {}),
    "scalar x": (ValueError, r"\[N\] for an x of", (ONES(()), ONES(())), {}),
    "no columns": (ValueError, "N >= 1", (ONES(2, 0), ONES(0)), {}),
    "other device": (ValueError, "cpu and weight on meta", (ONES(2, 3), ONES(3, device="meta")), {}),
    "other rounding": (ValueError, "'hf', 'fp32'.*'bf16'", (ONES(2, 3), ONES(3)), {"rounding": "bf16"}),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(mistake):
    error, message, args, options = MISTAKES[mistake]
    with pytest.raises(error, match=message):
        rms_norm(*args, **options)
