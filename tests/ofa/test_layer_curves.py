import json

import numpy as np
import pytest
import torch

import ofa
from ofa.config import OFAConfig
from ofa.data.batch import pad
from ofa.decoder.view import Decoder
from ofa.layer_curves import Items, Measuring, analyse, layer_curves, linear_probe, write
from ofa.passes.own_layers import token_states
from tests.ofa.conftest import build_llama

CONFIG = OFAConfig(epochs=3, lr=1e-2, lambda_step=0.1, lambda_sharp=0.1)
N_LAYERS = 3


@pytest.fixture(scope="module")
def model():
    return build_llama(torch.float32)


def test_curves_are_what_they_say(model, tokenizer, task, shots):
    curves = layer_curves(model, tokenizer, Items(task, shots, shots), Measuring(n_probes=4, seed=3))
    assert len(curves.accuracy) == len(curves.log_loss) == N_LAYERS + 1
    batch = pad([task.encode(tokenizer, s["text"], 64).ids for s in shots], torch.device("cpu"))
    h = ofa.sharpness(model, batch, n_probes=4, seed=3).value
    np.testing.assert_allclose(curves.sharpness, h.mean(1).detach(), rtol=1e-4)
    np.testing.assert_allclose(curves.sharpness_stderr, h.std(1).detach() / 6**0.5, rtol=1e-4)
    z = token_states(Decoder.of(model), batch).z
    moved, came = (z[2:] - z[1:-1]).norm(dim=-1), (z[1:-1] - z[:-2]).norm(dim=-1)
    np.testing.assert_allclose(curves.step_ratio, (moved / came).mean(1).detach(), rtol=1e-4)
    # six points in 24 dimensions can be told apart wherever they differ
    assert curves.accuracy[-1] == 1.0 and curves.log_loss[-1] < 0.3


def test_a_linear_probe_learns_from_the_shots_alone():
    generator = np.random.default_rng(0)
    labels = np.arange(40) % 2
    states = generator.normal(size=(40, 5)) + 4 * labels[:, None]
    accuracy, loss = linear_probe(states[:20], labels[:20], states[20:], labels[20:])
    assert accuracy == 1.0 and loss < 0.1
    accuracy, loss = linear_probe(states[:20], labels[:20], states[20:], 1 - labels[20:])
    assert accuracy == 0.0 and loss > 1


def test_all_variants_are_measured_and_the_model_is_given_back(model, tokenizer, task, shots, tmp_path):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    curves = analyse(model, tokenizer, Items(task, shots, shots), CONFIG, Measuring(2), progress=False)
    assert list(curves) == ["raw", "CE", "CE + J", "CE + H", "OFA"]
    ends = [c.step_ratio[-1] for c in curves.values()]
    assert len(set(ends)) == 5, "every variant trains with other terms"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    written = write(curves, "reviews", tmp_path / "new")
    assert [path.name for path in written] == ["probe.json", "probe.md", "probe.png"]
    assert json.loads(written[0].read_text())["curves"]["OFA"]["accuracy"] == curves["OFA"].accuracy
    assert written[1].read_text().count("\n| ") == 1 + 1 + 5 and written[2].stat().st_size > 10_000
