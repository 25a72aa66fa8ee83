"""Classify the texts of a CSV file: learn from its labelled rows, then label new texts.

    python examples/classify_csv.py                     # the reviews below
    python examples/classify_csv.py mine.csv --model PATH

The file has the columns `text` and `label`; give at least two rows of each class.
"""

import argparse
import tempfile
from pathlib import Path

import ofa
from ofa.data.rows import read_rows

REVIEWS = """text,label
The plot drags and the jokes fall flat.,negative
A joy from start to finish.,positive
I wanted my evening back.,negative
"Warm, funny, and over too soon.",positive
The lead sleeps through every scene.,negative
Every song stays with you for days.,positive
"""
NEW = ["Two hours of people shouting.", "Sharp writing and a perfect cast."]


def main(arguments: list[str] | None = None) -> list[str]:
    """Learn from the file and label `NEW`; the labels are printed and returned."""
    parser = argparse.ArgumentParser(description="Learn from a CSV file, then label new texts.")
    parser.add_argument("file", nargs="?", type=Path, help="default: six reviews")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a name, a folder or a hub id")
    parser.add_argument("--epochs", type=int, default=30)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        file = options.file or Path(folder) / "reviews.csv"
        if options.file is None:
            file.write_text(REVIEWS, encoding="utf-8")
        rows = read_rows(str(file))
    classifier = ofa.FewShotClassifier(
        options.model,
        template="Review: {text}\nSentiment:",
        config=ofa.OFAConfig(epochs=options.epochs),
    )
    classifier.fit([row["text"] for row in rows], [row["label"] for row in rows])
    labels = [str(label) for label in classifier.predict(NEW)]
    for text, label, odds in zip(NEW, labels, classifier.predict_proba(NEW).max(1), strict=True):
        print(f"{label:>10} {odds:.2f}  {text}")
    return labels


if __name__ == "__main__":
    main()
