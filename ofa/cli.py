"""The command line: ofa demo | adapt | predict | export | compare | table | probe | info."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import ofa
from ofa.commands.locks import check_folder, only_run
from ofa.commands.options import (
    FILES,
    Adapter,
    Dtype,
    Encoding,
    FileFormat,
    LabelColumn,
    LabelWords,
    LossOver,
    Method,
    Model,
    ModelType,
    MovedModel,
    Seed,
    Select,
    Shots,
    SkipEmpty,
    TextColumn,
    of_method,
)
from ofa.config import DEFAULT_METHOD, DEFAULT_MODEL
from ofa.data.files import SUFFIXES
from ofa.data.rows import Reading
from ofa.interrupts import stop_in_order

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    help="Adapt a frozen language model to a few labelled texts by training its norm weights only.",
    pretty_exceptions_enable=False,
)
console = Console()


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
def _plain_errors() -> Iterator[None]:
    """What a user did or lacks ends in one line, not in a traceback.

    What a command needs is imported before it, while Ctrl-C still ends the process at once.
    """
    from ofa.download import SourceError

    stop_in_order()

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
    model: Model = DEFAULT_MODEL,
) -> None:
    """Get a model and 4,200 tweets, learn from 5 per class, and compare four methods on 500 others."""
    from ofa.commands.demo import run_demo

    with _plain_errors(), only_run(out):
        run_demo(out, model)
    _say_how_to_use(out)


@app.command(
    epilog="Example: [bold]ofa adapt reviews.csv --template 'Review: {text}\\nLabel:' --out my-adapter[/]; "
    "with settings chosen for these shots: [bold]ofa adapt reviews.csv --select cv --members 5[/]"
)
def adapt(
    data: Annotated[str, typer.Argument(help=f"{FILES}, of text,label; or a datasets name.")],
    out: Annotated[Path, typer.Option(help="Folder for the adapter.")] = Path("adapters/adapter"),
    model: Model = DEFAULT_MODEL,
    template: Annotated[
        str, typer.Option(help="Holds {text} once and ends before the label; \\n is a new line.")
    ] = "Text: {text}\\nLabel:",
    label_words: LabelWords = "",
    shots: Annotated[int, typer.Option(min=1, help="Examples per class to learn from.")] = 5,
    test: Annotated[
        str, typer.Option(help="Test on up to so many other rows, classes balanced; all: on every one.")
    ] = "500",
    method: Annotated[
        Method, typer.Option(help="What is minimised: cross-entropy, in ofa with J and H besides.")
    ] = Method(DEFAULT_METHOD),
    lambda_step: Annotated[float | None, of_method("Weight of the step ratio J", "lambda_step")] = None,
    lambda_sharp: Annotated[float | None, of_method("Weight of the sharpness H", "lambda_sharp")] = None,
    n_probes: Annotated[int | None, of_method("Hutchinson probes per layer and example", "n_probes")] = None,
    lr: Annotated[float | None, of_method("Peak learning rate", "lr")] = None,
    epochs: Annotated[int | None, of_method("Passes over the shots", "epochs")] = None,
    batch_size: Annotated[int | None, of_method("Examples per step", "batch_size")] = None,
    loss_over: Annotated[
        LossOver | None, of_method("What the label word is told from in training", "loss_over")
    ] = None,
    seed: Seed = 0,
    select: Annotated[
        Select | None,
        typer.Option(help="cv: try 1, 3 and 10 times --lr, with both weights and without, on the shots."),
    ] = None,
    members: Annotated[int, typer.Option(min=1, help="Average so many trainings in one adapter.")] = 1,
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
    from ofa.commands import adapt as command

    with _plain_errors(), only_run(out):
        options = command.Adaptation(
            data=data,
            reading=Reading(text_column, label_column, format, encoding, skip_empty),
            label_words=_split(label_words),
            template=template.replace("\\n", "\n"),
            shots=shots,
            test=test,
            model=model,
            dtype=_dtype(dtype),
            config=command.configured(
                method.value,
                lambda_step=lambda_step,
                lambda_sharp=lambda_sharp,
                n_probes=n_probes,
                lr=lr,
                epochs=epochs,
                batch_size=batch_size,
                loss_over=loss_over and loss_over.value,
                seed=seed,
            ),
            select=select and select.value,
            n_members=members,
        )
        command.run(options, out, console)
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
    from ofa.classifier import load
    from ofa.commands import predict as command

    with _plain_errors():
        if out:
            command.check_output(out)
        reading = Reading(text_column, format=format, encoding=encoding, skip_empty=skip_empty)
        chosen = command.texts_of(texts or (), file, reading)
        command.show(command.label(load(adapter, model), chosen, console), out, console)


@app.command(epilog="Example: [bold]ofa export adapters/reviews models/reviews[/]")
def export(
    adapter: Adapter,
    out: Annotated[Path, typer.Argument(help="Folder for the model and its tokenizer.")],
    model: MovedModel = None,
) -> None:
    """Write an adapted model as a plain one that servers load without an adapter."""
    from ofa.classifier import load

    with _plain_errors():
        check_folder(out)
        classifier = load(adapter, model)
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
            help="Comma-separated; a wrong name lists them. Options follow a colon, joined by +: "
            "ofa:lr=3e-3+lambda_sharp=0.1; a wrong one lists them. all: every method without options that "
            "can be run here; setfit needs its package. @FILE: those of a text file, one a line; # begins a "
            "comment."
        ),
    ] = "all",
    seeds: Annotated[str, typer.Option(help="How many draws of the shots, or which: 100-102.")] = "5",
    shots: Shots = None,
    protocol: Annotated[
        str,
        typer.Option(help="A: bare prompts. B: the shots precede them; in training, the others. A,B: both."),
    ] = "A",
    model: Model = DEFAULT_MODEL,
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
    from ofa.commands import compare as command

    with _plain_errors():
        comparison = command.Comparison(
            tasks=_split(tasks),
            methods=_split(methods),
            protocols=_split(protocol),
            seeds=command.draws(seeds),
            out=out,
            shots=shots,
            test_items=test_items,
            max_steps=max_steps,
            model=model,
            data=data,
            template=template.replace("\\n", "\n"),
            dtype=_dtype(dtype),
            whole_words=whole_words,
            reading=Reading(text_column, label_column, format, encoding, skip_empty),
            label_words=_split(label_words),
        )
        command.run(comparison, console)


@app.command(epilog="Example: [bold]ofa table results/smollm2 --against ln-tuning:lr=3e-3[/]")
def table(
    folder: Annotated[Path, typer.Argument(help="Where compare wrote cells*.jsonl.")],
    against: Annotated[
        str | None,
        typer.Option(help="The method that the others are paired with; default: ln-tuning, else the first."),
    ] = None,
) -> None:
    """Recompute every table, the CSV and the plots of a comparison from its cells."""
    from ofa.commands.compare import show
    from ofa.compare.cells import read_cells

    with _plain_errors():
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
    model: Model = DEFAULT_MODEL,
    out: Annotated[Path, typer.Option(help="Folder for the table, the plots and every number.")] = Path(
        "probe"
    ),
    dtype: ModelType = Dtype.auto,
) -> None:
    """Look into the layers: linear probes, sharpness and step ratio, raw and after each kind of tuning."""
    from ofa.commands import probe as command

    with _plain_errors():
        options = command.Probing(task, data, shots, test_items, n_probes, seed, model, _dtype(dtype))
        command.run(options, out, console)


@app.command(epilog="Example: [bold]OFA_BACKEND=triton ofa info[/]")
def info() -> None:
    """Show versions, the machine, which backend serves what, and what is missing and why."""
    from ofa.commands.info import show_info

    with _plain_errors():
        show_info(console)
