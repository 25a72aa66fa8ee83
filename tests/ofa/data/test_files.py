"""Files as people have them: each as the rows of `ofa adapt` and the texts of `ofa predict`, or refused."""

import json

import pytest

from ofa.data.files import Format
from ofa.data.rows import Reading, read_rows, read_texts

ROWS = [("fine, really", "good"), ("dull", "bad")]
COMMAS = 'text,label\n"fine, really",good\ndull,bad\n'
SEMICOLONS = (
    COMMAS.replace('"fine, really",', "fine, really;").replace(",label", ";label").replace(",b", ";b")
)
TABS = SEMICOLONS.replace(";", "\t")
OBJECTS = [{"text": text, "label": label} for text, label in ROWS]
LINES = "".join(json.dumps(item) + "\n" for item in OBJECTS)


def studio(text, *choices, **more):
    """A task as Label Studio exports it, with an annotation for each list of choices."""
    results = [[{"type": "choices", "from_name": "mood", "value": {"choices": c}}] for c in choices]
    return {"id": 7, "data": {"text": text}, "annotations": [{"result": r, **more} for r in results]}


STUDIO = [studio(text, [label]) for text, label in ROWS]


def doccano(key):
    return "".join(
        json.dumps({"id": i, key: text, "label": [label]}) + "\n" for i, (text, label) in enumerate(ROWS)
    )


def put(folder, name, content, encoding="utf-8"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


def both(path, **options):
    """What the two readers make of a file."""
    reading = Reading(**options)
    return [(row["text"], row["label"]) for row in read_rows(str(path), reading)], read_texts(path, reading)


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("a.csv", COMMAS, {}),
        ("A.CSV", COMMAS, {}),
        ("a.csv", COMMAS.replace("\n", "\r\n"), {}),
        ("a.csv", SEMICOLONS, {}),
        ("a.csv", TABS, {}),
        ("a.tsv", TABS, {}),
        ("a.TSV", TABS, {}),
        ("a.csv", "sep=;\r\n" + SEMICOLONS, {}),
        ("a.csv", "sep=|\n" + SEMICOLONS.replace(";", "|"), {}),
        ("a.csv", "\ufeff" + COMMAS, {}),
        ("a.csv", "\ufeffsep=;\n" + SEMICOLONS, {}),
        ("a.csv", COMMAS.replace("text,label", '"text","label"'), {}),
        ("a.csv", COMMAS.replace("text,label", " Text ,LABEL"), {}),
        ("a.csv", COMMAS.replace("t,l", "t,Mood l"), {"label_column": "mood label"}),
        ("a.csv", COMMAS.replace("text", "Review"), {"text_column": "review"}),
        ("a.csv", SEMICOLONS.replace("label", "label (0, 1, 2)"), {"label_column": "label (0, 1, 2)"}),
        ("a.csv", COMMAS.replace("label", "label (0; 1; 2)"), {"label_column": "label (0; 1; 2)"}),
        ("a.csv", COMMAS.replace("fine, ", "fine; "), {}),
        ("a.txt", COMMAS, {"format": Format.csv}),
        ("export", TABS, {"format": Format.tsv}),
        ("a.dat", LINES, {"format": Format.jsonl}),
        ("a.json", LINES, {"format": Format.jsonl}),
        ("a.jsonl", LINES.replace("\n", "\n\n"), {}),
        ("a.jsonl", "\ufeff" + LINES, {}),
        ("a.json", json.dumps(OBJECTS), {}),
        ("a.json", json.dumps({"data": OBJECTS}, indent=2), {}),
        ("a", json.dumps(OBJECTS), {"format": Format.json}),
        ("a.json", json.dumps(STUDIO), {}),
        ("a.json", json.dumps([studio(t, [y], [y]) for t, y in ROWS]), {}),
        ("a.jsonl", doccano("text"), {}),
        ("a.jsonl", doccano("data"), {}),
    ],
)  # fmt: skip
def test_the_same_rows_whatever_the_file(tmp_path, name, content, options):
    rows, texts = both(put(tmp_path, name, content), **options)
    assert [(text.replace(";", ","), label) for text, label in rows] == ROWS
    assert texts == [text for text, _ in rows]


@pytest.mark.parametrize(
    ("encoding", "asked"),
    [
        ("utf-8", None),
        ("utf-8-sig", "utf-8"),
        ("utf-16", None),
        ("utf-16", "utf-16"),
        ("utf-16-le", "utf-16-le"),
        ("latin-1", "latin-1"),
        ("cp1252", "cp1252"),
    ],
)
def test_encodings(tmp_path, encoding, asked):
    path = put(tmp_path, "a.csv", "text,label\ncafé,ja\nthé,nein\n", encoding)
    assert both(path, encoding=asked) == ([("café", "ja"), ("thé", "nein")], ["café", "thé"])


@pytest.mark.parametrize("mark", [b"\xff\xfe", b"\xfe\xff"])
def test_utf_16_is_known_by_its_byte_order_mark(tmp_path, mark):
    body = COMMAS.encode("utf-16-le" if mark == b"\xff\xfe" else "utf-16-be")
    assert both(put(tmp_path, "a.csv", mark + body))[0] == ROWS


# the readers that refuse: "both", or "rows" where the texts alone are sound
REFUSED = [
    ("both", "a.csv", b"text,label\nok,a\ncaf\xe9,b\n", {}, r"line 3 is not UTF-8 text .*--encoding cp1252"),
    ("both", "a.csv", COMMAS.encode("utf-16-le"), {}, r"zero bytes.*--encoding utf-16-le"),
    ("both", "a.csv", COMMAS, {"encoding": "ansi5"}, "unknown encoding 'ansi5'"),
    ("both", "a.csv", "text,label\ncafé,b\n", {"encoding": "ascii"}, r"line 2 is not ascii text"),
    ("both", "a.csv", b"PK\x03\x04rest", {}, "a spreadsheet or an archive; save it as CSV"),
    ("both", "a.xlsx", "anything", {}, "is a spreadsheet; save it as CSV"),
    ("both", "a.XLSX", "anything", {"format": Format.csv}, "is a spreadsheet; save it as CSV"),
    ("both", "a.txt", COMMAS, {}, r"say it with --format csv\|tsv\|jsonl\|json\|txt"),
    ("both", "export", COMMAS, {}, r"say it with --format"),
    ("rows", "a.txt", "one\n", {"format": Format.txt}, "a txt file has no labels"),
    ("rows", "a.csv", "text,label\nfine\n", {}, "line 2: no label"),
    ("both", "a.csv", "text,label\nwith, comma,yes\n", {}, "line 2: more cells than columns"),
    ("both", "a.csv", "text;label\nwith; comma;yes\n", {}, "line 2: more cells than columns"),
    ("both", "a.csv", "sep=;\ntext;label\nwith; comma;yes\n", {}, "line 3: more cells than columns"),
    ("both", "a.csv", 'text,label\n"two\nlines",a\nb,c,d\n', {}, "line 4: more cells than columns"),
    ("both", "a.csv", "a,label,b\nfine,yes,1\n", {}, "line 2: no column 'text', only a, label, b;"),
    ("both", "a.csv", "text label\nfine yes\n", {}, "separated by commas, semicolons or tabs"),
    (
        "both", "a.csv", "great film,positive\ndull,negative\n", {},
        r"--text-column 'great film' --label-column positive, or, .* put the line text,label above it",
    ),
    ("both", "a.csv", "Text,TEXT\na,b\n", {}, "columns 'Text', 'TEXT' are alike"),
    ("both", "a.csv", "text,label\n", {}, "holds no"),
    ("both", "a.csv", "", {}, "holds no"),
    ("both", "a.csv", 'text,label\n"  ",yes\n', {}, "line 2: the text is empty"),
    ("both", "a.csv", "text,label\n,\nb,no\n,yes\n", {}, r"line 2: the text is empty \(2 rows.*--skip-empty"),
    ("rows", "a.csv", "text,label\na, \nb,no\nc,\n", {}, r"line 2: no label .*\(2 rows.*--skip-empty"),
    ("both", "a.tsv", "text\tlabel\n\tyes\n", {}, "line 2: the text is empty"),
    ("both", "a.txt", "one\n\ntwo\n", {"format": Format.txt}, "line 2: the text is empty|no labels"),
    ("both", "a.jsonl", '{"text": "a", "label": 1}\n{"text": \n', {}, "line 2: no JSON"),
    ("both", "a.jsonl", json.dumps(OBJECTS, indent=1), {}, "line 1: no JSON.*--format json"),
    ("both", "a.json", LINES, {}, "line 2: no JSON.*--format jsonl"),
    ("both", "a.json", '{"text": ["a"]}', {}, "a list of objects is needed.*keys text"),
    ("both", "a.json", "[1]", {}, "item 1: a JSON object is needed, got int"),
    ("both", "a.jsonl", "[1, 2]\n", {}, "line 1: a JSON object is needed, got list"),
    ("both", "a.jsonl", '{"text": 3, "label": 1}\n', {}, r"line 1: the text is no string but 3 \(int\)"),
    ("both", "a.jsonl", '{"text": null, "label": 1}\n', {}, "line 1: the text is empty"),
    ("both", "a.json", '[{"text": NaN, "label": 1}]', {}, "item 1: the text is empty"),
    ("rows", "a.jsonl", '{"text": "a", "label": ["x", "y"]}\n', {}, r"line 1: 2 labels \(x, y\), and one"),
    ("rows", "a.jsonl", '{"text": "a", "label": [[0, 4, "ORG"]]}\n', {}, r"line 1: 3 labels \(0, 4, ORG\)"),
    ("rows", "a.jsonl", '{"text": "a", "label": {"x": 1}}\n', {}, "line 1: the label is neither word nor"),
    ("rows", "a.json", json.dumps([studio("a", ["x", "y"])]), {}, r"item 1: 2 labels \(x, y\)"),
    ("rows", "a.json", json.dumps([studio("a", ["x"], ["y"])]), {}, r"item 1: 2 labels \(x, y\)"),
    ("rows", "a.json", json.dumps([studio("a")]), {}, "item 1: no label"),
    ("rows", "a.json", json.dumps([studio("a", ["x"], was_cancelled=True)]), {}, "item 1: no label"),
]  # fmt: skip


@pytest.mark.parametrize(("readers", "name", "content", "options", "message"), REFUSED)
def test_what_is_refused_is_named(tmp_path, readers, name, content, options, message):
    path, reading = put(tmp_path, name, content), Reading(**options)
    with pytest.raises(ValueError, match=message):
        read_rows(str(path), reading)
    if readers == "both":
        with pytest.raises(ValueError, match=message):
            read_texts(path, reading)
    elif options.get("format") is not Format.txt:
        assert read_texts(path, reading)


def test_a_missing_file_and_a_folder(tmp_path):
    for name in ("none.csv", "none.CSV"):
        with pytest.raises(FileNotFoundError, match=f"{name} does not exist"):
            read_rows(str(tmp_path / name))
    with pytest.raises(FileNotFoundError, match="none does not exist"):
        read_rows(str(tmp_path / "none"), Reading(format=Format.csv))
    with pytest.raises(ValueError, match="is a folder; give a file"):
        read_rows(str(tmp_path))


def test_lines_of_text(tmp_path):
    path = put(tmp_path, "a.txt", 'one\r\ntwo, "three"\u2028four\r\n')
    assert read_texts(path, Reading(format=Format.txt)) == ["one", 'two, "three"\u2028four']


def test_a_lone_quotation_mark_swallows_no_rows(tmp_path):
    path = put(tmp_path, "a.tsv", 'text\tlabel\n"bright\tyes\nso 5" long\tno\n')
    assert both(path)[1] == ['"bright', 'so 5" long']
    with pytest.raises(ValueError, match=r"a\.csv, line \d: unexpected end of data"):
        read_rows(str(put(tmp_path, "a.csv", 'text,label\n"bright,yes\ndull,no\n')))


def test_empty_cells_are_skipped_only_when_asked_to_and_counted(tmp_path):
    path = put(tmp_path, "a.csv", "text,label\n,yes\na,yes\nb,\n \nc,no\n")
    with pytest.warns(UserWarning, match=r"3 rows left out, the first: .*a.csv, line 2: the text is empty"):
        rows = read_rows(str(path), Reading(skip_empty=True))
    assert [row["text"] for row in rows] == ["a", "c"]
    with pytest.warns(UserWarning, match="2 rows without a label in the output, the first: .*line 2"):
        assert read_texts(path, Reading(skip_empty=True)) == ["", "a", "b", "", "c"]
    for reader in (lambda *a: read_rows(str(a[0]), a[1]), read_texts):
        with pytest.warns(UserWarning), pytest.raises(ValueError, match="holds no"):
            reader(put(tmp_path, "b.csv", "text,label\n,\n,\n"), Reading(skip_empty=True))
