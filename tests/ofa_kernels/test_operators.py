"""The kernels as registered operators: what they promise PyTorch, and who records them."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.library import opcheck

import ofa_kernels as ok
from ofa_kernels import dispatch, formulas, operators
from ofa_kernels.structs import DTYPES
from tests.conftest import WITH_CUDA
from tests.ofa_kernels.native_calls import SEED

BACKENDS = WITH_CUDA

pytestmark = pytest.mark.host

IDS, LAYERS, KEY = torch.arange(3) * 7, torch.tensor([0, 2]), torch.tensor([SEED - 2**64])
X, W, DY, S = torch.randn(3, 5), torch.randn(5), torch.randn(3, 5), torch.randn(3, 5)
DOTS, W_DOTS, TIMES = torch.randn(2, 3, 5), torch.randn(2, 5), torch.randn(2, 3)
CALLS = {
    "rms_norm_forward": [(X, W, 1e-6, 0.0, "hf"), (X.bfloat16(), W, 1e-6, 1.0, "fp32")],
    "add_rms_norm_forward": [(X, S, W, 1e-6, 0.0, "hf")],
    "rms_norm_backward": [
        (X, W, DY, S, 1e-6, 0.0, True, True),
        (X, W, DY, None, 1e-6, 0.0, False, True),
        (X, W, DY, None, 1e-6, 0.0, True, False),
    ],
    "rms_norm_jvp": [(X, W, DOTS, W_DOTS, 1e-6, 0.0), (X, W, None, W_DOTS, 1e-6, 0.0)],
    "rms_norm_backward_tangent": [
        (X, W, DY, DOTS, None, None, 1e-6, 0.0, True),
        (X, W, DY, None, None, DOTS, 1e-6, 0.0, False),
    ],
    "rms_norm_jvp_backward": [
        (X, W, DOTS, DOTS, W_DOTS, 1e-6, 0.0, True, True),
        (X, W, DOTS, None, W_DOTS, 1e-6, 0.0, False, False),
    ],
    "rademacher": [(5, IDS, 2, LAYERS, SEED, torch.float32), (5, IDS, 2, LAYERS, KEY, torch.bfloat16)],
    "preconditioned_probes": [(X, W, 1e-6, 0.0, SEED, 2, IDS, 4), (X, W, 1e-6, 0.0, KEY, 2, IDS, 4)],
    "preconditioned_probes_backward": [(X, W, DOTS, 1e-6, 0.0, SEED, IDS, 4)],
    "probe_dot": [(DOTS, SEED, IDS, 4), (DOTS, 0, IDS, 4)],
    "probe_scale": [(TIMES, 5, SEED, IDS, 4, torch.float32)],
    "step_lengths": [(DOTS,)],
    "step_lengths_backward": [(torch.randn(3, 3, 5), TIMES, TIMES)],
}
CASES = [pytest.param(name, given, id=f"{name}-{i}") for name in CALLS for i, given in enumerate(CALLS[name])]


def outputs(found):
    return found if isinstance(found, tuple) else (found,)


@pytest.mark.parametrize(("name", "given"), CASES)
def test_an_operator_is_its_kernel(backend, name, given):
    kernels = dispatch.kernels_of(X)
    pairs = zip(
        outputs(getattr(operators, name)(*given)), outputs(getattr(kernels, name)(*given)), strict=True
    )
    for got, expected in pairs:
        assert (got is None) == (expected is None)
        assert got is None or torch.equal(got, expected)


@pytest.mark.parametrize(("name", "given"), CASES)
def test_the_fake_has_the_sizes_and_types_of_the_formula(name, given):
    with torch._subclasses.FakeTensorMode() as mode:
        faked = getattr(operators, name)(
            *(mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in given)
        )
    real = outputs(getattr(formulas, name)(*given))
    for got, expected in zip(outputs(faked), real, strict=True):
        assert (got is None) == (expected is None)
        if got is not None:
            assert (got.shape, got.dtype, got.device) == (expected.shape, expected.dtype, expected.device)


@pytest.mark.parametrize("name", ["rms_norm_forward", "rms_norm_jvp", "step_lengths_backward"])
def test_opcheck(name):
    utils = "test_schema", "test_faketensor"
    opcheck(getattr(torch.ops.ofa_kernels, name).default, CALLS[name][0], test_utils=utils)


def test_they_refuse_to_be_differentiated():
    call = torch.ops.ofa_kernels.rms_norm_forward
    with pytest.raises(RuntimeError, match="has no derivative; call the functions of ofa_kernels"):
        call(X.clone().requires_grad_(), W, 1e-6, 0.0, "hf")
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="has no derivative"):
        call(forward_ad.make_dual(X, DY), W, 1e-6, 0.0, "hf")
    with torch.no_grad():
        assert torch.equal(call(X.clone().requires_grad_(), W, 1e-6, 0.0, "hf"), ok.rms_norm(X, W))


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_a_graph_keeps_the_kernel(backend, mode):
    if backend == "reference":
        pytest.skip("it has no kernels: PyTorch's own operators are recorded")
    graph = make_fx(torch.func.grad(lambda x, w: ok.rms_norm(x, w).sin().sum(), (0, 1)), tracing_mode=mode)(
        X, W
    )
    recorded = [str(node.target) for node in graph.graph.nodes]
    for name in ("rms_norm_forward", "rms_norm_backward"):
        assert recorded.count(f"ofa_kernels.{name}.default") == 1, recorded
    if mode == "symbolic":
        graph(torch.randn(7, 5), W)


def test_every_kernel_is_registered():
    own = (
        name
        for name, value in vars(operators).items()
        if getattr(value, "__module__", "") == operators.__name__
    )
    assert set(CALLS) == {name for name in own if hasattr(formulas, name)}
    assert set(DTYPES) == set(dispatch.KERNEL_DTYPES)
