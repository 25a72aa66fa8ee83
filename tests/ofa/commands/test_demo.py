import json

import pytest
import torch

import ofa
from ofa import classifier
from ofa.commands import demo
from ofa.config import DEFAULT_METHOD, METHODS
from ofa.decoder.view import Decoder
from tests.ofa.conftest import TEXTS


@pytest.fixture
def rows(monkeypatch):
    """Sixty rows in place of the tweets, four a class to test on."""
    monkeypatch.setattr("ofa.data.tweets.TEST_PER_CLASS", 4)
    rows = [{"text": f"{TEXTS[i % 6]} {i}", "label": i % 2} for i in range(60)]
    monkeypatch.setattr(demo, "load_tweets", lambda: rows)


def test_the_whole_path(rows, tmp_path, model_folder, monkeypatch, capsys):
    configs = {name: ofa.OFAConfig(**{**vars(c), "epochs": 1}) for name, c in demo.CONFIGS.items()}
    monkeypatch.setattr(demo, "CONFIGS", configs)
    monkeypatch.setattr(Decoder, "max_tokens", 4096)
    starts, shots = [], {}
    fit, label_scores = classifier.fit, demo.FewShotClassifier.label_scores

    def watch_fit(model, *args, **options):
        starts.append(model.model.norm.weight.detach().clone())
        return fit(model, *args, **options)

    def watch_score(self, texts, demonstrations, name):
        shots[name] = len(demonstrations)
        return label_scores(self, texts, demonstrations, name)

    monkeypatch.setattr(classifier, "fit", watch_fit)
    monkeypatch.setattr(demo.FewShotClassifier, "label_scores", watch_score)
    demo.run_demo(tmp_path / "out", model_folder)
    assert len(starts) == 6
    assert all(torch.equal(start, starts[0]) for start in starts), "a method started from another one's γ"
    assert {name: n for name, n in shots.items() if n} == {f"seed {seed}: icl": 10 for seed in (0, 1, 2)}
    shown = capsys.readouterr().out
    assert "zero-shot" in shown and "icl" in shown and "peak memory" in shown
    cells = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    keys = {"task", "method", "protocol", "seed", "shots", "model", "accuracy", "n_test", "seconds_fit"}
    assert len(cells) == 12 and all(keys | {"seconds_eval"} <= set(cell) for cell in cells)
    assert {(cell["method"], cell["seed"]) for cell in cells} == {
        (method, seed) for method in ("zero-shot", "icl", *configs) for seed in (0, 1, 2)
    }
    assert {cell["n_test"] for cell in cells} == {8}
    # what is kept, and shown last, is the default
    assert list(configs)[-1] == DEFAULT_METHOD and f"three predictions ({DEFAULT_METHOD}" in shown
    again = ofa.load(tmp_path / "out", progress=False)
    assert again.selected_.lambda_sharp == METHODS[DEFAULT_METHOD].lambda_sharp
    assert again.task_.label_words == ("negative", "positive")
