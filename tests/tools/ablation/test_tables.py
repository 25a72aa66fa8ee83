from tools.ablation.results import results
from tools.ablation.tables import group_table, round_table

REFERENCE = "ln-tuning:lr=0.003+epochs=30"


def by_setting(section):
    return [dict(zip(section.header, row, strict=True)) for row in section.rows]


def test_settings_are_ranked_against_those_of_the_same_draws_only(run):
    rows = [
        *run(REFERENCE, 0), *run("ln-tuning:lr=0.01", 9, (100,)), *run("ln-tuning:lr=0.02", -1),
        *run("ln-tuning:lr=0.03", 2), *run("ln-tuning:lr=0.04", 5, tasks="abcde"),
        *run("ln-tuning:lr=0.05", 8, (101,)),
    ]  # fmt: skip
    found = results(rows, REFERENCE)
    table = round_table(found, (100, 101, 102))
    assert table.title == "3 draws (100, 101, 102)"
    lines = by_setting(table)
    told = [(line["setting"], line["cells"], line["difference"]) for line in lines]
    assert told == [
        (f"`{REFERENCE}`, the reference", "18", ""), ("`ln-tuning:lr=0.03`", "18", "+2.00"),
        ("`ln-tuning:lr=0.02`", "18", "-1.00"), ("`ln-tuning:lr=0.04`", "15 of 18", "+5.00"),
    ]  # fmt: skip
    first, second = by_setting(round_table(found, (100,)))
    assert (first["cells"], first["accuracy"]) == ("6", "0.750"), "of the reference's cells those of the draw"
    assert (second["setting"], second["difference"]) == ("`ln-tuning:lr=0.01`", "+9.00")


def test_numbers_are_means_over_the_setting_s_cells(run):
    rows = run("ofa", 2.0, (100, 101), sharpness=4.0, log_loss=0.25, n_trained_together=9, seconds_fit=7.0)
    for row in rows[0], rows[6]:  # both draws of the first task
        row["accuracy"] += 0.12
    line = by_setting(round_table(results([*run(REFERENCE, 0), *rows], REFERENCE), (100, 101)))[1]
    assert line == {
        "setting": "`ofa`", "cells": "12", "accuracy": "0.800", "difference": "+4.00", "± by task": "± 2.00",
        "± by draw": "± 0.00", "± by cell": "± 1.35", "log-loss": "0.250", "calibration": "0.100",
        "J": "28.00", "H": "4.00", "training, s": "7.0 in a set",
    }  # fmt: skip


def test_one_draw_has_the_error_that_can_be_told(run):
    table = round_table(results([*run(REFERENCE, 0), *run("ofa", 1, (100,))], REFERENCE), (100,))
    assert [name for name in table.header if "±" in name] == ["± by task"]


def test_groups_say_what_changes_on_each_setting_s_own_cells(run):
    rows = run("lora:r=4", 1.5, (101,), "ab", log_loss=0.75)
    for row in rows:
        del row["sharpness"], row["step_ratio"]
    _, found = results([*run(REFERENCE, 0), *rows], REFERENCE)
    (line,) = by_setting(group_table("other methods", [found]))
    assert line == {
        "differs in": "`lora:r=4`", "cells": "2 of 6", "draws": "1", "accuracy": "+1.50",
        "± by task": "± 0.00", "log-loss": "+0.250", "calibration": "+0.000", "J": "", "H": "",
    }  # fmt: skip
