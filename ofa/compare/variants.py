"""Methods by name, plain or with options of their own: `lora`, `lora:lr=3e-3+r=4`."""

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from typing import Any, cast

from ofa.ablation import Ablation
from ofa.compare.methods import METHODS, Method, Setting
from ofa.compare.methods.norm_tuning import NormTuning

# a field's type, and what reads its text
READERS: dict[object, Callable[[str], Any]] = {float: float, int: int, int | None: int}
ABLATED = {item.name: {**READERS, str: str}[item.type] for item in fields(Ablation)}


def _options(method: Method) -> Any:
    """The frozen dataclass of a method's options; None for a method without."""
    return getattr(method, "options", None)


def options_of(method: Method) -> dict[str, Callable[[str], Any]]:
    """The names of a method's options, each with what reads its text; none for a method without.

    They are its numbers, what its loss is over, and where it trains norms by the formulas those of
    `Ablation` too.
    """
    options = _options(method)
    if options is None:
        return {}
    decided = {item.name for item in fields(Setting)}
    items = (item for item in fields(options) if item.name not in decided)
    readers = {**READERS, "loss_over": str}
    found = {item.name: readers[key] for item in items for key in (item.type, item.name) if key in readers}
    if isinstance(method, NormTuning) and method.options.terms == "formulas":
        found |= ABLATED
    return found


def method_of(text: str) -> Method:
    """A method of `METHODS`, with the options that follow its name.

    Args:
        text: `NAME` or `NAME:OPTION=VALUE`, more options joined by `+`, in any order.

    Returns:
        The method. Its name lists the options in the order of the method's own fields, and each number in its
        shortest form, so equal settings have one name: `ofa:lr=3e-3+lambda_sharp=.1` is named
        `ofa:lambda_sharp=0.1+lr=0.003`. An option that is given stays in the name also where its value is the
        default.

    Raises:
        ValueError: an unknown method or option, an option given twice, or a value that is missing, no number,
            or refused by the method.
    """
    name, colon, listed = (part.strip() for part in text.partition(":"))
    if name not in METHODS:
        hint = "; join the options of a method by +, as in ofa:lr=3e-3+lambda_sharp=0.1" * ("=" in name)
        raise ValueError(f"unknown method {name!r}; known are {', '.join(METHODS)}{hint}")
    method = METHODS[name]
    if not colon:
        return method
    try:
        readers = options_of(method)
        values = _read(listed, readers)
        options = _changed(_options(method), values)
    except ValueError as error:
        raise ValueError(f"{text}: {error}") from None
    given = "+".join(f"{option}={_shortest(values[option])}" for option in readers if option in values)
    # a method that has options is a dataclass, see `Method`
    return replace(cast(Any, method), name=f"{name}:{given}", options=options)


def one_of(methods: Sequence[str], text: str) -> str:
    """The one of the finished methods that a text names, as it is there or as `method_of` reads it.

    Raises:
        ValueError: none of them.
    """
    name = text
    with suppress(ValueError):  # the finished cells may be of a method that is not known here
        name = method_of(text).name
    if name not in methods:
        raise ValueError(f"no cell is of {text!r}; there are {', '.join(methods)}")
    return name


def _changed(options: Any, values: dict[str, Any]) -> Any:
    """The options with these values."""
    ablated = {name: value for name, value in values.items() if name in ABLATED}
    values = {name: value for name, value in values.items() if name not in ABLATED}
    if ablated:
        values["ablation"] = replace(options.ablation, **ablated)
    return replace(options, **values)


def _read(listed: str, readers: dict[str, Callable[[str], Any]]) -> dict[str, Any]:
    if not readers:
        raise ValueError("this method has no options; leave out the colon and what follows")
    known, values = f"known options are {', '.join(readers)}", {}
    # the + of 1e+3 joins nothing
    for part in re.split(r"\+(?!\d)", listed):
        option, _, value = (word.strip() for word in part.partition("="))
        if option not in readers:
            raise ValueError(f"unknown option {option!r}; write OPTION=VALUE, several joined by +; {known}")
        if option in values:
            raise ValueError(f"{option} is given twice; leave one out")
        try:
            # -0.0 would be a second name of 0.0
            values[option] = readers[option](value) or readers[option]("0")
        except ValueError:
            wanted = "an integer" if readers[option] is int else "a number"  # any text reads as a choice
            raise ValueError(f"{option} must be {wanted}, got {value!r}; write {option}=NUMBER") from None
    return values


def _shortest(value: float | str) -> str:
    return value if isinstance(value, str) else repr(value).removesuffix(".0").replace("e+", "e")
