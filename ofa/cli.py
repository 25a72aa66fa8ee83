"""The command line: ofa demo | adapt | predict | export | compare | table | probe | info."""

import sys
import warnings
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import ofa
from ofa.commands.locks import check_folder, only_run
from ofa.data.files import SUFFIXES, Format
from ofa.data.rows import Reading, read_rows, read_texts

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    help="Adapt a frozen language model to a few labelled texts by training its norm weights only.",
    pretty_exceptions_enable=False,
)
console = Console()
FILES = f"A file in {', '.join(SUFFIXES)}, or any with --format"


class Dtype(str, Enum):
    """Number types a model can be loaded in."""

    auto = "auto"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


Model = Annotated[str, typer.Option(help="A name, a folder or a hub id.")]
MovedModel = Annotated[str | None, typer.Option("--model", help="The base model, where it has moved.")]
ModelType = Annotated[Dtype, typer.Option("--dtype", help="auto: the fastest type of this machine.")]
Adapter = Annotated[Path, typer.Argument(help="A folder that adapt or demo wrote.")]
Shots = Annotated[int | None, typer.Option(min=1, help="Examples per class; default: 5, and 1 for dbpedia.")]
Seed = Annotated[int, typer.Option(help="Of the draw, the order and the probes.")]
LabelWords = Annotated[
    str,
    typer.Option(
        help="Comma-separated, in label order; needed where labels are numbers. neg=bad or 5=great renames."
    ),
]
TextColumn = Annotated[str, typer.Option(help="Where the text is.")]
LabelColumn = Annotated[str, typer.Option(help="Where the label is.")]
FileFormat = Annotated[
    Format | None, typer.Option("--format", help="What a file holds whose ending does not say it.")
]
Encoding = Annotated[
    str | None, typer.Option(help="Such as cp1252; default: UTF-8, or UTF-16 with a byte-order mark.")
]
SkipEmpty = Annotated[
    bool,
    typer.Option("--skip-empty", help="Leave out rows without a text or a label instead of refusing them."),
]


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"ofa {ofa.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Take what stands before a command."""


@contextmanager
def _plain_errors():
    """What a user did or lacks ends in one line, not in a traceback."""
    from ofa.download import SourceError

    def show(message, *_, **__):
        Console(stderr=True).print(f"[yellow]warning:[/] {_escape(str(message))}", soft_wrap=True)

    try:
        with warnings.catch_warnings():
            warnings.showwarning = show
            yield
    except (ValueError, OSError, SourceError, FloatingPointError) as error:
        Console(stderr=True).print(f"[bold red]error:[/] {_escape(str(error))}", soft_wrap=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt as interrupt:
        Console(stderr=True).print(str(interrupt) or "stopped", soft_wrap=True, highlight=False)
        raise typer.Exit(130) from None


def _say_how_to_use(adapter: Path) -> None:
    # as this command was called itself, so that the line can be copied
    program = sys.argv[0] if Path(sys.argv[0]).name == "ofa" else "ofa"
    console.print(f'use it: {program} predict {adapter} "your text"', highlight=False, soft_wrap=True)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


def _dtype(choice: Dtype):
    import torch

    return None if choice is Dtype.auto else getattr(torch, choice.value)


@app.command(epilog="Example: [bold]ofa demo --out adapters/tweets[/]")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the adapter and results.jsonl.")] = Path(
        "adapters/tweets"
    ),
    model: Model = "smollm2-135m-instruct",
) -> None:
    """Get a model and 4,200 tweets, learn from 5 per class, and compare four methods on 500 others."""
    with _plain_errors(), only_run(out):
        from ofa.commands.demo import run_demo

        run_demo(out, model)
    _say_how_to_use(out)


@app.command(
    epilog="Example: [bold]ofa adapt reviews.csv --template 'Review: {text}\\nLabel:' --out my-adapter[/]"
)
def adapt(
    data: Annotated[str, typer.Argument(help=f"{FILES}, of text,label; or a datasets name.")],
    out: Annotated[Path, typer.Option(help="Folder for the adapter.")] = Path("adapters/adapter"),
    model: Model = "smollm2-135m-instruct",
    template: Annotated[
        str, typer.Option(help="Holds {text} once and ends before the label; \\n is a new line.")
    ] = "Text: {text}\\nLabel:",
    label_words: LabelWords = "",
    shots: Annotated[int, typer.Option(min=1, help="Examples per class to learn from.")] = 5,
    test: Annotated[
        str, typer.Option(help="Test on up to so many other rows, classes balanced; all: on every one.")
    ] = "500",
    lambda_step: Annotated[float, typer.Option(help="Weight of the step ratio J.")] = 1e-2,
    lambda_sharp: Annotated[float, typer.Option(help="Weight of the sharpness H.")] = 1e-3,
    n_probes: Annotated[int, typer.Option(help="Hutchinson probes per layer and example.")] = 1,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    epochs: Annotated[int, typer.Option(help="Passes over the shots.")] = 30,
    batch_size: Annotated[int, typer.Option(help="Examples per step.")] = 5,
    seed: Seed = 0,
    text_column: TextColumn = "text",
    label_column: LabelColumn = "label",
    format: FileFormat = None,
    encoding: Encoding = None,
    skip_empty: SkipEmpty = False,
    dtype: ModelType = Dtype.auto,
) -> None:
    """Learn from a few rows of a labelled file and save the adapter; test it on the other rows.

    A run that was stopped or killed goes on where it was when the same command is given again.
    """
    with _plain_errors(), only_run(out):
        from ofa.classifier import FewShotClassifier
        from ofa.commands.adapt import adapt_and_test, draw, n_to_test
        from ofa.config import OFAConfig
        from ofa.data.draws import number_labels

        config = OFAConfig(
            lambda_step=lambda_step, lambda_sharp=lambda_sharp, n_probes=n_probes, lr=lr, epochs=epochs,
            batch_size=batch_size, seed=seed,
        )  # fmt: skip
        n_test = n_to_test(test)
        reading = Reading(text_column, label_column, format, encoding, skip_empty)
        rows, words = number_labels(read_rows(data, reading), _split(label_words) or None)
        chosen, held_out = draw(rows, words, shots, n_test, seed, console)
        classifier = FewShotClassifier(
            model, words, template.replace("\\n", "\n"), config, dtype=_dtype(dtype)
        )
        adapt_and_test(classifier, chosen, held_out, out, console)
    _say_how_to_use(out)


@app.command(
    epilog='Example: [bold]ofa predict adapters/reviews "a fine film" --file more.csv --out labels.csv[/]'
)
def predict(
    adapter: Adapter,
    texts: Annotated[list[str] | None, typer.Argument(help="Texts to classify.")] = None,
    file: Annotated[
        Path | None, typer.Option(help=f"{FILES}, with a column text; txt: one text a line.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write text, label and probabilities as CSV.")] = None,
    model: MovedModel = None,
    text_column: TextColumn = "text",
    format: FileFormat = None,
    encoding: Encoding = None,
    skip_empty: Annotated[
        bool,
        typer.Option("--skip-empty", help="Let rows without a text through: they stay, without a label."),
    ] = False,
) -> None:
    """Label texts with an adapter, with the probability of each label."""
    with _plain_errors():
        from ofa.commands.predict import check_output, label, show

        if out:
            check_output(out)
        texts = texts or []
        if not all(text.strip() for text in texts):
            raise ValueError("a text is empty; leave it out")
        if file:
            reading = Reading(text_column, format=format, encoding=encoding, skip_empty=skip_empty)
            texts = texts + read_texts(file, reading)
        if not texts:
            raise ValueError("nothing to classify: give texts, or a file with --file")
        show(label(ofa.load(adapter, model), texts, console), out, console)


@app.command(epilog="Example: [bold]ofa export adapters/reviews models/reviews[/]")
def export(
    adapter: Adapter,
    out: Annotated[Path, typer.Argument(help="Folder for the model and its tokenizer.")],
    model: MovedModel = None,
) -> None:
    """Write an adapted model as a plain one that servers load without an adapter."""
    with _plain_errors():
        check_folder(out)
        classifier = ofa.load(adapter, model)
        ofa.export_merged(classifier.model_, classifier.tokenizer_, out)
    console.print(f"written to {out}: load it with transformers or any server that takes its folders")


@app.command(
    epilog="Example: [bold]ofa compare --tasks sst2,trec --seeds 3 "
    "--methods ln-tuning,ofa:lambda_sharp=0.1,lora:lr=3e-3+r=4[/]"
)
def compare(
    tasks: Annotated[
        str,
        typer.Option(
            help=f"Comma-separated names of data sets, or files of your own ({', '.join(SUFFIXES)}, or any "
            "with --format). all: those that tasks.json defines, else the nine built-in ones."
        ),
    ],
    methods: Annotated[
        str,
        typer.Option(
            help="Comma-separated; a wrong name lists them. Numeric options follow a colon, joined by +: "
            "ofa:lr=3e-3+lambda_sharp=0.1; a wrong one lists them. all: every method without options."
        ),
    ] = "all",
    seeds: Annotated[str, typer.Option(help="How many draws of the shots, or which: 100-102.")] = "5",
    shots: Shots = None,
    protocol: Annotated[
        str, typer.Option(help="A: test prompts stand alone. B: the shots precede them. A,B: both.")
    ] = "A",
    model: Model = "smollm2-135m-instruct",
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder of NAME/train.jsonl and test.jsonl; default: the hub. A tasks.json in it "
            "({NAME: {template, label_words}}) defines tasks of your own, which win over built-in ones."
        ),
    ] = None,
    test_items: Annotated[int, typer.Option(min=1, help="Test on up to so many rows.")] = 500,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Cap on optimiser steps.")] = None,
    template: Annotated[
        str, typer.Option(help="Of your own files: holds {text} once; \\n is a new line.")
    ] = "Text: {text}\\nLabel:",
    whole_words: Annotated[
        bool, typer.Option("--whole-words", help="Train on and score all tokens of the label words.")
    ] = False,
    label_words: LabelWords = "",
    text_column: TextColumn = "text",
    label_column: LabelColumn = "label",
    format: FileFormat = None,
    encoding: Encoding = None,
    skip_empty: SkipEmpty = False,
    out: Annotated[Path, typer.Option(help="Folder for cells, tables and plots.")] = Path("comparison"),
    dtype: ModelType = Dtype.auto,
) -> None:
    """Compare methods on tasks, paired by seed; what is finished is never run again.

    Every finished cell is one line of cells.jsonl in the folder --out; a run that was stopped goes on from
    there. On several devices: accelerate launch -m ofa compare … splits the cells.
    """
    with _plain_errors():
        from ofa.commands.compare import Comparison, draws, run

        run(
            Comparison(
                _split(tasks), _split(methods), _split(protocol), draws(seeds), out, shots, test_items,
                max_steps, model, data, template.replace("\\n", "\n"), _dtype(dtype), whole_words,
                Reading(text_column, label_column, format, encoding, skip_empty), _split(label_words),
            ),
            console,
        )  # fmt: skip


@app.command(epilog="Example: [bold]ofa table results/smollm2 --against ln-tuning:lr=3e-3[/]")
def table(
    folder: Annotated[Path, typer.Argument(help="Where compare wrote cells*.jsonl.")],
    against: Annotated[
        str | None,
        typer.Option(help="The method that the others are paired with; default: ln-tuning, else the first."),
    ] = None,
) -> None:
    """Recompute every table, the CSV and the plots of a comparison from its cells."""
    with _plain_errors():
        from ofa.commands.compare import show
        from ofa.compare.cells import read_cells

        rows = read_cells(folder)
        if not rows:
            raise ValueError(f"{folder} holds no cells*.jsonl with finished cells")
        show(rows, folder, console, against)


@app.command(epilog="Example: [bold]ofa probe --task sst2 --test-items 200 --out probe/sst2[/]")
def probe(
    task: Annotated[str, typer.Option(help="The name of a data set.")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder of NAME/train.jsonl and test.jsonl, and of a tasks.json with tasks of your own; "
            "default: the hub."
        ),
    ] = None,
    shots: Shots = None,
    test_items: Annotated[int, typer.Option(min=2, help="Measure on up to so many rows.")] = 200,
    n_probes: Annotated[int, typer.Option(min=1, help="Hutchinson probes per layer and text.")] = 8,
    seed: Seed = 0,
    model: Model = "smollm2-135m-instruct",
    out: Annotated[Path, typer.Option(help="Folder for the table, the plots and every number.")] = Path(
        "probe"
    ),
    dtype: ModelType = Dtype.auto,
) -> None:
    """Look into the layers: linear probes, sharpness and step ratio, raw and after each kind of tuning."""
    with _plain_errors():
        from ofa import layer_curves as probe_analysis
        from ofa import models
        from ofa.config import OFAConfig
        from ofa.data import datasets as catalog
        from ofa.data.draws import draw_shots
        from ofa.progress import progress_bar, tracker

        chosen, pool, test = catalog.load(task, data)
        per_class = shots or catalog.find(task, data).shots
        drawn, _ = draw_shots(pool, per_class, seed, chosen.label_words)
        lm, tokenizer = models.load(model, _dtype(dtype))
        config = OFAConfig(seed=seed)
        with progress_bar() as bar:
            curves = probe_analysis.analyse(
                lm, tokenizer, chosen, drawn, test[:test_items], config, n_probes, tracker(bar, "measuring")
            )
        source = models.source_of(lm)
        n_test = min(test_items, len(test))
        title = f"{task}, {per_class} shots per class, seed {seed}, {n_test} texts, {source.name}"
        written = probe_analysis.write(curves, title, out)
    console.print(probe_analysis.summary(curves, title))
    console.print(f"written: {', '.join(map(str, written))}", highlight=False, soft_wrap=True)


@app.command(epilog="Example: [bold]OFA_BACKEND=triton ofa info[/]")
def info() -> None:
    """Show versions, the machine, which backend serves what, and what is missing and why."""
    with _plain_errors():
        from ofa.commands.info import show_info

        show_info(console)
