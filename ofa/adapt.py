"""`ofa adapt`, once its rows are read: fit, save, and test before and after."""

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ofa.classifier import FewShotClassifier
from ofa.history import write_history


def adapt_and_test(
    classifier: FewShotClassifier, shots: list[dict], test: list[dict], out: Path, console: Console
) -> None:
    """Fit on the shots and write the adapter, its training and how well it does on the test rows.

    Args:
        classifier: not fitted yet.
        shots: {"text", "label": class number} to learn from.
        test: rows of the same form; none: nothing is tested.
        out: folder for the adapter, training.json and the history; a run that was stopped goes on from what
            it left there.
        console: where to print.

    Raises:
        ValueError, FloatingPointError, KeyboardInterrupt: as `FewShotClassifier.fit`.
    """
    texts, labels = [row["text"] for row in test], [row["label"] for row in test]
    before = classifier.label_scores(texts, name="zero-shot").accuracy(labels) if test else None
    words = classifier.label_words
    unfinished = out / "unfinished.safetensors"
    classifier.fit([s["text"] for s in shots], [words[s["label"]] for s in shots], unfinished)
    result = classifier.result_
    classifier.save(out)
    write_history(result.history, out)
    unfinished.unlink()
    record = {"seconds_fit": result.seconds, "shots": len(shots), "n_test": len(test)}
    if test:
        accuracy = classifier.score(texts, [words[label] for label in labels])
        record |= {"accuracy_zero_shot": before, "accuracy": accuracy}
        counts = ", ".join(f"{labels.count(i)} {word}" for i, word in enumerate(words))
        table = Table(
            title=f"accuracy on {len(test)} rows that were not learnt from ({counts})", min_width=60
        )
        table.add_column("zero-shot", justify="right")
        table.add_column("adapted", justify="right")
        table.add_row(f"{before:.3f}", f"{record['accuracy']:.3f}")
        console.print(table)
    (out / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    last = result.history[-1]
    console.print(f"adapted on {len(shots)} texts in {result.seconds:.1f} s, final loss {last['loss']:.4g}")
    console.print(f"adapter: {out}, with training.json, history.jsonl and history.png", highlight=False)
