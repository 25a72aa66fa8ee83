"""Is `rms_norm` faster than what a model would use without it, on a CPU?

A result is timed only after it has been found right against the formulas in float64. Groups are one per
(operator, shape, type), the baseline of each is transformers' LlamaRMSNorm in eager mode, and `bytes` counts
the passes that can't be avoided: two of x's size forward, three more backward.
"""

import shutil

import pytest
import torch
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from ofa_kernels import reference, rms_norm

EPS = 1e-6
SHAPES = [(352, 576), (2048, 576), (2048, 4096)]
DTYPES = [torch.float32, torch.bfloat16]
HAS_COMPILER = any(map(shutil.which, ("c++", "g++", "clang++")))


def _llama(gamma, dtype):
    module = LlamaRMSNorm(gamma.numel(), EPS).to(dtype)
    module.weight.data.copy_(gamma)
    return module


def ours(gamma, dtype):
    weight = gamma.clone().requires_grad_()
    return lambda x: rms_norm(x, weight, EPS), weight


def torch_functional(gamma, dtype):
    weight = gamma.to(dtype).requires_grad_()
    return lambda x: F.rms_norm(x, weight.shape, weight, EPS), weight


def llama_eager(gamma, dtype):
    module = _llama(gamma, dtype)
    return module, module.weight


def llama_compiled(gamma, dtype):
    if not HAS_COMPILER:
        pytest.skip("torch.compile needs a C++ compiler")
    # after 8 shapes Dynamo stops recompiling and runs eager code without a word
    torch._dynamo.reset()
    module = _llama(gamma, dtype)
    return torch.compile(module, fullgraph=True, dynamic=False), module.weight


IMPLEMENTATIONS = {
    "LlamaRMSNorm": llama_eager,
    "torch.compile(LlamaRMSNorm)": llama_compiled,
    "F.rms_norm": torch_functional,
    "ofa_kernels.rms_norm": ours,
}


def assert_right(norm, weight, x, dy):
    """y, dx and dw within the rounding error of their own types around the float64 values."""
    y = norm(x)
    got = (y, *torch.autograd.grad(y, (x, weight), dy))
    with torch.no_grad():
        x64, w64, dy64 = (t.double() for t in (x, weight, dy))
        x_hat, r = reference._normalise(x64, EPS)
        g = w64 * dy64
        truth = (reference.rms_norm(x64, w64, EPS), *reference.rms_norm_backward(x64, w64, dy64, EPS))
        # what cancels in each result: its error is relative to this
        scales = (
            truth[0].abs(),
            r * (g.abs() + x_hat.abs() * (g * x_hat).abs().mean(-1, keepdim=True)),
            (dy64 * x_hat).abs().sum(0),
        )
        sums = (sum(x.shape) ** 0.5 + 8) * torch.finfo(torch.float32).eps
        tolerance = 1.5 * torch.finfo(x.dtype).eps + 4 * sums  # at most three roundings to x's type
        for name, value, expected, scale in zip(("y", "dx", "dw"), got, truth, scales, strict=True):
            error = ((value.double() - expected).abs() / (tolerance * scale + 1e-30)).max().item()
            assert error <= 1, f"{name} is wrong by {error:.2g} times what rounding explains; not timed"


@pytest.fixture(params=SHAPES, ids=lambda s: "x".join(map(str, s)))
def shape(request):
    return request.param


@pytest.fixture(params=DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def problem(request, shape):
    """(γ, x, dy), with γ in float32 and all values exact in x's type."""
    torch.manual_seed(0)
    dtype = request.param
    gamma = torch.randn(shape[1]).to(dtype).float()
    return gamma, torch.randn(shape, dtype=dtype).requires_grad_(), torch.randn(shape, dtype=dtype)


def _rounds(x):
    # a round of a small tensor is repeated until it takes about as long as one of the largest
    return {"rounds": 7, "warmup_rounds": 2, "iterations": max(1, 4_000_000 // x.numel())}


def _prepare(benchmark, problem, operator, name, passes):
    """(norm, its weight, x, dy), found right, with the benchmark labelled."""
    gamma, x, dy = problem
    norm, weight = IMPLEMENTATIONS[name](gamma, x.dtype)
    assert_right(norm, weight, x, dy)
    rows, columns = x.shape
    benchmark.group = f"{operator}, {rows} x {columns}, {str(x.dtype).removeprefix('torch.')}"
    benchmark.extra_info.update(
        label=name, baseline=name == "LlamaRMSNorm", bytes=passes * x.numel() * x.element_size()
    )
    return norm, weight, x, dy


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_forward(benchmark, problem, name):
    norm, _, x, _ = _prepare(benchmark, problem, "RMSNorm forward", name, passes=2)
    with torch.no_grad():
        benchmark.pedantic(norm, (x,), **_rounds(x))


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_forward_and_backward(benchmark, problem, name):
    norm, weight, x, dy = _prepare(benchmark, problem, "RMSNorm forward + backward", name, passes=5)
    benchmark.pedantic(lambda: torch.autograd.grad(norm(x), (x, weight), dy), **_rounds(x))
