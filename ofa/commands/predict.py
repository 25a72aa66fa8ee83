"""`ofa predict`: label texts, print them, and write them as CSV."""

import csv
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ofa.classifier import FewShotClassifier
from ofa.commands.forecast import WORTH_SAYING, in_words, seconds_to_score
from ofa.data.rows import Reading, read_texts


def texts_of(texts: Sequence[str], file: Path | None, reading: Reading) -> list[str]:
    """The texts of the command line, and those of a file after them.

    Raises:
        ValueError: one is empty, or there are none.
    """
    if not all(text.strip() for text in texts):
        raise ValueError("a text is empty; leave it out")
    texts = [*texts, *(read_texts(file, reading) if file else ())]
    if not texts:
        raise ValueError("nothing to classify: give texts, or a file with --file")
    return texts


def check_output(out: Path) -> None:
    """Refuse, before any work, a file that can't be written.

    Raises:
        ValueError: it is a folder, or in none that is there and can be written to.
    """
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder; give a file, such as {out / 'labels.csv'}")
    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: the folder {out.parent} does not exist")
    try:
        if out.exists():
            out.open("a").close()
        else:
            tempfile.TemporaryFile(dir=out.parent).close()
    except OSError as error:
        raise ValueError(f"--out {out} can't be written: {error.strerror}") from None


def label(classifier: FewShotClassifier, texts: Sequence[str], console: Console) -> list[tuple[str, ...]]:
    """A header and a row (text, label, probability of each label) a text; of an empty one all is empty."""
    words = classifier.task_.label_words
    there = [text for text in texts if text]
    seconds = seconds_to_score(classifier, there)
    if seconds > WORTH_SAYING:
        console.print(f"labelling {len(there):,} texts takes about {in_words(seconds)}", highlight=False)
    scores = classifier.label_scores(there)
    numbers: list[int] = scores.predictions.tolist()
    found = zip(numbers, scores.log_probs.exp().tolist(), strict=True)
    rows: list[tuple[str, ...]] = [("text", "label", *words)]
    for text in texts:
        if not text:
            rows.append(("",) * len(rows[0]))
            continue
        number, probabilities = next(found)
        rows.append((text, words[number], *(f"{p:.4f}" for p in probabilities)))
    return rows


def show(rows: Sequence[tuple[str, ...]], out: Path | None, console: Console) -> None:
    """Write what `label` gave to a file, if one is asked for, and print it."""
    if out:
        with out.open("w", newline="", encoding="utf-8") as target:
            csv.writer(target).writerows(rows)
    table = Table(*rows[0])
    for row in rows[1:]:
        table.add_row(*map(escape, row))
    console.print(table)
    if out:
        console.print(f"written to {out}")
