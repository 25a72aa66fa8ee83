"""Files of texts as they come: which format, delimiter and encoding, and each record with its place."""

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path

DELIMITERS = ",;\t"
SAMPLE = 10_000  # characters that tell the delimiter
SPREADSHEETS = (".xlsx", ".xlsm", ".xls", ".ods", ".numbers")
ZIPPED = b"PK\x03\x04"  # how every newer spreadsheet begins, whatever it is called
BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


class Format(str, Enum):
    """What a file can hold: tables with a header line, JSON objects, or one text a line."""

    csv = "csv"
    tsv = "tsv"
    jsonl = "jsonl"
    json = "json"
    txt = "txt"


# .txt is the ending of tables too, so that its format has to be said
SUFFIXES = tuple(f".{known.value}" for known in Format if known is not Format.txt)


def read_records(
    path: Path, format: Format | None = None, encoding: str | None = None
) -> Iterator[tuple[str, dict]]:
    """Each record of a file as (where it stands, its cells by column).

    A CSV file's delimiter is the comma, semicolon or tab of its first lines, or what Excel's `sep=` says.
    JSON is a list of objects, or such a list under "data". Tasks of Label Studio and lines of Doccano become
    objects with `text` and `label`, the latter a list where they have several labels.

    Args:
        path: the file.
        format: None for what the ending says.
        encoding: None for UTF-8, or UTF-16 where the file begins with its byte-order mark.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a spreadsheet, an unknown ending, or what does not parse; the line is named.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if not path.is_file():
        raise ValueError(f"{path} is a folder; give a file")
    if path.suffix.lower() in SPREADSHEETS:
        raise ValueError(f"{path} is a spreadsheet; save it as CSV (UTF-8) and give that file")
    if format is None and path.suffix.lower() not in SUFFIXES:
        raise ValueError(
            f"{path}: only files ending in {', '.join(SUFFIXES)} tell what they hold; say it with --format "
            f"{'|'.join(Format)}"
        )
    text = _decoded(path, encoding)
    match format or Format(path.suffix.lower()[1:]):
        case Format.csv:
            return _table(path, text, strict=True)
        case Format.tsv:
            # a text may hold a lone quotation mark, which must not swallow the lines that follow
            return _table(path, text, delimiter="\t", quoting=csv.QUOTE_NONE)
        case Format.jsonl:
            return _json_lines(path, text)
        case Format.json:
            return _json(path, text)
        case Format.txt:
            return ((f"{path}, line {n}", {"text": line}) for n, line in enumerate(_lines(text), 1))


def _decoded(path: Path, encoding: str | None) -> str:
    data = path.read_bytes()
    if data.startswith(ZIPPED):
        raise ValueError(f"{path} is a spreadsheet or an archive; save it as CSV (UTF-8) and give that file")
    marks = (name for mark, name in BYTE_ORDER_MARKS.items() if data.startswith(mark))
    name = encoding or next(marks, "utf-8")
    try:
        text = data.decode(name).removeprefix("\ufeff")
    except LookupError:
        raise ValueError(f"unknown encoding {name!r}; use for example utf-8, utf-16 or cp1252") from None
    except UnicodeDecodeError as error:
        line = data[: error.start].decode(name, "ignore").count("\n") + 1
        shown = {"utf-8": "UTF-8", "utf-16": "UTF-16"}.get(name, name)
        other = "cp1252" if shown == "UTF-8" else "utf-8"
        raise ValueError(
            f"{path}, line {line} is not {shown} text ({error.reason}); give its encoding, for example "
            f"--encoding {other}, or save it as UTF-8"
        ) from None
    if "\0" in text:
        raise ValueError(
            f"{path} holds zero bytes, so it is UTF-16 or no text; try --encoding utf-16-le, or save it as "
            "UTF-8"
        )
    return text


def _lines(text: str) -> Iterator[str]:
    # not splitlines, which also splits at characters that JSON and texts may hold
    return (line.rstrip("\n") for line in io.StringIO(text, newline=None))


def _table(path: Path, text: str, **dialect) -> Iterator[tuple[str, dict]]:
    file = io.StringIO(text, newline="")
    n_before = 0
    if "delimiter" not in dialect:
        said = re.match("sep=(.)\r?\n", text, re.IGNORECASE)
        if said:
            file.readline()
            n_before = 1
        dialect["delimiter"] = said[1] if said else _delimiter(text)
    reader, first = csv.DictReader(file, **dialect), 0
    try:
        while True:
            first = max(reader.line_num, 1) + n_before + 1  # of the line after; a row may span several
            row = next(reader, None)
            if row is None:
                return
            where = f"{path}, line {first}"
            if row.pop(None, None) is not None:
                raise ValueError(f"{where}: more cells than columns; quote the text")
            yield where, row
    except csv.Error as error:
        raise ValueError(f"{path}, line {first}: {error}") from None


def _delimiter(text: str) -> str:
    """The delimiter by which header and first row have equally many cells, else the one of most columns."""
    # csv.Sniffer takes the comma of any header that holds one, as in "text;label (0, 1)"

    def plausibility(delimiter: str) -> tuple[bool, int]:
        reader = csv.reader(io.StringIO(text[:SAMPLE], newline=""), delimiter=delimiter)
        header, row = next(reader, []), next(reader, [])
        return 1 < len(header) == len(row), len(header)

    return max(DELIMITERS, key=plausibility)


def _json_lines(path: Path, text: str) -> Iterator[tuple[str, dict]]:
    for number, line in enumerate(_lines(text), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            item = json.loads(line)
        except json.JSONDecodeError as error:
            hint = "; a file that is one list takes --format json" if line.strip() == "[" else ""
            raise ValueError(f"{where}: no JSON ({error.msg}){hint}") from None
        yield where, _record(where, item)


def _json(path: Path, text: str) -> Iterator[tuple[str, dict]]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        hint = "; a file with an object a line takes --format jsonl" if error.msg == "Extra data" else ""
        raise ValueError(f"{path}, line {error.lineno}: no JSON ({error.msg}){hint}") from None
    items = content.get("data") if isinstance(content, dict) else content
    if not isinstance(items, list):
        raise ValueError(f'{path}: a list of objects is needed, bare or under "data", got {_kind(content)}')
    for number, item in enumerate(items, 1):
        where = f"{path}, item {number}"
        yield where, _record(where, item)


def _kind(content: object) -> str:
    if isinstance(content, dict):
        return f"an object with the keys {', '.join(content)}"
    return type(content).__name__


def _record(where: str, item: object) -> dict:
    """An object as it is, or made of what an annotation tool exports."""
    if not isinstance(item, dict):
        raise ValueError(f"{where}: a JSON object is needed, got {type(item).__name__}")
    data = item.get("data")
    if isinstance(data, dict) and isinstance(item.get("annotations"), list):
        return {**data, "label": _choices(item["annotations"])}
    if isinstance(data, str) and "text" not in item:  # Doccano's older name
        return {**item, "text": data}
    return item


def _choices(annotations: list[dict]) -> list[str]:
    """What the annotators of a Label Studio task chose, each once."""
    results = [
        result
        for annotation in annotations
        if not annotation.get("was_cancelled")
        for result in annotation.get("result", ())
    ]
    found = [choice for result in results for choice in result.get("value", {}).get("choices", ())]
    return list(dict.fromkeys(found))
