"""The comparison as pictures."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ofa.compare.statistics import in_set
from ofa.report import folded

# of an axis of accuracies: less would make noise look like a ranking
MIN_SPAN = 0.05
# seconds: where a method that learns nothing stands on a logarithmic axis
NO_TRAINING = 0.1
FONT_SIZE = 8  # of names
BESIDE_POINT, IN_LEGEND = 12, 40  # characters of a name in a line


def _mean(rows: Sequence[dict], field: str) -> float:
    return statistics.mean(row[field] for row in rows)


def _seconds_fit(rows: Sequence[dict]) -> float:
    """The mean time of the trainings that ran alone; of a method without any, the mean share of a set's."""
    alone = [row for row in rows if not in_set(row)]
    return max(_mean(alone or rows, "seconds_fit"), NO_TRAINING)


def _of_training(rows: Sequence[dict]) -> str:
    return "training, s" + " (in a set: a share of its time)" * any(map(in_set, rows))


def _columns(labels: Sequence[str], inches: float) -> int:
    """Of a legend: up to six, as many as fit beside each other."""
    longest = max(len(line) for label in labels for line in label.split("\n"))
    # a letter is 0.55 of its height wide; patch and gaps take three quarters of an inch
    return max(1, min(6, int(inches / (0.55 * FONT_SIZE / 72 * longest + 0.75))))


def plot_comparison(rows: Sequence[dict], path: Path) -> None:
    """Accuracy per task with error bars over seeds; accuracy against training and inference time.

    Points have the names of their methods beside them, or where a name is long, numbers that the legend
    explains.

    Args:
        rows: finished cells of one protocol.
        path: a .png or .svg file.
    """
    methods, tasks = (list(dict.fromkeys(row[name] for row in rows)) for name in ("method", "task"))
    names = {method: method for method in methods}  # beside points
    labels = {method: folded(method, IN_LEGEND) for method in methods}
    if max(map(len, methods)) > BESIDE_POINT:
        names = {method: f"{i}" for i, method in enumerate(methods, 1)}
        labels = {method: f"{names[method]}  {label}" for method, label in labels.items()}
    colors = _colors(methods)
    figure = Figure(figsize=(6 + 1.4 * len(tasks) + 8, 5), layout="constrained")
    bars, fit, evaluate = figure.subplots(1, 3, width_ratios=[2 + len(tasks), 3, 3])
    width = 0.8 / len(methods)
    points = {fit: {}, evaluate: {}}  # (seconds, accuracy): its methods
    for i, method in enumerate(methods):
        own = [row for row in rows if row["method"] == method]
        for j, task in enumerate(tasks):
            values = [row["accuracy"] for row in own if row["task"] == task]
            if values:
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                label = labels[method] if j == tasks.index(own[0]["task"]) else None
                place = j + (i - (len(methods) - 1) / 2) * width
                bars.bar(
                    place, statistics.mean(values), width, yerr=spread, color=colors[method], label=label
                )
        seconds = _seconds_fit(own), _mean(own, "seconds_eval") / own[0]["n_test"]
        for axis, x in zip(points, seconds, strict=True):
            points[axis].setdefault((x, _mean(own, "accuracy")), []).append(method)
    bars.set_xticks(range(len(tasks)), tasks)
    bars.set_ylabel("accuracy")
    columns = _columns(list(labels.values()), figure.get_figwidth())
    title = f"protocol {rows[0]['protocol']}, {rows[0]['model']}"
    figure.legend(title=title, fontsize=FONT_SIZE, ncols=columns, loc="outside upper center")
    fit.set_xscale("log")
    fit.margins(x=0.25)  # room for names, here and at the right of the other
    for axis, name in ((fit, _of_training(rows)), (evaluate, "inference, s per text")):
        for point, equal in points[axis].items():
            axis.scatter(*point, color=colors[equal[0]])
            text = "\n".join(names[method] for method in equal)
            axis.annotate(text, point, fontsize=FONT_SIZE, xytext=(4, 3), textcoords="offset points")
        axis.set_xlabel(name)
        axis.set_ylabel("mean accuracy")
        low, high = axis.get_ylim()
        if high - low < MIN_SPAN:
            axis.set_ylim((low + high - MIN_SPAN) / 2, (low + high + MIN_SPAN) / 2)
    evaluate.set_xlim(0, 1.4 * max(x for x, _ in points[evaluate]))
    figure.savefig(path, dpi=150)


def plot_accuracy_time(panels: Mapping[str, Sequence[dict]], path: Path) -> None:
    """Accuracy against the seconds of training, a panel a comparison, a point a method.

    A point is the mean over the cells (task and seed) that every method of its panel has finished, so that
    the methods of one panel are on equal terms. Panels share their axes and the colour of a method.

    Args:
        panels: a panel's title and its finished cells, of one protocol.
        path: a .png or .svg file.

    Raises:
        ValueError: the methods of a panel have no cell in common.
    """
    common = {title: _common(rows) for title, rows in panels.items()}
    empty = [title for title, rows in common.items() if not rows]
    if empty:
        raise ValueError(f"no task and seed that every method has finished: {', '.join(empty)}")
    colors = _colors(dict.fromkeys(row["method"] for rows in common.values() for row in rows))
    figure = Figure(figsize=(5 * len(panels), 4.2), layout="constrained")
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for axis, (title, rows) in zip(axes, common.items(), strict=True):
        for point, methods in _points(rows).items():
            axis.scatter(*point, color=colors[methods[0]])
        counts = [
            (len({row[field] for row in rows}), name) for field, name in (("task", "task"), ("seed", "draw"))
        ]
        means = " x ".join(f"{count} {name}{'s' * (count > 1)}" for count, name in counts)
        axis.set_title(f"{title}\nmeans of {means}", fontsize=FONT_SIZE + 2)
        axis.set_xlabel(f"{_of_training(rows)} (left edge: none)")
    axes[0].set_xscale("log")
    low, high = axes[0].get_xlim()
    axes[0].set_xlim(low, 30 * high)  # room for names at the right
    axes[0].set_ylabel("mean accuracy")
    figure.draw_without_rendering()  # names are set by the final axes
    for axis, rows in zip(axes, common.values(), strict=True):
        _name_points(axis, _points(rows))
    figure.savefig(path, dpi=150)


def _colors(methods: Iterable[str]) -> dict[str, tuple]:
    palette = matplotlib.colormaps["tab20"]
    return {method: palette(i % palette.N) for i, method in enumerate(methods)}


def _common(rows: Sequence[dict]) -> list[dict]:
    """The cells whose task and seed every method has finished."""
    finished = {}
    for row in rows:
        finished.setdefault(row["method"], set()).add((row["task"], row["seed"]))
    shared = set.intersection(*finished.values()) if finished else set()
    return [row for row in rows if (row["task"], row["seed"]) in shared]


def _points(rows: Sequence[dict]) -> dict[tuple[float, float], list[str]]:
    """(seconds of training, accuracy): the methods there."""
    points = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        point = _seconds_fit(own), _mean(own, "accuracy")
        points.setdefault(point, []).append(method)
    return points


def _name_points(axis: Axes, points: Mapping[tuple[float, float], Sequence[str]]) -> None:
    """Names at the right of their points, from the top down, each below the ones that it would overlap."""
    per_point = axis.figure.dpi / 72
    placed = []  # left end, right end and height of a name, in points
    for point, methods in sorted(points.items(), key=lambda item: -item[0][1]):
        text = ", ".join(methods)
        left, height = axis.transData.transform(point) / per_point
        right = left + 24 + 0.6 * (FONT_SIZE + 1) * len(text)
        beside = [y for start, end, y in placed if start < right and left < end]
        y = min([height, *(y - 1.5 * FONT_SIZE for y in beside)])
        placed.append((left, right, y))
        axis.annotate(
            text,
            point,
            xytext=(24, y - height),
            textcoords="offset points",
            va="center",
            fontsize=FONT_SIZE + 1,
            arrowprops={"arrowstyle": "-", "color": "0.7", "shrinkA": 1, "shrinkB": 3},
        )
