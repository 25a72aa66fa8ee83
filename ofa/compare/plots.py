"""The comparison as pictures."""

import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only; a display may be missing
import matplotlib.pyplot as plt

from ofa.report import folded

# of an axis of accuracies: less would make noise look like a ranking
MIN_SPAN = 0.05
FONT_SIZE = 8  # of names
BESIDE_POINT, IN_LEGEND = 12, 40  # characters of a name in a line


def _mean(rows: Sequence[dict], field: str) -> float:
    return statistics.mean(row[field] for row in rows)


def _columns(labels: Sequence[str], inches: float) -> int:
    """Of a legend: up to six, as many as fit beside each other."""
    longest = max(len(line) for label in labels for line in label.split("\n"))
    # a letter is 0.55 of its height wide; patch and gaps take three quarters of an inch
    return max(1, min(6, int(inches / (0.55 * FONT_SIZE / 72 * longest + 0.75))))


def plot_comparison(rows: Sequence[dict], path: Path) -> None:
    """Accuracy per task with error bars over seeds; accuracy against training and inference time.

    Points have their methods' names beside them, or where one of these is long their numbers in the legend.

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
    colors = {method: plt.cm.tab20(i % 20) for i, method in enumerate(methods)}
    figure, (bars, fit, evaluate) = plt.subplots(
        1, 3, figsize=(6 + 1.4 * len(tasks) + 8, 5), width_ratios=[2 + len(tasks), 3, 3], layout="constrained"
    )
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
        # a method that learns nothing stands at the left edge of a logarithmic axis
        seconds = max(_mean(own, "seconds_fit"), 0.1), _mean(own, "seconds_eval") / own[0]["n_test"]
        for axis, x in zip(points, seconds, strict=True):
            points[axis].setdefault((x, _mean(own, "accuracy")), []).append(method)
    bars.set_xticks(range(len(tasks)), tasks)
    bars.set_ylabel("accuracy")
    columns = _columns(list(labels.values()), figure.get_figwidth())
    title = f"protocol {rows[0]['protocol']}, {rows[0]['model']}"
    figure.legend(title=title, fontsize=FONT_SIZE, ncols=columns, loc="outside upper center")
    fit.set_xscale("log")
    fit.margins(x=0.25)  # room for names, here and at the right of the other
    for axis, name in ((fit, "training, s"), (evaluate, "inference, s per text")):
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
    plt.close(figure)
