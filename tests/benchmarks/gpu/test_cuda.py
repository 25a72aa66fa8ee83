"""The section that times CUDA C++ beside Triton: both are found right, and what is missing is said."""

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from benchmarks.gpu import cuda
from benchmarks.gpu.card import Rehearsal
from benchmarks.gpu.section import Task


def shares_of(row):
    timed = {entry["label"] for entry in row["group"]["entries"] if entry["median"] is not None}
    return timed & set(cuda.LABELS)


@pytest.mark.usefixtures("emulated_cuda")
def test_both_are_found_right_and_timed():
    found = list(cuda.rows(Rehearsal(), Task("out")))
    assert len(found) == 8 and all(shares_of(row) == set(cuda.LABELS) for row in found)
    ((_, header, cells),) = cuda.tables(found)
    assert len(cells) == 8 and all(len(row) == len(header) and row[-1] == "" for row in cells)
    assert cuda.finding(found).count("of Triton's rate") == 4


@pytest.mark.usefixtures("emulated_cuda")
def test_a_wrong_kernel_is_not_timed(monkeypatch):
    right = cuda.cuda.calls.rms_norm_forward
    monkeypatch.setattr(cuda.cuda.calls, "rms_norm_forward", lambda *given: 1.5 * right(*given))
    forward = next(row for row in cuda.rows(Rehearsal(), Task("out")) if row["case"] == "forward")
    assert shares_of(forward) == {cuda.TRITON}
    assert "wrong by" in cuda.tables([forward])[0][2][0][-1]


def test_without_the_library_the_table_says_why():
    found = list(cuda.rows(Rehearsal(), Task("out")))
    assert all(shares_of(row) == {cuda.TRITON} for row in found)
    assert cuda.cuda.missing() in cuda.tables(found)[0][2][0][-1]
    assert cuda.finding(found) == "no shape was timed with both"
