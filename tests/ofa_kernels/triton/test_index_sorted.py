"""When an index is sorted: once for all norms, not without a sum over rows, anew in a graph's replay."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

import ofa_kernels as ok
from ofa_kernels import segments
from ofa_kernels.triton import launch, shares
from tests.fake_gpu import fake_gpu
from tests.ofa_kernels.bounds import EPS, F32, LAYER, SEED
from tests.ofa_kernels.triton_checks import draw

pytestmark = pytest.mark.usefixtures("nan_poisoned_empty")

ROWS = 11


def test_without_a_sum_over_rows_nothing_is_sorted(device, monkeypatch):
    monkeypatch.setattr(shares, "segments_of", None)
    index, w = torch.tensor([1, 0, 1], device=device), draw(device, F32, 2, 8)
    x, t, w_dot = draw(device, F32, 3, 8), draw(device, F32, 2, 3, 8), draw(device, F32, 2, 2, 8)
    launch.rms_norm_forward(x, w, EPS, 0.0, "hf", None, index)
    launch.rms_norm_backward(x, w, x, None, EPS, 0.0, True, False, None, index)
    launch.rms_norm_jvp(x, w, t, w_dot, EPS, 0.0, index)
    launch.rms_norm_backward_tangent(x, w, x, t, w_dot, t, EPS, 0.0, False, index)
    launch.rms_norm_jvp_backward(x, w, t, t, w_dot, EPS, 0.0, False, False, index)
    launch.preconditioned_probes(x, w, EPS, 0.0, SEED, 2, index, LAYER, index)
    with pytest.raises(TypeError):
        launch.rms_norm_backward(x, w, x, None, EPS, 0.0, True, True, None, index)


def test_one_index_is_sorted_once_for_all_norms(device, monkeypatch):
    made = []
    sort = segments._segments
    monkeypatch.setattr(segments, "_segments", lambda *given: made.append(given) or sort(*given))
    monkeypatch.setenv("OFA_BACKEND", "triton")
    index = torch.tensor([1, 0, 1], device=device)
    x, w = draw(device, F32, 3, 8).requires_grad_(), draw(device, F32, 2, 8).requires_grad_()
    y = ok.rms_norm(ok.rms_norm(x, w, weight_index=index), w, weight_index=index)
    torch.autograd.grad(y.sum(), (x, w))
    assert len(made) == 1


def test_nothing_waits_for_the_device(monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("the fake GPU counts")
    monkeypatch.setenv("OFA_BACKEND", "triton")
    with fake_gpu() as traffic:
        index = torch.randint(3, (4,), device="cuda")
        x, w = draw("cuda", F32, 4, 8).requires_grad_(), draw("cuda", F32, 3, 8).requires_grad_()
        p = ok.preconditioned_probes(x, w, EPS, index, 2, weight_index=index)
        p = ok.rms_norm_jvp(x, w, p, EPS, weight_index=index) * ok.rms_norm(x, w, EPS, weight_index=index)
        gradients = torch.autograd.grad(p.square().sum(), (x, w), create_graph=True)
        torch.autograd.grad(sum(gradient.sin().sum() for gradient in gradients), (x, w))
        assert traffic == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_captured_graph_sorts_the_index_of_its_replay():
    x, w, dy = draw("cuda", F32, 64, 256), draw("cuda", F32, 5, 256), draw("cuda", F32, 64, 256)
    index = torch.randint(5, (64,), device="cuda")

    def make():
        return launch.rms_norm_backward(x, w, dy, None, EPS, 0.0, True, True, None, index)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        make()  # what is compiled must be before the capture
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = make()
    for _ in range(3):
        index.copy_(torch.randint(5, (64,), device="cuda"))
        graph.replay()
        for got, truth in zip(captured, make(), strict=True):
            assert torch.equal(got, truth)
