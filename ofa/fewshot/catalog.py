"""The nine data sets of the paper's table: templates, label words, and where their rows come from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ofa.fewshot.protocol import draw_test, read_rows
from ofa.fewshot.tasks import Task

N_TEST = 500
# how the hub converts what has a loading script; `datasets` 4 runs no scripts
PARQUET = "refs/convert/parquet"


@dataclass(frozen=True)
class DataSet:
    """A task and its rows on the Hugging Face hub.

    Attributes:
        task: template and label words, in the order of the hub's label numbers.
        repo: the repository.
        config: its configuration.
        splits: (to learn from, to test on); the same name twice: its first and its second half.
        columns: (text, label).
        revision: where the Parquet files are.
        shots: examples per class in the paper's table.
    """

    task: Task
    repo: str
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


def _clean(rows: Sequence[dict], n_classes: int) -> list[dict]:
    """Rows with class numbers; those of classes without a label word are left out."""
    words = [row["label"] for row in rows if not str(row["label"]).lstrip("-").isdecimal()]
    if words:
        raise ValueError(
            f"the label {words[0]!r} is no number; these data sets have class numbers, from 0 on"
        )
    numbered = ({"text": row["text"], "label": int(row["label"])} for row in rows)
    return [row for row in numbered if 0 <= row["label"] < n_classes]


def _from_hub(entry: DataSet) -> tuple[list[dict], list[dict]]:
    import datasets

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
        parts.append([{"text": row[text], "label": row[label]} for row in data])
    if len(parts) == 1:
        middle = len(parts[0]) // 2
        parts = [parts[0][:middle], parts[0][middle:]]
    return parts[0], parts[1]


def load(name: str, data: Path | None = None) -> tuple[Task, list[dict], list[dict]]:
    """A data set of the table: its task, the pool that shots are drawn from, and up to 500 test rows.

    Args:
        name: one of `DATA_SETS`.
        data: a folder with `<name>/train.jsonl` and `<name>/test.jsonl`, rows {"text", "label": class
            number}; without it the rows come from the Hugging Face hub.

    Raises:
        ValueError: an unknown name, the hub is out of reach, or a row has no such class.
        FileNotFoundError: the folder has no such data set.
    """
    if name not in DATA_SETS:
        raise ValueError(
            f"unknown task {name!r}; known are {', '.join(DATA_SETS)}, and files in .jsonl, .csv or .tsv"
        )
    entry = DATA_SETS[name]
    if data is not None:
        pool, test = (read_rows(str(data / name / f"{split}.jsonl")) for split in ("train", "test"))
    else:
        pool, test = _from_hub(entry)
    n_classes = len(entry.task.label_words)
    pool, test = _clean(pool, n_classes), _clean(test, n_classes)
    return entry.task, pool, test if data is not None else draw_test(test, N_TEST, 42, n_classes)
