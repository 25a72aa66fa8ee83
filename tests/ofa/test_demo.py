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
    demo.run_demo(tmp_path / "out", model_folder)
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
