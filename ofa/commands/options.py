"""Options that commands have in common, and those whose default is a method's."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from typer.models import OptionInfo

from ofa.config import DEFAULT_METHOD, LABELS, LN_TUNING, METHODS, OFA, VOCABULARY
from ofa.data.files import SUFFIXES, Format

FILES = f"A file in {', '.join(SUFFIXES)}, or any with --format"


class Dtype(str, Enum):
    """Number types a model can be loaded in."""

    auto = "auto"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


class Method(str, Enum):
    """What `METHODS` are called."""

    ln_tuning = LN_TUNING
    ofa = OFA


class LossOver(str, Enum):
    """What the cross-entropy may be over."""

    vocabulary = VOCABULARY
    labels = LABELS


class Select(str, Enum):
    """How settings are chosen."""

    cv = "cv"


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


def of_method(what: str, setting: str) -> OptionInfo:
    """An option whose default is the method's, which its help tells."""
    values = {name: getattr(config, setting) for name, config in METHODS.items()}
    default = f"{values[DEFAULT_METHOD]}"
    if len(set(values.values())) > 1:
        default = ", ".join(f"{value} with {name}" for name, value in values.items())
    return typer.Option(help=f"{what}; default: {default}.")
