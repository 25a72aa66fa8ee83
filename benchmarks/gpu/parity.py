"""The kernels' tests on this card: what failed, and which kernels that puts in doubt."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.card import Card
from benchmarks.gpu.section import Rows, Table, Task

ROOT = Path(__file__).parents[2]
SUITE = (
    "tests/ofa_kernels",
    "tests/ofa/test_capture.py",
    "tests/ofa/train/test_on_a_gpu.py",
    "-m",
    "not host",
)
REHEARSED = ("tests/ofa_kernels/test_rms_norm_jvp.py", "-k", "triton and not gradients")
PROCESSES = 12
TEST_SECONDS = 60  # one that hangs takes its process, not the section


def command(card: Card, task: Task, outcomes: Path) -> list[str]:
    """How pytest is run: to its end whatever fails, on several processes where it can."""
    suite = task.suite or (REHEARSED if card.rehearsal else SUITE)
    options = [
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "benchmarks.gpu.launches",
        "--timeout",
        str(TEST_SECONDS),
    ]
    options += ["--outcomes", str(outcomes), "--junitxml", str(Path(task.out, "parity.xml"))]
    if importlib.util.find_spec("xdist"):
        processes = 2 if card.rehearsal else max(1, min(PROCESSES, (os.cpu_count() or 1) - 2))
        options += ["-n", str(processes), "--dist", "worksteal"]
    return [sys.executable, "-m", "pytest", *suite, *options]


def _lines(path: Path, seen: int) -> list[dict]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]][seen:]


def rows(card: Card, task: Task) -> Rows:
    """A row for every test that failed or was skipped, and counts of those that passed as they come in."""
    with tempfile.TemporaryDirectory() as folder:
        outcomes, seen = Path(folder, "outcomes.jsonl"), 0
        process = subprocess.Popen(command(card, task, outcomes), cwd=ROOT)
        while True:
            try:
                code = process.wait(timeout=1)
            except subprocess.TimeoutExpired:
                code = None
            new = _lines(outcomes, seen)
            seen += len(new)
            if passed := [row for row in new if row["outcome"] == "passed"]:
                launched = Counter(kernel for row in passed for kernel in row["kernels"])
                yield {"kind": "passed", "count": len(passed), "kernels": launched}
            for row in new:
                if row["outcome"] == "skipped":
                    yield {"kind": "skipped", "test": row["test"]}
                if row["outcome"] == "failed":
                    yield {"kind": "failed", "wrong_kernels": row["kernels"], **row}
            if code is not None:
                yield {"kind": "end", "status": code}
                return


def _counts(found: Sequence[dict]) -> dict[str, int]:
    return {
        "passed": sum(row["count"] for row in found if row["kind"] == "passed"),
        "failed": sum(row["kind"] == "failed" for row in found),
        "skipped": sum(row["kind"] == "skipped" for row in found),
    }


def tables(found: Sequence[dict]) -> list[Table]:
    """The verdict on each kernel, and what failed."""
    right, failed = Counter(), Counter()
    for row in found:
        if row["kind"] == "passed":
            right.update(row["kernels"])
        if row["kind"] == "failed":
            failed.update(row["kernels"])
    verdicts = [
        (kernel, "in doubt" if failed[kernel] else "right", str(right[kernel]), str(failed[kernel]))
        for kernel in sorted(right | failed)
    ]
    header = ("kernel", "verdict", "tests passed", "tests failed")
    lists: list[Table] = [("Kernels", header, verdicts)] if verdicts else []
    cells = [
        (row["test"].removeprefix("tests/ofa_kernels/"), ", ".join(row["kernels"]), row["message"][:100])
        for row in found
        if row["kind"] == "failed"
    ]
    return lists + ([("Tests that failed", ("test", "kernels it launched", "error"), cells)] if cells else [])


def finding(found: Sequence[dict]) -> str:
    """Counts, and the kernels in doubt."""
    counts = _counts(found)
    parts = [f"{count} {name}" for name, count in counts.items() if count or name == "passed"]
    if not any(row["kind"] == "end" for row in found):
        parts.append("not run to its end")
    elif not any(counts.values()):
        parts.append("no test was run")
    wrong = sorted({kernel for row in found for kernel in row.get("wrong_kernels", ())})
    return ", ".join(parts) + (f"; in doubt: {', '.join(wrong)}" if wrong else "")
