"""Autocast changes nothing: the model's own type decides."""

import pytest
import torch

import ofa
from ofa.config import OFAConfig
from ofa.loss.objective import objective
from ofa.scoring import score
from tests.ofa.conftest import TEXTS, build_llama, make_batch
from tests.ofa.decoder.test_families import build

CONFIGS = {
    "LN-tuning": OFAConfig(lambda_step=0, lambda_sharp=0),
    "OFA": OFAConfig(lambda_step=0.3, lambda_sharp=0.2, n_probes=2),
    "authors' code": OFAConfig.paper_code(),
}


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])  # stacked, capped, through its own layers
def test_the_loss_and_its_gradients_are_the_same(family, config, dtype, kind):
    model = build(family, dtype)
    weights = [norm.module.weight for norm in ofa.patch_model(model).norms]
    plain = objective(model, make_batch(), CONFIGS[config], 1).loss
    with torch.autocast("cpu", kind):
        found = objective(model, make_batch(), CONFIGS[config], 1).loss
    assert found.dtype == torch.float32 and torch.equal(found, plain)
    gradients = [torch.autograd.grad(loss, weights) for loss in (found, plain)]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("method", ["jvp", "fd"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_sharpness_is_the_same(family, method):
    model = build(family, torch.float32)
    ofa.patch_model(model)
    plain = ofa.sharpness(model, make_batch(), n_probes=2, method=method).value
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ofa.sharpness(model, make_batch(), n_probes=2, method=method).value, plain)


def test_training_and_scoring_are_the_same(tokenizer, task, shots):
    def run():
        model = build_llama(torch.float32)
        history = ofa.fit(model, tokenizer, task, shots, OFAConfig(epochs=2), progress=False).history
        return history, score(model, tokenizer, task, TEXTS).log_probs

    history, log_probs = run()
    with torch.autocast("cpu", torch.bfloat16):
        found = run()
    assert found[0] == history and torch.equal(found[1], log_probs)
