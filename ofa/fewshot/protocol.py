"""Labelled examples: reading them from files, and drawing k shots per class."""

import csv
import io
import json
import random
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

SUFFIXES = (".jsonl", ".csv", ".tsv")


def read_rows(source: str, text_column: str = "text", label_column: str = "label") -> list[dict]:
    """Rows {"text": str, "label": str or int} of a JSONL, CSV or TSV file, or of a `datasets` name.

    Args:
        source: a path that ends in .jsonl, .csv or .tsv (the latter two with a header line), or a name on
            the Hugging Face hub, with the configuration and split after colons: `glue:sst2:train`.
        text_column: where the text is.
        label_column: where the label is.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line that doesn't parse, a missing column, an empty text or no row at all.
    """
    path = Path(source)
    # a hub name may hold a dot too, so what lies on the disk decides
    rows = (
        _read_file(path) if path.suffix in SUFFIXES or path.exists() else _read_dataset(source, label_column)
    )
    result = []
    for where, row in rows:
        text = _cell_text(where, row, text_column)
        if row.get(label_column) in (None, ""):
            raise ValueError(f"{where}: no label in column {label_column!r}")
        result.append({"text": text, "label": row[label_column]})
    if not result:
        raise ValueError(f"{source} holds no rows")
    return result


def read_texts(path: Path, text_column: str = "text") -> list[str]:
    """The texts of a JSONL, CSV or TSV file; labels are not needed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, a line that doesn't parse, a missing column or an empty text.
    """
    return [_cell_text(where, row, text_column) for where, row in _read_file(path)]


def _cell_text(where: str, row: dict, column: str) -> str:
    if column not in row:
        hint = "rename one, or give its name (--text-column, where a command has it)"
        if len(row) == 1 and any(mark in next(iter(row)) for mark in ";\t"):
            hint = "separate columns with commas (.csv) or tabs (.tsv)"
        raise ValueError(f"{where}: no column {column!r}, only {', '.join(map(str, row))}; {hint}")
    text = row[column]
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where}: the text is empty or no string; remove the row or fill it in")
    return text


def _read_file(path: Path):
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: only files ending in {', '.join(SUFFIXES)} can be read")
    return _read_jsonl(path) if path.suffix == ".jsonl" else _read_table(path)


def _lines(path: Path):
    """The text of a file, to be read by lines; what can't be read is named."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error.reason}); save it as UTF-8") from None
    return io.StringIO(text, newline="")


def _read_jsonl(path: Path):
    with _lines(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: no JSON ({error.msg})") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: a JSON object is needed, got {type(row).__name__}")
            yield f"{path}, line {number}", row


def _read_table(path: Path):
    # a tab-separated text may hold a lone quotation mark, which must not swallow the lines that follow
    dialect = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path.suffix == ".tsv" else {"strict": True}
    with _lines(path) as file:
        reader = csv.DictReader(file, **dialect)
        try:
            for row in reader:
                if row.pop(None, None) is not None:
                    raise ValueError(
                        f"{path}, line {reader.line_num}: more cells than columns; quote the text"
                    )
                yield f"{path}, line {reader.line_num}", row
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}: {error}") from None


def _read_dataset(source: str, label_column: str):
    import datasets

    name, _, rest = source.partition(":")
    config, _, split = rest.partition(":")
    try:
        data = datasets.load_dataset(name, config or None, split=split or "train")
    except Exception as error:
        raise ValueError(
            f"{source!r} is neither a file ending in {', '.join(SUFFIXES)} nor a data set that loads "
            f"({type(error).__name__}: {error}); give the path of a file with the columns text and label"
        ) from error
    feature = data.features.get(label_column)
    names = getattr(feature, "names", None)
    for i, row in enumerate(data):
        where = f"{source}, row {i}"
        if names and isinstance(row[label_column], int):
            if not 0 <= row[label_column] < len(names):
                raise ValueError(f"{where}: no label ({row[label_column]}); use a split that is labelled")
            row = {**row, label_column: names[row[label_column]]}
        yield where, row


def number_labels(
    rows: Sequence[dict], label_words: Sequence[str] | None = None
) -> tuple[list[dict], tuple[str, ...]]:
    """Rows with class numbers as labels, and the label words in that order.

    Labels may be words (then `label_words` gives their order; default: sorted) or class numbers from 0 on
    (then `label_words` is needed). Labels that all are label words are taken as such, also `1` to `5`.

    Raises:
        ValueError: numbers without words, an unknown label, or fewer than two classes.
    """
    found = sorted({str(row["label"]).strip() for row in rows})
    are_words = set(found) <= set(label_words or ())
    if not are_words and all(label.isdecimal() for label in found):
        if label_words is None:
            raise ValueError(
                f"the labels are numbers ({', '.join(found)}); name the classes in this order, "
                "for example --label-words negative,positive"
            )
        index = {str(i): i for i in range(len(label_words))}
    else:
        label_words = found if label_words is None else label_words
        index = {word: i for i, word in enumerate(label_words)}
    unknown = [label for label in found if label not in index]
    if unknown:
        raise ValueError(
            f"unknown labels: {', '.join(unknown)}; known are {', '.join(index)}. Where a label and its word "
            f"differ, write label=word (--label-words {unknown[0]}=…)"
        )
    if len(set(label_words)) < len(label_words):
        raise ValueError(f"a label word is given twice: {', '.join(label_words)}; each class needs its own")
    if len(label_words) < 2:
        raise ValueError(f"at least two classes are needed, got {', '.join(label_words)}")
    numbered = [{"text": row["text"], "label": index[str(row["label"]).strip()]} for row in rows]
    return numbered, tuple(label_words)


def _counted(n: int) -> str:
    return f"{n} example{'s' * (n != 1)}"


def draw_shots(
    rows: Sequence[dict], k: int, seed: int, label_words: Sequence[str]
) -> tuple[list[dict], list[dict]]:
    """k rows per class, drawn by the seed and shuffled, and all other rows in their order.

    Raises:
        ValueError: a class has fewer than k rows.
    """
    generator = random.Random(seed)
    chosen: list[int] = []
    for label, word in enumerate(label_words):
        members = [i for i, row in enumerate(rows) if row["label"] == label]
        if len(members) < k:
            raise ValueError(
                f"class {word!r} has {_counted(len(members))}, and {k} per class are asked for; "
                "add examples or ask for fewer shots (--shots)"
            )
        chosen += generator.sample(members, k)
    generator.shuffle(chosen)
    taken = set(chosen)
    return [rows[i] for i in chosen], [row for i, row in enumerate(rows) if i not in taken]


def draw_test(rows: Sequence[dict], n: int, seed: int, n_classes: int) -> list[dict]:
    """Up to n rows, drawn by the seed, as evenly over the classes as the rows allow."""
    generator = random.Random(seed)
    by_class = [[row for row in rows if row["label"] == label] for label in range(n_classes)]
    for members in by_class:
        generator.shuffle(members)
    rounds = zip_longest(*by_class)
    return [row for one_of_each in rounds for row in one_of_each if row is not None][:n]
