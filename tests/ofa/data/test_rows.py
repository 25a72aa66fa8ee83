import json

import datasets
import pytest

from ofa.data.files import Format
from ofa.data.rows import Reading, is_file, read_rows


def test_data_sets_bring_their_class_names(monkeypatch):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )
    data = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    asked = []
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *args, **options: asked.append((args, options)) or data
    )
    assert read_rows("owner/name:sub:test") == [{"text": "a", "label": "pos"}, {"text": "b", "label": "neg"}]
    assert asked == [(("owner/name", "sub"), {"split": "test"})]


def test_an_unreachable_data_set_says_what_else_to_do(monkeypatch):
    def fail(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(ValueError, match=r"neither a file .*ConnectionError: no route.* give the path"):
        read_rows("owner/name")


def test_unlabelled_rows_of_a_data_set_are_refused(monkeypatch):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )
    data = datasets.Dataset.from_dict({"text": ["a"], "label": [-1]}, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: data)
    with pytest.raises(ValueError, match=r"row 0: no label \(-1\)"):
        read_rows("owner/name")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("[1, 0]", [1, 0]),
        ("[1.0, 5.0]", [1, 5]),
        ("[1.5, -1.0]", ["1.5", -1]),
        ('["1.0", " 5 "]', ["1", "5"]),
        ('[" yes", "no "]', ["yes", "no"]),
        ('[["yes"], ["no"]]', ["yes", "no"]),
        ("[[1.0], [2]]", [1, 2]),
    ],
)
def test_labels_are_words_or_whole_numbers(tmp_path, labels, expected):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": "a", "label": label} for label in json.loads(labels)]))
    assert [row["label"] for row in read_rows(str(path))] == expected


@pytest.mark.parametrize("label", ["null", "NaN", '""', '" "', "[]"])
def test_what_is_no_label(tmp_path, label):
    path = tmp_path / "a.json"
    path.write_text(f'[{{"text": "a", "label": {label}}}]')
    with pytest.raises(ValueError, match="item 1: no label"):
        read_rows(str(path))


def test_a_format_makes_a_name_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").touch()
    assert is_file("mine") and is_file("a.CSV") and not is_file("glue:sst2") and not is_file("a.txt")
    with pytest.raises(FileNotFoundError):
        read_rows("glue:sst2", Reading(format=Format.csv))
