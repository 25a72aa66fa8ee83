"""`ofa adapt`: read rows, draw shots, fit, save, and test before and after."""

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ofa.classifier import FewShotClassifier
from ofa.commands.forecast import WORTH_SAYING, in_words, seconds_to_score
from ofa.config import METHODS, OFAConfig
from ofa.data.draws import draw_shots, draw_test, number_labels
from ofa.data.languages import warn_of_unknown_language
from ofa.data.rows import Reading, read_rows
from ofa.selection import n_folds
from ofa.train.history import write_history


@dataclass(frozen=True)
class Adaptation:
    """The options of the command.

    Attributes:
        data: a file of labelled rows, or the name of a data set.
        reading: how it is read.
        label_words: as `number_labels` takes them; none: the labels themselves.
        template: holds `{text}` once.
        shots: examples per class.
        test: how many other rows to test on, or "all".
        model: a name, folder or hub id.
        dtype: the model's; None for what is fast.
        config: how to adapt; its seed serves the draws too.
        select: None, or "cv", as in `FewShotClassifier`.
        n_members: how many trainings are averaged.
    """

    data: str
    reading: Reading
    label_words: Sequence[str]
    template: str
    shots: int
    test: str
    model: str
    dtype: torch.dtype | None
    config: OFAConfig
    select: str | None = None
    n_members: int = 1


def run(options: Adaptation, out: Path, console: Console) -> None:
    """Read the rows, draw, adapt, save to `out`, and test on other rows.

    Raises:
        ValueError, OSError, FloatingPointError, SourceError, KeyboardInterrupt: as what it calls.
    """
    n_test = n_to_test(options.test)
    rows, words = number_labels(read_rows(options.data, options.reading), options.label_words or None)
    chosen, held_out = draw(rows, words, options.shots, n_test, options.config.seed, console)
    if options.select:
        n_folds(chosen, words)  # which refuses too few shots, before a model is loaded
    classifier = FewShotClassifier(
        options.model,
        words,
        options.template,
        options.config,
        dtype=options.dtype,
        select=options.select,
        n_members=options.n_members,
    )
    adapt_and_test(classifier, words, chosen, held_out, out, console)


def configured(method: str, **given: Any) -> OFAConfig:
    """The settings of a method of `METHODS`, changed to what is given; None: not given.

    Raises:
        ValueError: a setting that `OFAConfig` refuses.
    """
    return replace(METHODS[method], **{name: value for name, value in given.items() if value is not None})


def n_to_test(text: str) -> int | None:
    """How many rows `--test` asks for; None for all.

    Raises:
        ValueError: it is neither a number nor "all".
    """
    if text.strip() == "all":
        return None
    if not text.strip().isdecimal():
        raise ValueError(f"--test must be a number of rows, or all, got {text!r}")
    return int(text)


def draw(
    rows: list[dict], words: tuple[str, ...], n_shots: int, n_test: int | None, seed: int, console: Console
) -> tuple[list[dict], list[dict]]:
    """Shots, and rows to test on, none of whose texts are learnt from; says where not all are tested.

    Args:
        rows: {"text", "label": class number}.
        words: one a class.
        n_shots: a class.
        n_test: at most, drawn evenly over the classes; None for all.
        seed: of both draws.
        console: where to print.

    Raises:
        ValueError: a class has too few rows.
    """
    shots, rest = draw_shots(rows, n_shots, seed, words)
    learnt = {shot["text"] for shot in shots}
    rest = [row for row in rest if row["text"] not in learnt]
    # all of them in a drawn order too, so that a forecast's first rows are like the others
    test = draw_test(rest, len(rest) if n_test is None else n_test, seed, len(words))
    if 0 < len(test) < len(rest):
        counts = Counter(row["label"] for row in test)
        even = max(counts.values()) - min(counts[i] for i in range(len(words))) <= 1
        balance = "classes balanced" if even else "classes as balanced as the rows allow"
        console.print(
            f"tested on {len(test):,} of {len(rest):,} other rows, {balance}; --test all for every one",
            highlight=False,
            soft_wrap=True,
        )
    return shots, test


def adapt_and_test(
    classifier: FewShotClassifier,
    words: Sequence[str],
    shots: list[dict],
    test: list[dict],
    out: Path,
    console: Console,
) -> None:
    """Fit on the shots and write the adapter, its training and how well it does on the test rows.

    Args:
        classifier: not fitted yet.
        words: its label words, by class number.
        shots: {"text", "label": class number} to learn from.
        test: rows of the same form, in no order; none: nothing is tested.
        out: folder for the adapter, training.json and the history; a run that was stopped goes on from what
            it left there.
        console: where to print.

    Raises:
        ValueError, FloatingPointError, KeyboardInterrupt: as `FewShotClassifier.fit`.
    """
    warn_of_unknown_language(classifier.tokenizer_, [shot["text"] for shot in shots])
    texts, labels = [row["text"] for row in test], [row["label"] for row in test]
    seconds = 2 * seconds_to_score(classifier, texts)
    if seconds > WORTH_SAYING:
        console.print(
            f"testing takes about {in_words(seconds)}, half of it before adapting; --test N for fewer rows",
            highlight=False,
            soft_wrap=True,
        )
    before = classifier.label_scores(texts, name="zero-shot").accuracy(labels) if test else None
    unfinished = out / "unfinished.safetensors"
    begin = time.perf_counter()
    classifier.fit([s["text"] for s in shots], [words[s["label"]] for s in shots], unfinished)
    result, seconds = classifier.result_, time.perf_counter() - begin
    classifier.save(out)
    write_history(result.history, out)
    for file in out.glob("unfinished*.safetensors"):  # a selection has one of its own
        file.unlink()
    record = {"seconds_fit": seconds, "shots": len(shots), "n_test": len(test)}
    record |= {"n_members": len(classifier.members_), "selection": classifier.selection_}
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
    console.print(f"adapted on {len(shots)} texts in {seconds:.1f} s, final loss {last['loss']:.4g}")
    console.print(f"adapter: {out}, with training.json, history.jsonl and history.png", highlight=False)
