import json

import pytest
import torch

import ofa
from benchmarks import many_adapters


@pytest.fixture
def data(tmp_path):
    """SST-2's form: rows of 3 to 8 words."""
    folder = tmp_path / "sst2"
    folder.mkdir()
    rows = [{"text": " ".join(["fine"] * (3 + i % 6) + [str(i)]), "label": i % 2} for i in range(40)]
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_the_norms_differ_in_their_weights_only():
    found = {name: call() for name, call in many_adapters.norms((7, 40), torch.float32).items()}
    (dx, dw), (same_dx, same_dw) = found.pop("one weight"), found.pop("A = 1")
    assert torch.equal(dx, same_dx) and torch.equal(dw, same_dw[0])
    assert len(found) == 2 and all(dw.shape == (many_adapters.WEIGHTS, 40) for _, dw in found.values())


def test_jobs_train_and_texts_are_answered(data, model_folder, monkeypatch):
    model, tokenizer = ofa.models.load(model_folder, dtype=torch.float32)
    ofa.patch_model(model)
    monkeypatch.setattr(many_adapters, "TEXTS", 6)
    sst2 = many_adapters.of_sst2(data)
    assert len(sst2.texts) == 6 and len({json.dumps(shots) for shots in sst2.shots}) == many_adapters.JOBS
    for call in many_adapters.training(model, tokenizer, sst2, ofa.OFAConfig(), n_jobs=2).values():
        call()
    bank, gammas = many_adapters.filled(model, tokenizer, sst2.task, 3)
    assert len(bank) == 3 and bank.nbytes == sum(g.nbytes for own in gammas for g in own)
    for call in many_adapters.answers(model, tokenizer, sst2).values():
        call()


def test_ratios_are_those_of_the_same_round():
    rows = many_adapters.rows_of({"a": [1.0, 2.0, 4.0], "b": [2.0, 2.0, 4.0]})
    assert [row[-1] for row in rows] == ["1.000", "1.000"]
    rows = many_adapters.rows_of({"a": [1.0, 2.0, 4.0], "b": [3.0, 6.0, 4.0]})
    assert rows[1][-1] == "3.000"


def test_tables_and_numbers_are_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(many_adapters, "SHAPES", ((3, 8),))
    written = tmp_path / "found.json"
    options = ["--parts", "kernels", "--dtypes", "float32", "--rounds", "2", "--json", str(written)]
    assert many_adapters.main([*options, "--markdown", str(tmp_path / "found.md")]) == 0
    (times,) = json.loads(written.read_text())["times"].values()
    assert list(times)[:2] == ["one weight", "A = 1"] and "A = 64, sorted" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        many_adapters.main([])
