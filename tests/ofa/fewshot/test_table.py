import csv
import io
import math
import statistics

import pytest
from rich.console import Console

from ofa.fewshot import plots
from ofa.fewshot.table import accuracy_table, mean_ranks, paired, paired_table, sections, write_csv


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
