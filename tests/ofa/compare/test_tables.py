import csv
import io
import math
import random
import statistics
import subprocess
import sys

import pytest
from matplotlib.text import Text
from rich.console import Console

from ofa.compare import plots
from ofa.compare.statistics import mean_ranks, paired
from ofa.compare.tables import accuracy_table, paired_table, probability_table, sections, write_csv
from ofa.report import folded


def row(method, task, seed, accuracy, protocol="A"):
    return {
        "task": task, "method": method, "protocol": protocol, "seed": seed, "shots": 5, "model": "m",
        "accuracy": accuracy, "n_test": 100, "seconds_fit": 2.0, "seconds_eval": 1.0, "n_trainable": 10,
    }  # fmt: skip


ROWS = [
    *(row("ln-tuning", "a", s, acc) for s, acc in enumerate((0.70, 0.80, 0.75))),
    *(row("ln-tuning", "b", s, acc) for s, acc in enumerate((0.50, 0.50, 0.50))),
    *(row("ofa", "a", s, acc) for s, acc in enumerate((0.72, 0.80, 0.79))),
    *(row("ofa", "b", s, acc) for s, acc in enumerate((0.52, 0.46, 0.50))),
]


def of(method):
    return [r for r in ROWS if r["method"] == method]


def test_paired_differences_are_clustered_by_seed_and_by_task():
    found = paired(of("ofa"), of("ln-tuning"))
    seeds, tasks = [0.02, -0.02, 0.02], [0.02, -0.02 / 3]
    assert found.difference == pytest.approx(statistics.mean(seeds))
    assert found.by_seed == pytest.approx(statistics.stdev(seeds) / math.sqrt(3))
    assert found.by_task == pytest.approx(statistics.stdev(tasks) / math.sqrt(2))
    assert (found.wins, found.losses, found.n) == (3, 1, 6)
    cells = [0.02, 0, 0.04, 0.02, -0.04, 0]
    assert found.by_cell == pytest.approx(statistics.stdev(cells) / math.sqrt(6))


def test_the_error_by_task_is_that_of_the_means_of_six_tasks():
    draw = random.Random(0)
    differences = {(task, seed): draw.gauss(0, 1) for task in "abcdef" for seed in range(3)}
    first = [row("ofa", *key, 1 + value) for key, value in differences.items()]
    found = paired(first, [row("ln-tuning", *key, 1) for key in differences])
    means = [statistics.mean(differences[task, seed] for seed in range(3)) for task in "abcdef"]
    assert found.by_task == pytest.approx(statistics.stdev(means) / math.sqrt(6))


def test_unequal_clusters_weigh_in_the_error_as_in_the_mean():
    """A cluster of k cells moves the mean by k/n of its mean's deviation."""
    values = {("a", 0): 3.0, ("a", 1): 5.0, ("a", 2): 4.0, ("b", 0): 1.0, ("c", 0): -1.0}
    first = [row("ofa", *key, value) for key, value in values.items()]
    found = paired(first, [row("ln-tuning", *key, 0.0) for key in values])
    shares = {"a": (3, 4.0), "b": (1, 1.0), "c": (1, -1.0)}
    moves = [size / 5 * (mean - found.difference) for size, mean in shares.values()]
    assert found.difference == pytest.approx(2.4) and sum(moves) == pytest.approx(0)
    assert found.by_task == pytest.approx(math.sqrt(3 / 2 * sum(move**2 for move in moves)))


def test_any_field_is_paired_on_the_cells_that_have_it():
    first = [{**r, "log_loss": 0.4} for r in of("ofa")]
    second = [{**r, "log_loss": 0.7} for r in of("ln-tuning")[1:]]
    found = paired(first, second, "log_loss")
    assert (found.n, found.losses) == (5, 5) and found.difference == pytest.approx(-0.3)
    assert paired(first, of("ln-tuning"), "log_loss") is None


def test_only_common_cells_are_paired():
    found = paired([row("ofa", "a", 0, 0.9), row("ofa", "c", 0, 0.1)], of("ln-tuning"))
    assert found.n == 1 and found.difference == pytest.approx(0.2) and math.isnan(found.by_seed)
    assert paired([row("ofa", "c", 0, 0.1)], of("ln-tuning")) is None


def test_ranks_share_ties():
    ranks = mean_ranks(ROWS)
    assert ranks == {"ln-tuning": pytest.approx((2 + 1.5 + 2 + 2 + 1 + 1.5) / 6), "ofa": pytest.approx(8 / 6)}


def test_protocols_are_never_mixed():
    rows = [*ROWS, *(row("icl", "a", s, 0.9, "B") for s in range(3))]
    titles = [section.title for section in sections(rows)]
    assert len(titles) == 3 and "protocol B" in titles[2]
    assert "icl" not in "".join(section.markdown() for section in sections(rows)[:2])


def test_tables_say_what_is_in_them():
    table = accuracy_table(ROWS, "A")
    assert table.header == ("method", "a", "b", "mean", "fit s", "eval s", "trained")
    assert table.rows[0] == ("ln-tuning", "0.750 ± 0.050", "0.500 ± 0.000", "0.625", "2.0", "1.0", "10")
    paired = paired_table(ROWS, "A", "ln-tuning").rows[0]
    assert paired[:5] == ("ofa", "+0.67", "± 1.33", "± 1.33", "3 / 2 / 1")
    incomplete = accuracy_table([*ROWS, row("lora", "a", 0, 0.6)], "A").rows[-1]
    assert incomplete[:4] == ("lora", "0.600", "", "")


def test_probabilities_are_told_of_the_lines_that_have_them():
    assert probability_table(ROWS, "A") is None, "lines of earlier versions"
    rows = [{**r, "calibration_error": 0.1} for r in ROWS]
    rows[0] |= {"log_loss": 0.3, "calibration_error": 0.4}
    rows[5] |= {"log_loss": 0.6}
    rows.append(row("icl", "a", 0, 0.5, "B") | {"log_loss": 9.0})
    table = probability_table([*rows, row("lora", "a", 0, 0.6)], "A")
    assert table.header == ("method", "cells", "log-loss, nats", "calibration error")
    assert table.rows == [("ln-tuning", "6", "0.450 (2 of 6 cells)", "0.150"), ("ofa", "6", "", "0.100")]
    titles = [section.title for section in sections(rows)]
    assert [title.split(",")[0] for title in titles] == [
        "accuracy", "probabilities", "against ln-tuning (mean rank 1.7)", "accuracy", "probabilities",
    ]  # fmt: skip


@pytest.mark.parametrize("width", [30, 60, 200])
def test_a_narrow_screen_loses_no_digit(width):
    console = Console(width=width, file=io.StringIO())
    table = accuracy_table(ROWS, "A")
    console.print(table)
    printed = console.file.getvalue().splitlines()
    assert max(map(len, printed)) <= width
    words = [cell.strip() for line in printed for cell in line.replace("┃", "│").split("│")]
    assert {*table.header, *(cell for row in table.rows for cell in row)} <= set(words)
    assert words.count("ofa") == {30: 5, 60: 2, 200: 1}[width]


LONG = "ofa:lambda_step=0.03+lambda_sharp=0.1+lr=0.003+epochs=60"


@pytest.mark.parametrize(
    ("width", "lines"),
    [
        (100, [LONG]),
        (40, ["ofa:lambda_step=0.03+lambda_sharp=0.1+", "lr=0.003+epochs=60"]),
        (5, ["ofa:", "lambda_step=0.03+", "lambda_sharp=0.1+", "lr=0.003+", "epochs=60"]),
    ],
)
def test_names_are_broken_before_options_only(width, lines):
    assert folded(LONG, width).split("\n") == lines
    assert folded("CE + J", 2) == "CE + J"


@pytest.mark.parametrize(
    ("width", "lines"),
    [
        (40, ["ofa:", "lambda_step=0.03+", "lambda_sharp=0.1+", "lr=0.003+", "epochs=60"]),
        (80, ["ofa:lambda_step=0.03+", "lambda_sharp=0.1+lr=0.003+epochs=60"]),
        (200, [LONG]),
    ],
)
def test_long_names_take_no_room_from_numbers(width, lines):
    table = accuracy_table([*ROWS, row(LONG, "a", 0, 0.123)], "A")
    console = Console(width=width, file=io.StringIO())
    console.print(table)
    printed = console.file.getvalue().splitlines()
    cells = [[cell.strip() for cell in line.replace("┃", "│").split("│")[1:-1]] for line in printed]
    assert max(map(len, printed)) <= width
    assert {"0.750 ± 0.050", "0.123", *table.header} <= {cell for line in cells for cell in line}
    firsts = [line[0] for line in cells if line]
    start = firsts.index("ofa") + 1
    assert firsts[start : start + len(lines)] == lines


def test_the_reference_is_the_one_asked_for_else_ln_tuning_else_the_first():
    def references(rows, *against):
        return [s.title.split()[1] for s in sections(rows, *against) if s.title.startswith("against")]

    icl = [row("icl", "a", s, 0.9) for s in range(3)]
    assert references(ROWS) == ["ln-tuning"]
    assert references([*icl, *of("ofa")]) == ["icl"]
    assert references([*icl, *ROWS], "ofa") == ["ofa"]
    elsewhere = [*ROWS, *(row("icl", "a", s, 0.9, "B") for s in range(3))]
    assert references(elsewhere, "ofa") == ["ofa"], "protocol B has no OFA to compare with"


def test_files_are_written(tmp_path):
    write_csv(ROWS, tmp_path / "cells.csv")
    with (tmp_path / "cells.csv").open() as file:
        assert [float(line["accuracy"]) for line in csv.DictReader(file)] == [r["accuracy"] for r in ROWS]


def recorded(monkeypatch):
    """The figures that are saved from here on."""
    figures, save = [], plots.Figure.savefig
    monkeypatch.setattr(
        plots.Figure,
        "savefig",
        lambda figure, *args, **kwargs: figures.append(figure) or save(figure, *args, **kwargs),
    )
    return figures


def test_plots_name_every_point_inside_the_frame_and_equal_points_once(tmp_path, monkeypatch):
    figures = recorded(monkeypatch)
    equal = [{**r, "method": "label-anchor"} for r in of("ofa")]
    plots.plot_comparison([*ROWS, *equal, row("lora", "a", 0, 0.6)], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    (figure,) = figures
    figure.canvas.draw()  # the file has more dots an inch
    for axis in figure.axes[1:]:
        assert [text.get_text() for text in axis.texts] == ["ln-tuning", "ofa\nlabel-anchor", "lora"]
        frame = axis.get_window_extent()
        assert all(text.get_window_extent().x1 < frame.x1 for text in axis.texts)
        assert axis.get_ylim()[1] - axis.get_ylim()[0] >= plots.MIN_SPAN


def test_plots_number_points_where_names_are_long(tmp_path, monkeypatch):
    figures = recorded(monkeypatch)
    others = [f"{LONG}+batch_size={i}" for i in range(10)]
    rows = [*ROWS, *(row(name, "a", 0, 0.6 + i / 100) for i, name in enumerate(others))]
    plots.plot_comparison(rows, tmp_path / "plot.png")
    (figure,) = figures
    figure.canvas.draw()
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels[:2] == ["1  ln-tuning", "2  ofa"]
    assert [label.replace("\n", "") for label in labels[2:]] == [f"{i}  {m}" for i, m in enumerate(others, 3)]
    for axis in figure.axes[1:]:
        assert [text.get_text() for text in axis.texts] == [str(i) for i in range(1, 13)]
    inside, page = legend.get_window_extent(), figure.bbox
    assert page.x0 <= inside.x0 and inside.x1 <= page.x1 and inside.y1 <= page.y1
    assert all(axis.get_window_extent().y1 < inside.y0 for axis in figure.axes)


def test_accuracy_and_time_are_means_over_the_cells_that_all_methods_have(tmp_path, monkeypatch):
    figures = recorded(monkeypatch)
    only_first = {**row("ia3", "a", 0, 0.9), "seconds_fit": 40.0}
    free = [{**row("zero-shot", task, 0, 0.5), "seconds_fit": 0.0} for task in ("a", "b")]
    plots.plot_accuracy_time({"left": [*ROWS, only_first], "right": [*ROWS, *free]}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"
    (figure,) = figures
    shown = [{text.get_text(): text.xy for text in axis.texts} for axis in figure.axes]
    left = {"ln-tuning": (2.0, 0.70), "ofa": (2.0, 0.72), "ia3": (40.0, 0.9)}
    right = {"ln-tuning": (2.0, 0.60), "ofa": (2.0, 0.62), "zero-shot": (plots.NO_TRAINING, 0.5)}
    assert shown == [
        {name: pytest.approx(point) for name, point in left.items()},
        {name: pytest.approx(point) for name, point in right.items()},
    ]
    assert [axis.get_title() for axis in figure.axes] == [
        "left\nmeans of 1 task x 1 draw",
        "right\nmeans of 2 tasks x 1 draw",
    ]
    assert figure.axes[0].get_xscale() == figure.axes[1].get_xscale() == "log"


def test_names_of_close_points_do_not_overlap_nor_leave_the_frame(tmp_path, monkeypatch):
    figures = recorded(monkeypatch)
    rows = [row(name, "a", 0, accuracy) for name, accuracy in (("lora", 0.7), ("ofa", 0.701), ("i2cl", 0.3))]
    rows.append({**row("label-anchor", "a", 0, 0.699), "seconds_fit": 900.0})
    plots.plot_accuracy_time({"all": [*rows, {**rows[0], "method": "ia3"}]}, tmp_path / "plot.png")
    (figure,) = figures
    figure.set_dpi(150)  # as in the file
    figure.canvas.draw()
    (axis,) = figure.axes
    boxes = {text.get_text(): Text.get_window_extent(text) for text in axis.texts}  # without their lines
    assert set(boxes) == {"ofa", "lora, ia3", "label-anchor", "i2cl"}
    frame = axis.get_window_extent()
    assert all(frame.x0 < box.x0 and box.x1 < frame.x1 for box in boxes.values())
    assert not any(a.overlaps(b) for a in boxes.values() for b in boxes.values() if a is not b)


def test_methods_without_a_common_cell_are_not_drawn_together(tmp_path):
    with pytest.raises(ValueError, match=r"every method has finished: all"):
        plots.plot_accuracy_time({"all": [*ROWS, row("icl", "c", 0, 0.9)]}, tmp_path / "plot.png")
    assert not (tmp_path / "plot.png").exists()


def test_drawing_leaves_the_callers_pyplot_alone(tmp_path):
    code = (
        "import sys; from pathlib import Path; from ofa.compare.plots import plot_accuracy_time; "
        f"plot_accuracy_time({{'all': {of('ofa')!r}}}, Path({str(tmp_path / 'plot.png')!r})); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
