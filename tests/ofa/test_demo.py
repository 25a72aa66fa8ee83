import json

import pytest

import ofa
from ofa import demo
from tests.ofa.conftest import TEXTS


@pytest.fixture
def rows(monkeypatch):
    """Sixty rows in place of the tweets, four a class to test on."""
    monkeypatch.setattr("ofa.fewshot.tweets.TEST_PER_CLASS", 4)
    rows = [{"text": f"{TEXTS[i % 6]} {i}", "label": i % 2} for i in range(60)]
    monkeypatch.setattr(demo, "load_tweets", lambda: rows)


def test_the_whole_path(rows, tmp_path, model_folder, monkeypatch, capsys):
    configs = {name: ofa.OFAConfig(**{**vars(c), "epochs": 1}) for name, c in demo.CONFIGS.items()}
    monkeypatch.setattr(demo, "CONFIGS", configs)
    monkeypatch.setattr("ofa.scoring.max_tokens", lambda model: 4096)
    fresh, shots = [], {}
    fit, score = demo.FewShotClassifier.fit, demo.FewShotClassifier.score

    def watch_fit(self, texts, labels):
        fresh.append(type(self.model.model.norm).__name__)
        return fit(self, texts, labels)

    def watch_score(self, texts, demonstrations, name):
        shots[name] = len(demonstrations)
        return score(self, texts, demonstrations, name)

    monkeypatch.setattr(demo.FewShotClassifier, "fit", watch_fit)
    monkeypatch.setattr(demo.FewShotClassifier, "score", watch_score)
    demo.run_demo(tmp_path / "out", model_folder)
    assert fresh == ["LlamaRMSNorm"] * 6, "a method started from another one's γ"
    assert {name: n for name, n in shots.items() if n} == {f"seed {seed}: ICL": 10 for seed in (0, 1, 2)}
    shown = capsys.readouterr().out
    assert "zero-shot" in shown and "ICL" in shown and "peak memory" in shown
    cells = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    keys = {"task", "method", "protocol", "seed", "shots", "model", "accuracy", "n_test", "seconds_fit"}
    assert len(cells) == 12 and all(keys | {"seconds_eval"} <= set(cell) for cell in cells)
    assert {(cell["method"], cell["seed"]) for cell in cells} == {
        (method, seed) for method in ("zero-shot", "ICL", *configs) for seed in (0, 1, 2)
    }
    assert {cell["n_test"] for cell in cells} == {8}
    again = ofa.load(tmp_path / "out", progress=False)
    assert again.task.label_words == ("negative", "positive")
