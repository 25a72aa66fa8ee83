"""λ against what it changes: accuracy, J and H."""

import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from tools.ablation.results import Result

LAMBDAS = {"lambda_sharp": "$λ_H$", "lambda_step": "$λ_J$"}
# a field: its axis, and what a difference is multiplied by
PANELS = {"accuracy": ("Δ accuracy, points", 100), "step_ratio": ("Δ J", 1), "sharpness": ("Δ H", 1)}
CAPTION = (
    "What λ changes: Δ is the difference to the reference on the same tasks and draws, with one standard "
    "error by task. A line joins settings that differ in this λ only; those of two values are left out where "
    "others have more. Open points have fewer cells than others of the picture."
)
MARKERS = "osD^vPX<>"
FONT_SIZE = 8
# points between the lines' error bars, which would hide each other
APART = 2.5
# largest over median size of a panel's values from which its axis is symmetric-logarithmic too
WIDE = 20


def families(found: Sequence[Result], option: str) -> dict[str, list[Result]]:
    """Settings that differ in this λ only, in its order, under what else differs from the reference.

    Of several names of one setting the one of most cells is there. Families of two values of λ are there only
    if none has more.
    """
    by_others: dict[tuple, dict[float, Result]] = {}
    for result in sorted(found, key=lambda result: len(result.rows)):
        variation = result.variation
        if result.rows and variation.differing is not None and option in variation.options:
            by_others.setdefault(variation.others(option), {})[variation.options[option]] = result
    longest = max(map(len, by_others.values()), default=0)
    named = {}
    for members in by_others.values():
        if len(members) >= (3 if longest > 2 else 2):
            ordered = [members[value] for value in sorted(members)]
            named[ordered[0].variation.without(option)] = ordered
    return {name or "as the reference": named[name] for name in sorted(named)}


def plot_lambdas(found: Sequence[Result], path: Path) -> bool:
    """Draw every family of settings that differ in one λ, a column a λ.

    Args:
        found: the settings, the reference among them.
        path: a .png or .svg file.

    Returns:
        Whether there was something to draw; if not, nothing is written.
    """
    columns = {option: drawn for option in LAMBDAS if (drawn := families(found, option))}
    if not columns:
        return False
    shown = [result for drawn in columns.values() for members in drawn.values() for result in members]
    most = max(len(result.rows) for result in shown)
    looks = _looks(label for drawn in columns.values() for label in drawn)
    legend = 0.25 * max(map(len, columns.values()))  # inches
    figure = Figure(figsize=(6.5 * len(columns), 8.5 + legend), layout="constrained")
    heights = [*[8.5 / len(PANELS)] * len(PANELS), legend]
    axes = figure.subplots(len(heights), len(columns), squeeze=False, height_ratios=heights, sharex="col")
    for column, (option, drawn) in enumerate(columns.items()):
        *panels, below = axes[:, column]
        for axis, field in zip(panels, PANELS, strict=True):
            _panel(axis, field, option, [(looks[label], members) for label, members in drawn.items()], most)
        panels[-1].set_xlabel(LAMBDAS[option])
        panels[-1].xaxis.set_tick_params(labelbottom=True)
        handles, labels = panels[0].get_legend_handles_labels()
        below.axis("off")
        below.legend(handles, labels, loc="upper left", fontsize=FONT_SIZE, frameon=False)
    figure.savefig(path, dpi=150)
    return True


def _looks(labels: Iterable[str]) -> dict[str, dict]:
    """A family's colour and marker, the same in every panel."""
    palette = matplotlib.colormaps["tab10"]
    return {
        label: {"label": label, "color": palette(i % palette.N), "marker": MARKERS[i % len(MARKERS)]}
        for i, label in enumerate(dict.fromkeys(labels))
    }


def _panel(axis: Axes, field: str, option: str, lines: list[tuple[dict, list[Result]]], most: int) -> None:
    """One column's lines in one field."""
    name, scale = PANELS[field]
    sizes = []
    for i, (look, members) in enumerate(lines):
        aside = ScaledTranslation(APART * (i - (len(lines) - 1) / 2) / 72, 0, axis.figure.dpi_scale_trans)
        style = {**look, "markersize": 5, "transform": axis.transData + aside}
        points = [(result, pair) for result in members if (pair := result.against(field))]
        x = [result.variation.options[option] for result, _ in points]
        y = [scale * pair.difference for _, pair in points]
        errors = [0 if math.isnan(pair.by_task) else scale * pair.by_task for _, pair in points]
        axis.errorbar(x, y, errors, linewidth=1, capsize=2, **style)
        few = [j for j, (result, _) in enumerate(points) if len(result.rows) < most]
        hollow = {"label": None, "linestyle": "none", "markerfacecolor": "white", "zorder": 3}
        axis.plot([x[j] for j in few], [y[j] for j in few], **{**style, **hollow})
        # what is drawn aside of its place does not count for the limits by itself
        for sign in (-1, 1):
            axis.update_datalim([(at, v + sign * e) for at, v, e in zip(x, y, errors, strict=True)])
        sizes += [abs(value) for value in y if value]
    axis.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    axis.set_ylabel(name)
    axis.margins(y=0.1)
    if sizes and max(sizes) > WIDE * statistics.median(sizes):
        axis.set_yscale("symlog", linthresh=_decade(statistics.median(sizes)))
    values = {abs(result.variation.options[option]) for _, members in lines for result in members}
    axis.set_xscale("symlog", linthresh=_decade(min(values - {0})), linscale=0.5)
    axis.grid(color="0.92")
    axis.tick_params(labelsize=FONT_SIZE)


def _decade(value: float) -> float:
    """The power of ten at or below it."""
    return 10.0 ** math.floor(math.log10(value))
