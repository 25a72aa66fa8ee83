"""The tables of the headline shapes: what is timed, what is not, and why."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from benchmarks.cases.rms_norm import FORWARD
from benchmarks.gpu import compiled, headline
from benchmarks.gpu.card import Rehearsal
from benchmarks.gpu.section import SECTIONS, Task
from benchmarks.harness import contenders
from benchmarks.harness.case import OURS, Case
from benchmarks.harness.measure import WrongError
from ofa_kernels.dispatch import kernels_for

SHAPE = (3, 32)


@pytest.fixture(autouse=True)
def triton(monkeypatch):
    monkeypatch.setenv("OFA_BACKEND", "triton")


def rows(card=None, wrong=(), labels=headline.LABELS, case=FORWARD):
    plan = headline.items([SHAPE], [case])
    return list(headline.table_rows(card or Rehearsal(), Task("out", wrong=wrong), plan, labels))


def labels_of(row):
    timed = {entry["label"] for entry in row["group"]["entries"] if entry["median"] is not None}
    return timed - {headline.COPY}


def test_all_contenders_are_timed_beside_a_copy_of_the_same_bytes():
    (row,) = rows()
    assert labels_of(row) == {*OURS, contenders.EAGER, contenders.FUNCTIONAL}
    copy = row["group"]["entries"][0]
    moved = {entry["bytes"] for entry in row["group"]["entries"][1:] if entry["bytes"]}
    assert copy["label"] == headline.COPY and copy["percent_of_copy"] == 100 and moved == {copy["bytes"]}
    (table, notes) = headline.tables([row])
    assert table[0] == "forward" and len(table[2]) == 1
    assert notes[2] == [("forward: Liger-Kernel", "Liger-Kernel needs a GPU", "1")]
    assert headline.finding([row]).startswith("forward ")


def test_a_kernel_in_doubt_loses_its_own_rows_only():
    (forward,) = rows(wrong=("rms_norm_forward", "probe_dot"))
    assert labels_of(forward) == {contenders.EAGER, contenders.FUNCTIONAL}
    assert forward["note"] == "a parity test failed: rms_norm_forward"
    (untouched,) = rows(wrong=("rms_norm_jvp",))
    assert labels_of(untouched) >= set(OURS) and not untouched["note"]


def test_ours_are_not_timed_where_they_are_wrong_but_the_others_are(monkeypatch):
    right = kernels_for(torch.empty(1, 1)).rms_norm_forward
    monkeypatch.setattr(kernels_for(torch.empty(1, 1)), "rms_norm_forward", lambda *args: 1.5 * right(*args))
    (row,) = rows()
    assert labels_of(row) == {contenders.EAGER, contenders.FUNCTIONAL}
    assert "is wrong by" in row["note"]


def test_another_s_call_that_can_not_be_captured_is_named(monkeypatch):
    card = Rehearsal()
    capture, seen = card.graph, []

    def graph(run):
        seen.append(run)
        if len(seen) == 4:  # copy, two of ours, then eager transformers
            raise RuntimeError("operation not permitted when stream is capturing\n…")
        return capture(run)

    monkeypatch.setattr(card, "graph", graph)
    (row,) = rows(card)
    notes = {entry["label"]: entry["note"] for entry in row["group"]["entries"]}
    assert notes[contenders.EAGER].startswith("raises RuntimeError: operation not permitted")
    assert labels_of(row) == {*OURS, contenders.FUNCTIONAL}


def test_a_shape_that_fails_hides_no_other(monkeypatch):
    measure = headline.measure

    def failing(card, item, *rest):
        if item.rows == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return measure(card, item, *rest)

    monkeypatch.setattr(headline, "measure", failing)
    plan = headline.items([(2, 32), SHAPE], [FORWARD])
    first, second = headline.table_rows(Rehearsal(), Task("out"), plan, headline.LABELS)
    assert "OutOfMemoryError" in first["note"] and "group" not in first
    assert labels_of(second) >= set(OURS)


def test_a_result_that_is_wrong_has_a_type_of_its_own():
    wrong = Case("forward", "forward", FORWARD.makers, lambda t: ((2 * t.x,), ()), recorded=False)
    item = headline.Item(wrong, *SHAPE)
    with pytest.raises(WrongError):
        headline.measure(Rehearsal(), item, OURS, kernels_for(torch.empty(1, 1)))


def test_the_seven_shapes_come_whole_and_the_tangents_last():
    plan = headline.items()
    assert len(plan) == 4 * len(headline.SHAPES) == 28
    assert [item.case.k for item in plan] == [1] * 21 + [16] * 7
    assert set(headline.KERNELS) == {item.case.operator for item in plan}


def test_the_estimate_fits_the_section():
    (section,) = (section for section in SECTIONS if section.name == "headline")
    assert headline.estimate() <= section.seconds <= section.limit


def test_what_is_compiled_ahead_is_launched_on_nothing():
    assert len(list(headline.launches())) == 28


def test_compiled_contenders_are_compared_with_ours():
    entries = [
        {"label": contenders.KERNELS_ALONE, "median": 2e-6},
        {"label": contenders.COMPILED, "median": 3e-6},
    ]
    found = [{"kind": "table", "case": "forward", "group": {"entries": entries}}]
    assert compiled.finding(found) == "forward: compiled takes 1.50–1.50 of ours"
