"""Texts and labels out of records: which column, which label, and what of rows that lack one."""

import re
import shlex
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ofa.data.files import SUFFIXES, Format, read_records

WHOLE_FLOAT = re.compile(r"(-?\d+)\.0+")


@dataclass(frozen=True)
class Reading:
    """How a file is read.

    Attributes:
        text_column: where the text is; a name that differs in case or outer spaces is found too.
        label_column: where the label is.
        format: None for what the file's ending says.
        encoding: None for UTF-8, or UTF-16 with a byte-order mark.
        skip_empty: leave out rows without a text or a label, with a warning, instead of refusing them.
    """

    text_column: str = "text"
    label_column: str = "label"
    format: Format | None = None
    encoding: str | None = None
    skip_empty: bool = False


def is_file(source: str) -> bool:
    """Whether a name is the name of a file: by its ending, or because it is on the disk."""
    path = Path(source)
    return path.suffix.lower() in SUFFIXES or path.exists()


def read_rows(source: str, reading: Reading = Reading()) -> list[dict]:
    """Rows {"text": str, "label": str or int} of a file, or of a `datasets` name.

    Args:
        source: a path that `ofa.data.files.read_records` reads, or a name on the Hugging Face hub, with the
            configuration and split after colons: `glue:sst2:train`.
        reading: columns, format, encoding, and what of empty cells.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line that doesn't parse, a missing column, a text that is no string, several labels in
            one row, empty cells (unless skipped) or no row at all.
    """
    if reading.format is Format.txt:
        raise ValueError(f"{source}: a txt file has no labels; give a csv, tsv, jsonl or json file")
    if reading.format is not None or is_file(source):
        records = read_records(Path(source), reading.format, reading.encoding)
    else:
        records = _read_dataset(source, reading.label_column)
    rows, empty = [], _Empty(reading.skip_empty)
    for where, record in records:
        text = _text(where, record, reading.text_column)
        if not text:
            empty.add(f"{where}: the text is empty")
            continue
        label = _label(where, _cell(where, record, reading.label_column, "--label-column"))
        if label == "":
            empty.add(f"{where}: no label in column {reading.label_column!r}")
            continue
        rows.append({"text": text, "label": label})
    empty.tell("left out")
    if not rows:
        raise ValueError(f"{source} holds no rows" + " with text and label" * bool(empty.places))
    return rows


def read_texts(path: Path, reading: Reading = Reading()) -> list[str]:
    """The texts of a file, one a record, "" where an empty one was let through; labels are not needed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: as `read_rows`, but for labels.
    """
    texts, empty = [], _Empty(reading.skip_empty)
    for where, record in read_records(path, reading.format, reading.encoding):
        texts.append(_text(where, record, reading.text_column))
        if not texts[-1]:
            empty.add(f"{where}: the text is empty")
    empty.tell("without a label in the output")
    if not any(texts):
        raise ValueError(f"{path} holds no texts")
    return texts


class _Empty:
    """The rows that lack something: told when all are known, so that the count is whole."""

    def __init__(self, skip: bool):
        self.skip, self.places = skip, []

    def add(self, place: str) -> None:
        self.places.append(place)

    def tell(self, what_happens: str) -> None:
        if not self.places:
            return
        n = f"{len(self.places):,} row{'s' * (len(self.places) > 1)}"
        if self.skip:
            warnings.warn(f"{n} {what_happens}, the first: {self.places[0]}", stacklevel=3)
            return
        raise ValueError(
            f"{self.places[0]} ({n} like this in all); fill it in, or let such rows be left out with "
            "--skip-empty"
        )


def _cell(where: str, record: dict, column: str, option: str) -> object:
    if column in record:
        return record[column]
    alike = [name for name in record if str(name).strip().casefold() == column.strip().casefold()]
    if len(alike) == 1:
        return record[alike[0]]
    if alike:
        raise ValueError(f"{where}: the columns {', '.join(map(repr, alike))} are alike; name one ({option})")
    hint = f"rename one, or give its name ({option})"
    if len(record) == 1:
        hint = "columns are separated by commas, semicolons or tabs"
    if len(record) == 2:
        names = [shlex.quote(str(name)) for name in record]
        hint = (
            f"say which is which, for example --text-column {names[0]} --label-column {names[1]}, or, where "
            "the first line is a row already, put the line text,label above it"
        )
    raise ValueError(f"{where}: no column {column!r}, only {', '.join(map(str, record))}; {hint}")


def _is_missing(value: object) -> bool:
    return value is None or value != value  # NaN, as pandas writes an empty cell


def _text(where: str, record: dict, column: str) -> str:
    """The text, "" where there is none."""
    text = _cell(where, record, column, "--text-column")
    if _is_missing(text):
        return ""
    if not isinstance(text, str):
        raise ValueError(f"{where}: the text is no string but {text!r} ({type(text).__name__})")
    return text if text.strip() else ""


def _label(where: str, label: object) -> str | int:
    """A label as a word or a number, "" where there is none; 1.0 is 1."""
    if isinstance(label, list):
        if len(label) > 1:
            raise ValueError(
                f"{where}: {len(label)} labels ({', '.join(map(str, label))}), and one is needed; keep one, "
                "or leave the row out"
            )
        return _label(where, label[0] if label else None)
    if _is_missing(label):
        return ""
    if not isinstance(label, str | int | float):
        raise ValueError(f"{where}: the label is neither word nor number but {label!r}")
    if isinstance(label, float):
        return int(label) if label.is_integer() else str(label)
    return plain_label(label) if isinstance(label, str) else label


def plain_label(text: str) -> str:
    """A label as it is compared: without outer spaces, and 1.0 as 1."""
    found = WHOLE_FLOAT.fullmatch(text.strip())
    return found[1] if found else text.strip()


def _read_dataset(source: str, label_column: str) -> Iterator[tuple[str, dict]]:
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
    return _named_labels(source, data, label_column)


def _named_labels(source: str, data: Any, label_column: str) -> Iterator[tuple[str, dict]]:
    """The rows of a `datasets.Dataset`, class numbers replaced by the names that it has for them."""
    names = getattr(data.features.get(label_column), "names", None)
    for i, row in enumerate(data):
        where = f"{source}, row {i}"
        if names and isinstance(row[label_column], int):
            if not 0 <= row[label_column] < len(names):
                raise ValueError(f"{where}: no label ({row[label_column]}); use a split that is labelled")
            row = {**row, label_column: names[row[label_column]]}
        yield where, row
