"""No operator waits for the GPU or copies to it, so that each can be captured in a CUDA graph."""

import pytest
import torch

import ofa_kernels as ok
from ofa_kernels.probes import mix, probe_signs
from tests.fake_gpu import fake_gpu

NOT_OPERATORS = {"TraceEstimate", "accumulation_dtype", "backend_report", "mix"}


@pytest.fixture
def traffic(device):
    """What the host waited for or copied; a GPU's own would say nothing."""
    if torch.cuda.is_available():
        pytest.skip("the fake GPU counts; a real one is captured")
    with fake_gpu() as traffic:
        yield traffic


def draw(*shape):
    return torch.randn(shape, device="cuda")


def norms():
    x, w, x_dot = draw(3, 40).requires_grad_(), draw(40).requires_grad_(), draw(2, 3, 40).requires_grad_()
    return {
        "rms_norm": (ok.rms_norm, (x, w)),
        "add_rms_norm": (lambda x, w, r: ok.add_rms_norm(x, r, w)[0], (x, w, draw(3, 40).requires_grad_())),
        "layer_norm": (ok.layer_norm, (x, w)),
        "rms_norm_jvp": (ok.rms_norm_jvp, (x, w, x_dot)),
        "preconditioner": (lambda x, w: ok.preconditioner(x, w, 1e-6), (x, w)),
        "step_ratio": (lambda s: ok.step_ratio(s)[None], (draw(4, 2, 40).requires_grad_(),)),
    }


def probes():
    seed = mix(5, torch.ones((), dtype=torch.int64, device="cuda"))
    z, w, t = draw(3, 40).requires_grad_(), draw(40).requires_grad_(), draw(2, 3, 40).requires_grad_()

    def trace(z, w):
        return ok.hutchinson_trace(lambda z: ok.rms_norm(z, w).tanh(), z, w, 2, seed).value

    return {
        "rademacher": (lambda x: x * ok.rademacher((3, 40), seed), (z,)),
        "probe_signs": (lambda z: z * probe_signs(z, seed, 2, layer=1), (z,)),
        "preconditioned_probes": (
            lambda z, w: ok.preconditioned_probes(z, w, 1e-6, seed, 2, layer=1),
            (z, w),
        ),
        "probe_dot": (lambda t: ok.probe_dot(t, seed, layer=1), (t,)),
        "hutchinson_trace": (trace, (z, w)),
    }


@pytest.mark.parametrize("name", sorted({*ok.__all__, "probe_signs"} - NOT_OPERATORS))
@pytest.mark.parametrize("backend", ["reference", "triton", "cuda"])
def test_no_operator_waits_or_copies(traffic, monkeypatch, request, name, backend):
    if backend == "triton":
        pytest.importorskip("triton")
    if backend == "cuda":
        request.getfixturevalue("emulated_cuda")
    monkeypatch.setenv("OFA_BACKEND", backend)
    call, inputs = {**norms(), **probes()}[name]
    loss = call(*inputs).sin().sum()
    gradients = torch.autograd.grad(loss, inputs, create_graph=name != "rademacher", allow_unused=True)
    if name not in ("rademacher", "probe_signs"):
        assert all(gradient is not None for gradient in gradients)
        torch.autograd.grad(sum(gradient.sin().sum() for gradient in gradients), inputs)
        torch.func.jvp(call, tuple(t.detach() for t in inputs), tuple(map(torch.ones_like, inputs)))
    assert traffic == []


def test_equal_states_fail_on_the_device(traffic):
    states = draw(4, 2, 5)
    states[2, 1] = states[1, 1]
    with pytest.raises(RuntimeError, match="two successive states are equal"):
        ok.step_ratio(states)
    assert traffic == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_captured_graph_makes_the_probes_of_its_step():
    step = torch.zeros((), dtype=torch.int64, device="cuda")
    z, w = draw(3, 40), draw(40)

    def make():
        return ok.preconditioned_probes(z, w, 1e-6, mix(5, step), 2, layer=1)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        make()  # what is compiled must be before the capture
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = make()
    for number in (0, 1, 2**40):
        step.fill_(number)
        graph.replay()
        assert torch.equal(captured, ok.preconditioned_probes(z, w, 1e-6, mix(5, number), 2, layer=1))
