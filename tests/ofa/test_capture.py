"""A training step on a packed batch neither waits for the GPU nor copies to it: a CUDA graph can hold it."""

from dataclasses import replace

import pytest
import torch

import ofa
from ofa.passes.packing import packed
from tests.fake_gpu import fake_gpu
from tests.ofa.conftest import build_llama, make_batch

CONFIG = ofa.OFAConfig(lambda_step=0.3, lambda_sharp=0.2, n_probes=2, seed=4)


@pytest.fixture
def traffic():
    """What the host waited for or copied; a GPU's own would say nothing."""
    if torch.cuda.is_available():
        pytest.skip("the fake GPU counts; a real one would say nothing")
    pytest.importorskip("triton")
    with fake_gpu() as traffic:
        yield traffic


def problem(device):
    """(model, its trained weights, a packed batch)."""
    model = build_llama(torch.float32).to(device)
    weights = [norm.module.weight for norm in ofa.patch_model(model).norms]
    batch = {name: value.to(device) for name, value in make_batch().items()}
    return model, weights, packed({**batch, "example_ids": torch.arange(2, device=device)})


def test_a_step_neither_waits_nor_copies(traffic):
    model, weights, batch = problem("cuda")
    step = torch.zeros((), dtype=torch.int64, device="cuda")
    optimizer = torch.optim.AdamW(weights, lr=1e-3, capturable=True)
    for _ in range(2):
        traffic.clear()  # of the first step, in which the optimiser makes its state
        loss = ofa.objective(model, batch, CONFIG, step).loss
        for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            weight.grad = gradient
        optimizer.step()
    assert traffic == []


def test_packing_within_the_step_would_wait(traffic):
    model, batch = build_llama(torch.float32).to("cuda"), make_batch()
    batch = {name: value.to("cuda") for name, value in batch.items()}
    ofa.patch_model(model)
    traffic.clear()
    ofa.objective(model, batch, CONFIG)
    assert "nonzero" in traffic


def test_a_step_in_memory_is_the_step(llama):
    ofa.patch_model(llama)
    batch = make_batch()
    for number in (0, 7):
        expected = ofa.objective(llama, batch, CONFIG, number)
        found = ofa.objective(llama, packed(batch), CONFIG, torch.tensor(number))
        assert torch.equal(found.loss, expected.loss) and torch.equal(found.sharpness, expected.sharpness)


def test_terms_that_depend_on_the_number_of_the_step_want_a_number(llama):
    ofa.patch_model(llama)
    for config in (replace(CONFIG, sharpness_every=2), ofa.OFAConfig.paper_code()):
        with pytest.raises(ValueError, match=r"step is a tensor.*pass an int"):
            ofa.objective(llama, make_batch(), config, torch.tensor(0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_replays_of_a_captured_step_are_the_steps():
    model, weights, batch = problem("cuda")
    step = torch.zeros((), dtype=torch.int64, device="cuda")

    def run(step):
        terms = ofa.objective(model, batch, CONFIG, step)
        return [terms.loss, terms.sharpness, *torch.autograd.grad(terms.loss, weights)]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run(step)  # what is compiled must be before the capture
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(step)
    for number in (0, 1, 2**40):
        step.fill_(number)
        graph.replay()
        for found, expected in zip(captured, run(number), strict=True):
            torch.testing.assert_close(found, expected)
