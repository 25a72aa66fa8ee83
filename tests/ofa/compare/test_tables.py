import csv
import io
import math
import statistics

import pytest
from rich.console import Console

from ofa.compare import plots
from ofa.compare.statistics import mean_ranks, paired
from ofa.compare.tables import accuracy_table, paired_table, sections, write_csv
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


def test_plots_name_every_point_inside_the_frame_and_equal_points_once(tmp_path, monkeypatch):
    monkeypatch.setattr(plots.plt, "close", lambda figure: None)
    equal = [{**r, "method": "label-anchor"} for r in of("ofa")]
    plots.plot_comparison([*ROWS, *equal, row("lora", "a", 0, 0.6)], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    figure = plots.plt.gcf()
    figure.canvas.draw()  # the file has more dots an inch
    for axis in figure.axes[1:]:
        assert [text.get_text() for text in axis.texts] == ["ln-tuning", "ofa\nlabel-anchor", "lora"]
        frame = axis.get_window_extent()
        assert all(text.get_window_extent().x1 < frame.x1 for text in axis.texts)
        assert axis.get_ylim()[1] - axis.get_ylim()[0] >= plots.MIN_SPAN
    monkeypatch.undo()
    plots.plt.close(figure)


def test_plots_number_points_where_names_are_long(tmp_path, monkeypatch):
    monkeypatch.setattr(plots.plt, "close", lambda figure: None)
    others = [f"{LONG}+batch_size={i}" for i in range(10)]
    rows = [*ROWS, *(row(name, "a", 0, 0.6 + i / 100) for i, name in enumerate(others))]
    plots.plot_comparison(rows, tmp_path / "plot.png")
    figure = plots.plt.gcf()
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
    monkeypatch.undo()
    plots.plt.close(figure)
