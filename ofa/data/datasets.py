"""The nine data sets of the paper's table, and those that a folder defines: templates, label words, rows."""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ofa.data.draws import draw_test
from ofa.data.files import SUFFIXES
from ofa.data.rows import read_rows
from ofa.data.task import Task

N_TEST = 500
TEST_SEED = 42  # one test set for all methods and seeds
DEFINITIONS = "tasks.json"
# how the hub converts what has a loading script; `datasets` 4 runs no scripts
PARQUET = "refs/convert/parquet"


@dataclass(frozen=True)
class DataSet:
    """A task, and its rows on the Hugging Face hub where they are there.

    Attributes:
        task: template and label words, in the order of the hub's label numbers.
        repo: the repository; None for a task that a folder defines, which then holds its rows.
        config: its configuration.
        splits: (to learn from, to test on); the same name twice: its first and its second half.
        columns: (text, label).
        revision: where the Parquet files are.
        shots: examples per class in the paper's table.
    """

    task: Task
    repo: str | None = None
    config: str | None = None
    splits: tuple[str, str] = ("train", "test")
    columns: tuple[str, str] = ("text", "label")
    revision: str | None = None
    shots: int = 5


REVIEW, SENTENCE = "Review: {text}\nSentiment:", "Sentence: {text}\nSentiment:"
POLARITY = ("negative", "positive")
FIVE = ("terrible", "negative", "neutral", "positive", "great")
QUESTION = ("Abbreviation", "Entity", "Description", "Person", "Location", "Number")
NEWS = ("World", "Sports", "Business", "Technology")
DBPEDIA = (
    "company", "school", "artist", "athlete", "politics", "transportation", "building", "nature", "village",
    "animal", "plant", "album", "film", "book",
)  # fmt: skip

DATA_SETS = {
    entry.task.name: entry
    for entry in (
        DataSet(
            Task("sst2", REVIEW, POLARITY),
            "glue",
            "sst2",
            splits=("train", "validation"),
            columns=("sentence", "label"),
        ),
        DataSet(Task("sst5", SENTENCE, FIVE), "SetFit/sst5"),
        DataSet(
            Task("trec", "Question: {text}\nAnswer Type:", QUESTION),
            "trec",
            columns=("text", "coarse_label"),
            revision=PARQUET,
        ),
        DataSet(Task("agnews", "News: {text}\nType:", NEWS), "ag_news"),
        DataSet(Task("subj", "Sentence: {text}\nLabel:", ("objective", "subjective")), "SetFit/subj"),
        DataSet(
            Task("hate_speech18", "Text: {text}\nLabel:", ("neutral", "hate")),
            "hate_speech18",
            splits=("train", "train"),
            revision=PARQUET,
        ),
        DataSet(
            Task("dbpedia", "Input: {text}\nLabel:", DBPEDIA),
            "fancyzhx/dbpedia_14",
            columns=("content", "label"),
            shots=1,
        ),
        DataSet(Task("mr", REVIEW, POLARITY), "rotten_tomatoes"),
        DataSet(Task("emo", "Dialogue: {text}\nEmotion:", ("others", "happy", "sad", "angry")), "aladar/emo"),
    )
}


def _own(folder: Path) -> dict[str, DataSet]:
    """What the folder's tasks.json defines, by name; nothing where there is none."""
    path = folder / DEFINITIONS
    if not path.is_file():
        return {}
    form = '{"NAME": {"template": "Message: {text}\\nType:", "label_words": ["normal", "spam"]}, …}'
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); write {form}") from None
    if not isinstance(entries, dict):
        raise ValueError(f"{path} holds a {type(entries).__name__}, not tasks by name; write {form}")
    defined = {}
    for name, entry in entries.items():
        values = entry if isinstance(entry, dict) else {}
        template, words = values.get("template"), values.get("label_words")
        if not isinstance(template, str):
            raise ValueError(
                f"{path}: {name} has no template, a string that holds {{text}} once; write {form}"
            )
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError(f"{path}: {name} has no label_words, a list of strings; write {form}")
        try:
            defined[name] = DataSet(Task(name, template, words))
        except ValueError as error:
            raise ValueError(f"{path}: {name}: {error}") from None
    return defined


def data_sets(data: Path | None = None) -> dict[str, DataSet]:
    """Every known data set by name: of the table, and of the folder's tasks.json.

    Args:
        data: a folder that may hold tasks.json, `{name: {"template": …, "label_words": […]}}`; other keys are
            ignored. Where it defines a name of the table, its definition is taken.

    Raises:
        ValueError: tasks.json is malformed: no JSON, no template with one `{text}`, or fewer than two label
            words.
    """
    return DATA_SETS | (_own(data) if data else {})


def find(name: str, data: Path | None = None) -> DataSet:
    """One of `data_sets(data)`.

    Raises:
        ValueError: an unknown name, or a malformed tasks.json.
    """
    known = data_sets(data)
    if name not in known:
        place = data / DEFINITIONS if data else f"{DEFINITIONS} of a folder that --data names"
        raise ValueError(
            f"unknown task {name!r}; known are {', '.join(known)}, and files in {', '.join(SUFFIXES)}; "
            f"define one of your own in {place}"
        )
    return known[name]


def _numbered(rows: Sequence[dict]) -> list[dict]:
    words = [row["label"] for row in rows if not str(row["label"]).lstrip("-").isdecimal()]
    if words:
        raise ValueError(
            f"the label {words[0]!r} is no number; these data sets have class numbers, from 0 on"
        )
    return [{"text": row["text"], "label": int(row["label"])} for row in rows]


def _from_hub(entry: DataSet) -> tuple[list[dict], list[dict]]:
    import datasets

    assert entry.repo is not None  # a data set without one is defined by a folder, which holds its rows
    text, label = entry.columns
    parts = []
    for split in dict.fromkeys(entry.splits):
        try:
            data = datasets.load_dataset(entry.repo, entry.config, split=split, revision=entry.revision)
        except Exception as error:
            raise ValueError(
                f"{entry.task.name}: the hub did not give {entry.repo}, split {split} "
                f"({type(error).__name__}: {error}); put {entry.task.name}/train.jsonl and test.jsonl into a "
                "folder and name it with --data"
            ) from error
        parts.append([{"text": row[text], "label": row[label]} for row in cast(Any, data)])
    if len(parts) == 1:
        middle = len(parts[0]) // 2
        parts = [parts[0][:middle], parts[0][middle:]]
    return parts[0], parts[1]


def load(name: str, data: Path | None = None) -> tuple[Task, list[dict], list[dict]]:
    """A data set: its task, the pool that shots are drawn from, and its test rows.

    Without a folder the test rows are up to 500, drawn evenly over the classes. From a folder they are all
    rows of the file, in its order, or for a task of the folder's tasks.json with the classes in turn, so that
    any first rows are drawn evenly too. A warning says when tasks.json replaces a data set of the table.

    Args:
        name: one of `data_sets(data)`.
        data: a folder with `<name>/train.jsonl` and `<name>/test.jsonl`, rows {"text", "label": class
            number}, and with tasks.json where it defines tasks; without it the rows come from the Hugging
            Face hub.

    Raises:
        ValueError: an unknown name, a malformed tasks.json, the hub is out of reach, a label is no class
            number, or a task of tasks.json has rows of a class without a label word. Of a data set of the
            table such rows are left out.
        FileNotFoundError: the folder has no such data set.
    """
    entry = find(name, data)
    if data is not None:
        pool, test = (read_rows(str(data / name / f"{split}.jsonl")) for split in ("train", "test"))
    else:
        pool, test = _from_hub(entry)
    pool, test = _numbered(pool), _numbered(test)
    n_classes = len(entry.task.label_words)
    if data is not None and entry.repo is None:
        unnamed = {row["label"] for row in (*pool, *test)} - set(range(n_classes))
        if unnamed:
            raise ValueError(
                f"{data / name} has rows of class {min(unnamed)}, and {DEFINITIONS} has label words for 0 to "
                f"{n_classes - 1}; give each class its word, or leave these rows out"
            )
        if name in DATA_SETS:
            warnings.warn(f"{name} is the task of {data / DEFINITIONS}, not the built-in one", stacklevel=2)
        return entry.task, pool, draw_test(test, len(test), TEST_SEED, n_classes)
    pool, test = ([row for row in rows if 0 <= row["label"] < n_classes] for rows in (pool, test))
    return entry.task, pool, test if data is not None else draw_test(test, N_TEST, TEST_SEED, n_classes)
