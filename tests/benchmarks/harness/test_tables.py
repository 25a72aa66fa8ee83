import pytest

from benchmarks.harness import contenders
from benchmarks.harness.tables import Group, entries, seconds, summaries, to_markdown

TIMES = {
    "copy": [1.0, 2.0, 4.0],
    contenders.EAGER: [10.0, 20.0, 80.0],
    contenders.OURS: [2.0, 4.0, 4.0],
    contenders.KERNELS_ALONE: [1.0, 2.0, 2.0],
    contenders.FUNCTIONAL: [8.0, 8.0, 8.0],
}
MOVED = {label: 8_000_000_000 for label in TIMES} | {"copy": 2_000_000_000}


@pytest.fixture
def rows():
    notes = {contenders.COMPILED: "needs a C++ compiler"}
    return entries(TIMES, MOVED, unit="copy", copy="copy", eager=contenders.EAGER, notes=notes)


def test_columns_are_medians_over_rounds(rows):
    own = rows[2]
    assert (own.median, own.iqr, own.gb_per_s) == (4.0, 1.0, 2.0)
    assert own.copies == 2.0  # of 2, 2, 1
    assert own.percent_of_copy == pytest.approx(200)  # four times the bytes in twice the time
    assert own.per_eager == pytest.approx(0.2)  # of 0.2, 0.2, 0.05


def test_cells(rows):
    assert rows[0].cells() == ("copy", "2 s", "1.5 s", "1.0", "100", "1.00", "0.10")
    assert rows[-1].cells() == (contenders.COMPILED, *("",) * 6)


def test_without_a_baseline_there_is_no_ratio():
    (row,) = entries({"a": [1.0]}, {"a": 1}, unit="copy", copy="copy", eager="none")
    assert (row.iqr, row.percent_of_copy, row.copies, row.per_eager) == (0.0, None, None, None)


def test_group_says_below_the_table_why_a_contender_is_missing(rows):
    group = Group("forward", 2, 3, "float32", tuple(rows))
    assert group.markdown()[0] == "**forward, 2 x 3, float32**"
    assert f"| {contenders.COMPILED}" not in "\n".join(group.markdown())
    assert f"{contenders.COMPILED}: needs a C++ compiler" in group.markdown()
    assert group.table().row_count == len(TIMES)
    assert group.to_json()["entries"][2]["copies"] == 2.0


def test_summaries_leave_empty_columns_out(rows):
    group = Group("forward", 2, 3, "float32", tuple(rows))
    (table,) = summaries([group, Group("no contender of ours", 2, 3, "float32", ())])
    assert table == (
        "forward",
        ("ours", "median", "copies", "alone", "% of copy", "/ eager", "/ F.rms_norm"),
        [("2 x 3, float32", "4 s", "2.00", "1.00", "200", "0.20", "0.50")],
    )


def test_markdown():
    lines = to_markdown("t", ("", "a"), [("x", "1")])
    assert lines == ["**t**", "", "|  | a |", "| --- | ---: |", "| x | 1 |", ""]


@pytest.mark.parametrize(
    ("value", "text"), [(2.5, "2.5 s"), (0.0125, "12.5 ms"), (3e-6, "3 µs"), (5e-9, "5 ns"), (0.0, "0 ns")]
)
def test_units(value, text):
    assert seconds(value) == text
