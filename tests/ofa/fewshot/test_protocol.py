import json
from collections import Counter

import datasets
import pytest

from ofa.fewshot.protocol import draw_shots, draw_test, number_labels, read_rows, read_texts

ROWS = [{"text": f"text, {i}", "label": "no" if i % 3 else "yes"} for i in range(12)]


@pytest.fixture(params=["rows.jsonl", "rows.csv", "rows.tsv"])
def path(request, tmp_path):
    path = tmp_path / request.param
    if path.suffix == ".jsonl":
        lines = [json.dumps(row) for row in ROWS]
    elif path.suffix == ".csv":
        lines = ["text,label", *(f'"{row["text"]}",{row["label"]}' for row in ROWS)]
    else:
        lines = ["text\tlabel", *(f"{row['text']}\t{row['label']}" for row in ROWS)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_every_format_gives_the_same_rows(path):
    assert read_rows(str(path)) == ROWS
    assert read_texts(path) == [row["text"] for row in ROWS]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,label\nfine\n", "line 2: no label"),
        ("a.csv", "text,label\nwith, comma,yes\n", "line 2: more cells than columns"),
        ("a.csv", "review,label\nfine,yes\n", "line 2: no column 'text', only review, label"),
        ("a.csv", "text;label\nfine;yes\n", "separate columns with commas"),
        ("a.csv", "text,label\n", "holds no rows"),
        ("a.csv", 'text,label\n"  ",yes\n', "line 2: the text is empty"),
        ("a.tsv", "text\tlabel\n\tyes\n", "line 2: the text is empty"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": \n', "line 2: no JSON"),
        ("a.jsonl", "[1, 2]\n", "line 1: a JSON object is needed, got list"),
        ("a.jsonl", '{"text": 3, "label": 1}\n', "line 1: the text is empty or no string"),
        ("a.txt", "fine\n", "only files ending in .jsonl, .csv, .tsv"),
    ],
)
def test_bad_files_are_refused_with_the_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_rows(str(path))


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.csv does not exist"):
        read_rows(str(tmp_path / "none.csv"))


def test_another_encoding_is_named(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("text,label\ncafé,yes\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a.csv is not UTF-8 text .* save it as UTF-8"):
        read_rows(str(path))


def test_a_word_for_two_classes():
    with pytest.raises(ValueError, match="given twice: bad, bad"):
        number_labels([{"text": "x", "label": "bad"}], ["bad", "bad"])


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


@pytest.mark.parametrize(
    ("labels", "words", "expected"),
    [
        (["yes", "no", "yes"], None, ([1, 0, 1], ("no", "yes"))),
        (["yes", "no"], ["yes", "no"], ([0, 1], ("yes", "no"))),
        ([1, 0], ["no", "yes"], ([1, 0], ("no", "yes"))),
        ([1, 3], ["1", "2", "3"], ([0, 2], ("1", "2", "3"))),
        (["1", "0"], ["no", "yes"], ([1, 0], ("no", "yes"))),
    ],
)
def test_labels_become_numbers(labels, words, expected):
    rows, found = number_labels([{"text": "t", "label": label} for label in labels], words)
    assert ([row["label"] for row in rows], found) == expected


@pytest.mark.parametrize(
    ("labels", "words", "message"),
    [
        ([0, 1], None, "the labels are numbers .*--label-words"),
        (["a", "c"], ["a", "b"], "unknown labels: c; known are a, b"),
        ([0, 2], ["a", "b"], "unknown labels: 2; known are 0, 1"),
        (["a", "a"], None, "at least two classes"),
    ],
)
def test_labels_that_fit_no_class(labels, words, message):
    with pytest.raises(ValueError, match=message):
        number_labels([{"text": "t", "label": label} for label in labels], words)


def test_shots_are_balanced_shuffled_and_apart():
    rows = [{"text": str(i), "label": i % 2} for i in range(40)]
    shots, rest = draw_shots(rows, 5, seed=0, label_words=("a", "b"))
    assert Counter(shot["label"] for shot in shots) == {0: 5, 1: 5}
    assert sorted(int(row["text"]) for row in shots + rest) == list(range(40))
    assert draw_shots(rows, 5, 0, ("a", "b"))[0] == shots != draw_shots(rows, 5, 1, ("a", "b"))[0]
    orders = {tuple(s["label"] for s in draw_shots(rows, 5, seed, ("a", "b"))[0]) for seed in range(5)}
    assert len(orders) > 1


def test_a_class_that_is_too_small_is_named():
    rows = [{"text": str(i), "label": int(i == 0)} for i in range(9)]
    with pytest.raises(ValueError, match="class 'rare' has 1 example, and 5 per class are asked for"):
        draw_shots(rows, 5, 0, ("common", "rare"))


def test_a_lone_quotation_mark_swallows_no_rows(tmp_path):
    (tmp_path / "a.tsv").write_text('text\tlabel\n"bright\tyes\nso 5" long\tno\n')
    assert [row["text"] for row in read_rows(str(tmp_path / "a.tsv"))] == ['"bright', 'so 5" long']
    (tmp_path / "a.csv").write_text('text,label\n"bright,yes\ndull,no\n')
    with pytest.raises(ValueError, match=r"a\.csv, line \d: unexpected end of data"):
        read_rows(str(tmp_path / "a.csv"))


def test_unlabelled_rows_of_a_data_set_are_refused(monkeypatch):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )
    data = datasets.Dataset.from_dict({"text": ["a"], "label": [-1]}, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: data)
    with pytest.raises(ValueError, match=r"row 0: no label \(-1\)"):
        read_rows("owner/name")


def test_the_test_rows_are_balanced_whatever_the_order():
    rows = [{"text": str(i), "label": int(i >= 300)} for i in range(600)]
    test = draw_test(rows, 200, seed=0, n_classes=2)
    assert Counter(row["label"] for row in test) == {0: 100, 1: 100}
    assert draw_test(rows, 200, 0, 2) == test != draw_test(rows, 200, 1, 2)
    few = draw_test(rows[:305], 200, 0, 2)
    assert Counter(row["label"] for row in few) == {0: 195, 1: 5}
    assert len(draw_test(rows, 1000, 0, 2)) == 600
