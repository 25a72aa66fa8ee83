"""The files: whole at any moment, few, and with what an earlier run left."""

import json

import pytest

from benchmarks.gpu.report import DATA, LARGEST, LOG, SWEEP, TEXT, Record
from benchmarks.gpu.runner import Outcome
from benchmarks.gpu.section import chosen
from benchmarks.harness import machine

ABOUT = {
    "kind": "machine",
    **machine.describe(),
    "card": "Some Card 80GB",
    "cuda": "13.0",
    "packages": {"triton": "3.6.0"},
    "cache": "none packed",
}
COPY = {"kind": "copy", "bytes": 2**20, "seconds": 1e-6, "gb_per_s": 2097.2}
(ENVIRONMENT,), (PARITY,), (SWEPT,) = (chosen([name]) for name in ("environment", "parity", "sweep"))
FAILED = {
    "kind": "failed",
    "test": "tests/ofa_kernels/test_a.py::test_b[x|y]",
    "kernels": ["probe_dot"],
    "wrong_kernels": ["probe_dot"],
    "message": "assert 1\n == 2",
}


@pytest.fixture
def record(tmp_path):
    record = Record(tmp_path / "out")
    record.add(ENVIRONMENT, Outcome("done", 12.0, [ABOUT, COPY], "printed"))
    return record


def test_results_are_on_the_disk_after_every_section(record):
    data = json.loads((record.folder / DATA).read_text())
    assert data["sections"]["environment"]["rows"] == [ABOUT, COPY]
    assert "printed" in (record.folder / LOG).read_text()
    record.add(PARITY, Outcome("stopped after 110 s", 110.0, [FAILED], ""))
    text = (record.folder / TEXT).read_text()
    assert text.startswith("# Some Card 80GB\n")
    assert "| environment | done | 12 | copies at 2,097 GB/s; none packed |" in text
    assert (
        "| parity | stopped after 110 s | 110 | 0 passed, 1 failed, not run to its end; in doubt: probe_dot |"
        in text
    )
    assert "| test_a.py::test_b[x\\|y] | probe_dot | assert 1 == 2 |" in text


def test_a_second_run_adds_to_the_first(record):
    again = Record(record.folder)
    again.add(
        PARITY,
        Outcome("done", 60.0, [{"kind": "passed", "count": 3, "kernels": {}}, {"kind": "end", "status": 0}]),
    )
    sections = json.loads((record.folder / DATA).read_text())["sections"]
    assert list(sections) == ["environment", "parity"]
    assert again.machine["card"] == "Some Card 80GB"


def test_the_sweep_has_a_file_of_its_own(record):
    assert not (record.folder / SWEEP).exists()
    record.add(
        SWEPT, Outcome("done", 1.0, [{"kind": "error", "residency": "JVP", "columns": 4, "note": "n"}])
    )
    data = json.loads((record.folder / SWEEP).read_text())
    assert data["machine"]["card"] == "Some Card 80GB" and data["rows"][0]["note"] == "n"


def test_a_row_that_can_not_be_read_hides_no_other_section(record):
    record.add(PARITY, Outcome("done", 1.0, [{"no": "kind"}]))
    text = (record.folder / TEXT).read_text()
    assert "KeyError" in text and "copies at 2,097 GB/s" in text


def test_files_are_few_and_small(record):
    record.add(PARITY, Outcome("done", 1.0, [], "x" * (LARGEST + 100)))
    files = list(record.folder.iterdir())
    assert len(files) <= 4  # parity.xml, ncu.csv and two logs of the sanitizer make eight
    assert all(file.stat().st_size <= LARGEST < 16 * 2**20 for file in files)
