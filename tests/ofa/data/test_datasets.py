import json

import pytest

from ofa.data import datasets


def rows(n_classes, n=40):
    return [{"text": f"text {i}", "label": i % n_classes} for i in range(n)]


def write(folder, name, n_classes):
    (folder / name).mkdir()
    for split in ("train", "test"):
        lines = (json.dumps({**row, "text": f"{split} {row['text']}"}) for row in rows(n_classes))
        (folder / name / f"{split}.jsonl").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("name", datasets.DATA_SETS)
def test_every_data_set_loads_from_a_folder(tmp_path, name):
    """emo too, which has no local copy: from a fabricated file of the same form."""
    n_classes = len(datasets.DATA_SETS[name].task.label_words)
    write(tmp_path, name, n_classes)
    task, pool, test = datasets.load(name, tmp_path)
    assert task.name == name and len(pool) == len(test) == 40
    assert {row["label"] for row in pool} == set(range(n_classes))
    assert all(row["text"].startswith("test") for row in test)


@pytest.mark.parametrize("name", datasets.DATA_SETS)
def test_every_hub_loader_asks_for_what_is_there(monkeypatch, name):
    """The calls and columns; whether the hub answers is for a machine that reaches it."""
    entry, asked = datasets.DATA_SETS[name], []
    text, label = entry.columns
    n_classes = len(entry.task.label_words)

    def load_dataset(repo, config, split, revision):
        asked.append((repo, config, split, revision))
        # hate_speech18 has two classes more, which are left out
        return [{text: f"{split} {i}", label: i % (n_classes + 2)} for i in range(3000)]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    _, pool, test = datasets.load(name)
    assert [call[:2] for call in asked] == [(entry.repo, entry.config)] * len(set(entry.splits))
    assert [call[2] for call in asked] == list(dict.fromkeys(entry.splits))
    assert len(test) == 500 and {row["label"] for row in test} == set(range(n_classes))
    counts = [sum(row["label"] == i for row in test) for i in range(n_classes)]
    assert max(counts) - min(counts) <= 1
    assert not {row["text"] for row in pool} & {row["text"] for row in test}


OWN = {"template": "Message: {text}\nType:", "label_words": ["normal", "spam"]}


def define(folder, **tasks):
    (folder / "tasks.json").write_text(json.dumps(tasks))


def test_a_folder_defines_tasks_of_its_own(tmp_path):
    define(tmp_path, sms={**OWN, "source": "somewhere", "train": 40})
    write(tmp_path, "sms", 2)
    task, pool, test = datasets.load("sms", tmp_path)
    assert task == datasets.Task("sms", OWN["template"], OWN["label_words"])
    assert datasets.find("sms", tmp_path).shots == 5
    assert len(pool) == len(test) == 40 and all(row["text"].startswith("test") for row in test)
    assert list(datasets.data_sets(tmp_path)) == [*datasets.DATA_SETS, "sms"]


def test_the_first_test_rows_of_a_task_of_one_s_own_are_of_all_classes(tmp_path):
    define(tmp_path, sms=OWN)
    write(tmp_path, "sms", 2)
    path = tmp_path / "sms" / "test.jsonl"
    path.write_text("\n".join(sorted(path.read_text().splitlines(), key=lambda line: line[-2])))
    _, _, test = datasets.load("sms", tmp_path)
    assert [sum(row["label"] for row in test[:n]) for n in (2, 10, 40)] == [1, 5, 20]


def test_an_own_definition_of_a_built_in_name_wins_and_says_so(tmp_path):
    write(tmp_path, "dbpedia", 2)
    define(tmp_path, dbpedia=OWN)
    with pytest.warns(UserWarning, match=r"dbpedia is the task of .*tasks.json, not the built-in one"):
        task, _, _ = datasets.load("dbpedia", tmp_path)
    assert task.label_words == ("normal", "spam") and datasets.find("dbpedia", tmp_path).shots == 5
    assert datasets.find("dbpedia").shots == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", 'tasks.json is not JSON .*write {"NAME"'),
        ("[]", "tasks.json holds a list, not tasks by name"),
        ('{"sms": 3}', "sms has no template"),
        ('{"sms": {"label_words": ["a", "b"]}}', "sms has no template, a string that holds {text} once"),
        ('{"sms": {"template": "T: {text}"}}', "sms has no label_words, a list of strings"),
        ('{"sms": {"template": "T: {text}", "label_words": "ab"}}', "sms has no label_words"),
        ('{"sms": {"template": "T: {text}", "label_words": [0, 1]}}', "sms has no label_words"),
        (
            '{"sms": {"template": "T:", "label_words": ["a", "b"]}}',
            "sms: the template must hold {text} exactly",
        ),
        ('{"sms": {"template": "T: {text}", "label_words": ["a"]}}', "sms: at least two label words"),
    ],
)
def test_malformed_definitions_are_refused(tmp_path, content, message):
    (tmp_path / "tasks.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        datasets.load("sms", tmp_path)


def test_rows_of_a_class_without_a_word_are_refused_where_the_words_are_one_s_own(tmp_path):
    define(tmp_path, sms=OWN)
    write(tmp_path, "sms", 3)
    with pytest.raises(ValueError, match=r"rows of class 2, and tasks\.json has label words for 0 to 1"):
        datasets.load("sms", tmp_path)


def test_names_and_folders_that_are_not_there(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="unknown task 'imdb'; known are sst2, sst5"):
        datasets.load("imdb")
    with pytest.raises(ValueError, match=r"unknown task 'imdb'.*define one of your own in .*tasks.json"):
        datasets.load("imdb", tmp_path)
    with pytest.raises(FileNotFoundError):
        datasets.load("sst2", tmp_path)
    (tmp_path / "sst2").mkdir()
    for split in ("train", "test"):
        (tmp_path / "sst2" / f"{split}.jsonl").write_text('{"text": "fine", "label": "positive"}\n')
    with pytest.raises(ValueError, match="the label 'positive' is no number"):
        datasets.load("sst2", tmp_path)

    def offline(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr("datasets.load_dataset", offline)
    with pytest.raises(ValueError, match=r"mr: the hub did not give rotten_tomatoes.*--data"):
        datasets.load("mr")
