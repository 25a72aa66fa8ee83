"""The tables of a search: settings of the same draws against each other, and settings by what they vary."""

import math
from collections.abc import Sequence

from ofa.compare.statistics import Paired
from ofa.compare.tables import mean_of, seconds_fit
from ofa.report import Section
from tools.ablation.results import Result

# a field: its name and digits
MEASURES = {
    "log_loss": ("log-loss", 3),
    "calibration_error": ("calibration", 3),
    "step_ratio": ("J", 2),
    "sharpness": ("H", 2),
}
NAMES = tuple(name for name, _ in MEASURES.values())


def draws_text(draws: Sequence[int]) -> str:
    """How many draws, and which."""
    return f"{len(draws)} draw{'s' * (len(draws) > 1)} ({', '.join(map(str, draws))})"


def _points(pair: Paired, n_draws: int) -> list[str]:
    """The difference and its errors: by task, and where there are several draws by draw and by cell."""
    errors = [pair.by_task, *([pair.by_seed, pair.by_cell] if n_draws > 1 else [])]
    shown = ("" if math.isnan(error) else f"± {100 * error:.2f}" for error in errors)
    return [f"{100 * pair.difference:+.2f}", *shown]


def _measured(rows: Sequence[dict]) -> list[str]:
    return [mean_of(rows, field, digits) for field, (_, digits) in MEASURES.items()]


def round_table(found: Sequence[Result], draws: tuple[int, ...]) -> Section:
    """The settings of these draws, the best first and those with fewer cells below; at the top the reference.

    Args:
        found: from `results`.
        draws: of the round.
    """
    reference = found[0].at(draws)
    ranked = sorted(
        ((result, pair) for result in found[1:] if result.draws == draws and (pair := result.against())),
        key=lambda item: (-item[1].n, -item[1].difference),
    )
    errors = ["± by task", "± by draw", "± by cell"] if len(draws) > 1 else ["± by task"]
    lines = [(f"{code(reference)}, the reference", reference, [""] * (1 + len(errors)))]
    lines += [(code(result), result, _points(pair, len(draws))) for result, pair in ranked]
    body = [
        (name, result.counted, mean_of(result.rows, "accuracy"), *points, *_measured(result.rows),
         seconds_fit(result.rows))
        for name, result, points in lines
    ]  # fmt: skip
    header = ("setting", "cells", "accuracy", "difference", *errors, *NAMES, "training, s")
    return Section(draws_text(draws), header, body)


def code(result: Result) -> str:
    """The setting's name, as it is typed."""
    return f"`{result.variation.name}`"


def group_table(title: str, members: Sequence[Result]) -> Section:
    """A group's settings in the order of their values; everything minus the reference's on the same cells."""
    body = []
    for result in members:
        if pair := result.against():
            cells = result.counted, f"{len(result.draws)}"
            changes = (_change(result, field) for field in MEASURES)
            body.append((f"`{result.variation.label}`", *cells, *_points(pair, 1), *changes))
    return Section(title, ("differs in", "cells", "draws", "accuracy", "± by task", *NAMES), body)


def _change(result: Result, field: str) -> str:
    pair, (_, digits) = result.against(field), MEASURES[field]
    return f"{pair.difference:+.{digits}f}" if pair else ""
