import json

import pytest

from ofa.fewshot import catalog


def rows(n_classes, n=40):
    return [{"text": f"text {i}", "label": i % n_classes} for i in range(n)]


def write(folder, name, n_classes):
    (folder / name).mkdir()
    for split in ("train", "test"):
        lines = (json.dumps({**row, "text": f"{split} {row['text']}"}) for row in rows(n_classes))
        (folder / name / f"{split}.jsonl").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("name", catalog.DATA_SETS)
def test_every_data_set_loads_from_a_folder(tmp_path, name):
    """emo too, which has no local copy: from a fabricated file of the same form."""
    n_classes = len(catalog.DATA_SETS[name].task.label_words)
    write(tmp_path, name, n_classes)
    task, pool, test = catalog.load(name, tmp_path)
    assert task.name == name and len(pool) == len(test) == 40
    assert {row["label"] for row in pool} == set(range(n_classes))
    assert all(row["text"].startswith("test") for row in test)


@pytest.mark.parametrize("name", catalog.DATA_SETS)
def test_every_hub_loader_asks_for_what_is_there(monkeypatch, name):
    """The calls and columns; whether the hub answers is for a machine that reaches it."""
    entry, asked = catalog.DATA_SETS[name], []
    text, label = entry.columns
    n_classes = len(entry.task.label_words)

    def load_dataset(repo, config, split, revision):
        asked.append((repo, config, split, revision))
        # hate_speech18 has two classes more, which are left out
        return [{text: f"{split} {i}", label: i % (n_classes + 2)} for i in range(3000)]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    _, pool, test = catalog.load(name)
    assert [call[:2] for call in asked] == [(entry.repo, entry.config)] * len(set(entry.splits))
    assert [call[2] for call in asked] == list(dict.fromkeys(entry.splits))
    assert len(test) == 500 and {row["label"] for row in test} == set(range(n_classes))
    counts = [sum(row["label"] == i for row in test) for i in range(n_classes)]
    assert max(counts) - min(counts) <= 1
    assert not {row["text"] for row in pool} & {row["text"] for row in test}


def test_names_and_folders_that_are_not_there(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="unknown task 'imdb'; known are sst2, sst5"):
        catalog.load("imdb")
    with pytest.raises(FileNotFoundError):
        catalog.load("sst2", tmp_path)
    (tmp_path / "sst2").mkdir()
    for split in ("train", "test"):
        (tmp_path / "sst2" / f"{split}.jsonl").write_text('{"text": "fine", "label": "positive"}\n')
    with pytest.raises(ValueError, match="the label 'positive' is no number"):
        catalog.load("sst2", tmp_path)

    def offline(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr("datasets.load_dataset", offline)
    with pytest.raises(ValueError, match=r"mr: the hub did not give rotten_tomatoes.*--data"):
        catalog.load("mr")
