"""What only a GPU can show of captured steps."""

from dataclasses import replace

import pytest
import torch

import ofa
from ofa.loss.objective import objective
from ofa.train import fit as trainer
from ofa.train.captured import Captured
from tests.ofa.conftest import build_llama
from tests.ofa.train.test_captured import CONFIGS, OFA, gammas

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def run(tokenizer, task, shots):
    def run(config):
        model = build_llama(torch.float64).to("cuda")
        history = ofa.fit(model, tokenizer, task, shots, config, progress=False).history
        return [row["loss"] for row in history], gammas(model)

    return run


def check_same(found, expected):
    assert found[0] == pytest.approx(expected[0], rel=1e-10)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", CONFIGS)
def test_gamma_is_the_uncaptured_one_but_for_rounding(run, name):
    config = CONFIGS[name]
    check_same(run(replace(config, cuda_graph=True)), run(config))


def test_a_replay_allocates_nothing(run, monkeypatch):
    allocated, take = [], Captured.take

    def counted(self, *arguments):
        before = torch.cuda.memory_stats()["allocation.all.allocated"]
        values = take(self, *arguments)
        allocated.append(torch.cuda.memory_stats()["allocation.all.allocated"] - before)
        return values

    monkeypatch.setattr(Captured, "take", counted)
    run(replace(OFA, batch_size=None, cuda_graph=True))
    assert allocated[0] > 0 and set(allocated[2:]) == {0}


def test_what_waits_is_run_uncaptured_with_a_warning(run, monkeypatch):
    expected, stream = run(OFA), torch.cuda.current_stream()

    def waiting(model, batch, cfg, step):
        terms = objective(model, batch, cfg, step)
        return replace(terms, loss=terms.loss + 0 * terms.loss.item())

    monkeypatch.setattr(trainer, "objective", waiting)
    with pytest.warns(UserWarning, match="the step could not be captured, and is run uncaptured"):
        found = run(replace(OFA, cuda_graph=None))
    check_same(found, expected)
    assert torch.cuda.current_stream() == stream
    with pytest.raises(RuntimeError, match="cuda_graph=True: the step could not be captured"):
        run(replace(OFA, cuda_graph=True))
