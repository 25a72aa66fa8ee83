"""The command line: ofa demo | adapt | predict | export | compare | table | probe | info."""

import csv
import importlib.metadata
import os
import platform
import sys
import warnings
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    help="Adapt a frozen language model to a few labelled texts by training its norm weights only.",
    pretty_exceptions_enable=False,
)
console = Console()
PACKAGES = ("torch", "triton", "transformers", "peft", "accelerate", "datasets", "safetensors", "numpy")


class Dtype(str, Enum):
    """Number types a model can be loaded in."""

    auto = "auto"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


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


def _check_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; give a folder")


def _dtype(choice: Dtype):
    import torch

    return None if choice is Dtype.auto else getattr(torch, choice.value)


@app.command(epilog="Example: [bold]ofa demo --out adapters/tweets[/]")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the adapter and results.jsonl.")] = Path(
        "adapters/tweets"
    ),
    model: Annotated[str, typer.Option(help="A name, a folder or a hub id.")] = "smollm2-135m-instruct",
) -> None:
    """Get a model and 4,200 tweets, learn from 5 per class, and compare four methods on 500 others."""
    with _plain_errors():
        from ofa.demo import run_demo

        run_demo(out, model)
    _say_how_to_use(out)


@app.command(
    epilog="Example: [bold]ofa adapt reviews.csv --template 'Review: {text}\\nLabel:' --out my-adapter[/]"
)
def adapt(
    data: Annotated[
        str, typer.Argument(help="A .jsonl, .csv or .tsv file of text,label, or a datasets name.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the adapter.")] = Path("adapters/adapter"),
    model: Annotated[str, typer.Option(help="A name, a folder or a hub id.")] = "smollm2-135m-instruct",
    template: Annotated[
        str, typer.Option(help="Holds {text} once and ends before the label; \\n is a new line.")
    ] = "Text: {text}\\nLabel:",
    label_words: Annotated[
        str,
        typer.Option(
            help="Comma-separated, in label order; needed where labels are numbers. neg=bad renames."
        ),
    ] = "",
    shots: Annotated[int, typer.Option(min=1, help="Examples per class to learn from.")] = 5,
    test: Annotated[
        int, typer.Option(min=0, help="Test on up to so many other rows, classes balanced.")
    ] = 200,
    lambda_step: Annotated[float, typer.Option(help="Weight of the step ratio J.")] = 1e-2,
    lambda_sharp: Annotated[float, typer.Option(help="Weight of the sharpness H.")] = 1e-3,
    n_probes: Annotated[int, typer.Option(help="Hutchinson probes per layer and example.")] = 1,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    epochs: Annotated[int, typer.Option(help="Passes over the shots.")] = 30,
    batch_size: Annotated[int, typer.Option(help="Examples per step.")] = 5,
    seed: Annotated[int, typer.Option(help="Of the draw, the order and the probes.")] = 0,
    text_column: Annotated[str, typer.Option(help="Where the text is.")] = "text",
    label_column: Annotated[str, typer.Option(help="Where the label is.")] = "label",
    dtype: Annotated[Dtype, typer.Option(help="auto: the fastest type of this machine.")] = Dtype.auto,
) -> None:
    """Learn from a few rows of a labelled file and save the adapter; test it on the other rows.

    A run that was stopped or killed goes on where it was when the same command is given again.
    """
    with _plain_errors():
        from ofa.adapt import adapt_and_test
        from ofa.classifier import FewShotClassifier
        from ofa.fewshot.protocol import draw_shots, draw_test, number_labels, read_rows
        from ofa.objective import OFAConfig

        config = OFAConfig(
            lambda_step=lambda_step, lambda_sharp=lambda_sharp, n_probes=n_probes, lr=lr, epochs=epochs,
            batch_size=batch_size, seed=seed,
        )  # fmt: skip
        _check_folder(out)
        rows = read_rows(data, text_column, label_column)
        words = None
        if label_words:
            pairs = [word.strip().partition("=") for word in label_words.split(",")]
            renamed = {old: new or old for old, _, new in pairs}
            words = list(renamed.values())
            rows = [{**row, "label": renamed.get(str(row["label"]), row["label"])} for row in rows]
        rows, words = number_labels(rows, words)
        chosen, rest = draw_shots(rows, shots, seed, words)
        learnt = {shot["text"] for shot in chosen}
        rest = [row for row in rest if row["text"] not in learnt]
        held_out = draw_test(rest, test, seed, len(words))
        classifier = FewShotClassifier(
            model, words, template.replace("\\n", "\n"), config, dtype=_dtype(dtype)
        )
        adapt_and_test(classifier, chosen, held_out, out, console)
    _say_how_to_use(out)


@app.command(
    epilog='Example: [bold]ofa predict adapters/reviews "a fine film" --file more.csv --out labels.csv[/]'
)
def predict(
    adapter: Annotated[Path, typer.Argument(help="A folder that adapt or demo wrote.")],
    texts: Annotated[list[str] | None, typer.Argument(help="Texts to classify.")] = None,
    file: Annotated[Path | None, typer.Option(help="A .jsonl, .csv or .tsv file with a column text.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write text, label and probabilities as CSV.")] = None,
    model: Annotated[str | None, typer.Option(help="The base model, where it has moved.")] = None,
) -> None:
    """Label texts with an adapter, with the probability of each label."""
    with _plain_errors():
        import ofa
        from ofa.fewshot.protocol import read_texts

        if out and not out.parent.is_dir():
            raise ValueError(f"--out {out}: the folder {out.parent} does not exist")
        texts = [*(texts or ()), *(read_texts(file) if file else ())]
        if not texts:
            raise ValueError("nothing to classify: give texts, or a file with --file")
        classifier = ofa.load(adapter, model)
        scores = classifier.label_scores(texts)
    words = classifier.task_.label_words
    rows = [
        (text, words[label], *(f"{p:.4f}" for p in row))
        for text, label, row in zip(
            texts, scores.predictions.tolist(), scores.log_probs.exp().tolist(), strict=True
        )
    ]
    header = ("text", "label", *words)
    if out:
        with out.open("w", newline="", encoding="utf-8") as target:
            csv.writer(target).writerows([header, *rows])
    table = Table(*header)
    for row in rows:
        table.add_row(*map(_escape, row))
    console.print(table)
    if out:
        console.print(f"written to {out}")


@app.command(epilog="Example: [bold]ofa export adapters/reviews models/reviews[/]")
def export(
    adapter: Annotated[Path, typer.Argument(help="A folder that adapt or demo wrote.")],
    out: Annotated[Path, typer.Argument(help="Folder for the model and its tokenizer.")],
    model: Annotated[str | None, typer.Option(help="The base model, where it has moved.")] = None,
) -> None:
    """Write an adapted model as a plain one that servers load without an adapter."""
    with _plain_errors():
        import ofa

        _check_folder(out)
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
            help="Comma-separated names of data sets, or .jsonl, .csv and .tsv files of your own. all: those "
            "that tasks.json defines, else the nine built-in ones."
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
    shots: Annotated[
        int | None, typer.Option(min=1, help="Examples per class; default: 5, and 1 for dbpedia.")
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="A: test prompts stand alone. B: the shots precede them. A,B: both.")
    ] = "A",
    model: Annotated[str, typer.Option(help="A name, a folder or a hub id.")] = "smollm2-135m-instruct",
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
        bool, typer.Option("--whole-words", help="Score label words by all of their tokens, not the first.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for cells, tables and plots.")] = Path("comparison"),
    dtype: Annotated[Dtype, typer.Option(help="auto: the fastest type of this machine.")] = Dtype.auto,
) -> None:
    """Compare methods on tasks, paired by seed; what is finished is never run again.

    Every finished cell is one line of cells.jsonl in the folder --out; a run that was stopped goes on from
    there. On several devices: accelerate launch -m ofa compare … splits the cells.
    """
    with _plain_errors():
        from ofa.fewshot.comparison import Comparison, draws, run

        def split(names: str) -> list[str]:
            return [name.strip() for name in names.split(",") if name.strip()]

        run(
            Comparison(
                split(tasks), split(methods), split(protocol), draws(seeds), out, shots, test_items,
                max_steps, model, data, template.replace("\\n", "\n"), _dtype(dtype), whole_words,
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
        from ofa.fewshot.compare import read_cells
        from ofa.fewshot.comparison import show

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
    shots: Annotated[
        int | None, typer.Option(min=1, help="Examples per class; default: 5, and 1 for dbpedia.")
    ] = None,
    test_items: Annotated[int, typer.Option(min=2, help="Measure on up to so many rows.")] = 200,
    n_probes: Annotated[int, typer.Option(min=1, help="Hutchinson probes per layer and text.")] = 8,
    seed: Annotated[int, typer.Option(help="Of the draw, the order and the probes.")] = 0,
    model: Annotated[str, typer.Option(help="A name, a folder or a hub id.")] = "smollm2-135m-instruct",
    out: Annotated[Path, typer.Option(help="Folder for the table, the plots and every number.")] = Path(
        "probe"
    ),
    dtype: Annotated[Dtype, typer.Option(help="auto: the fastest type of this machine.")] = Dtype.auto,
) -> None:
    """Look into the layers: linear probes, sharpness and step ratio, raw and after each kind of tuning."""
    with _plain_errors():
        from ofa import models, probe_analysis
        from ofa.classifier import tracker
        from ofa.fewshot import catalog
        from ofa.fewshot.protocol import draw_shots
        from ofa.objective import OFAConfig
        from ofa.training import progress_bar

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
        import torch

        import ofa_kernels
        from ofa.download import cache_dir
        from ofa.families import FAMILIES
        from ofa.models import SMOLLM2_Q4, SOURCE_FILE, fast_dtype
        from ofa_kernels import native

        report = ofa_kernels.backend_report()
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
        device = "cuda" if torch.cuda.is_available() else "cpu"
        cached = (cache_dir() / SMOLLM2_Q4 / SOURCE_FILE).is_file()
        facts = {
            "ofa-kernels": _version("ofa-kernels"),
            "python": f"{platform.python_version()} ({sys.executable})",
            **{name: _version(name) for name in PACKAGES},
            "processor": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {platform.machine()}",
            "GPU": gpu,
            "CPU kernels": native.missing() or f"built, {native.description()}",
            "fast type": f"{fast_dtype(device)}".removeprefix("torch."),
            "model families": ", ".join(FAMILIES),
            "cache": f"{cache_dir()} ({SMOLLM2_Q4} {'is there' if cached else 'not yet downloaded'})",
        }
    table = Table(show_header=False)
    for name, value in facts.items():
        table.add_row(name, value)
    console.print(table)
    backends = Table("backend", "state", "operators")
    for row in report.by_backend():
        backends.add_row(*row)
    console.print(backends)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
