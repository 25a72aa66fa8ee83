"""`ofa demo` on this card, where its model and its tweets are in the cache already."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.card import Card
from benchmarks.gpu.section import Rows, Table, Task
from ofa.data.tweets import MEMBER
from ofa.download import cache_dir
from ofa.models import SMOLLM2_Q4, SOURCE_FILE

ROOT = Path(__file__).parents[2]


def missing() -> list[Path]:
    """What the demo would have to download."""
    needed = (cache_dir() / SMOLLM2_Q4 / SOURCE_FILE, cache_dir() / Path(MEMBER).name)
    return [path for path in needed if not path.exists()]


def rows(card: Card, task: Task) -> Rows:
    """A row a cell of the demo's table; a rehearsal runs the command for its help only."""
    if not card.rehearsal and (absent := missing()):
        yield {"kind": "missing", "paths": [str(path) for path in absent]}
        return
    with tempfile.TemporaryDirectory() as folder:
        begin = time.monotonic()
        command = [sys.executable, "-m", "ofa", "demo", "--out", folder]
        done = subprocess.run(command + ["--help"] * card.rehearsal, cwd=ROOT, timeout=task.seconds)
        yield {"kind": "end", "status": done.returncode, "seconds": time.monotonic() - begin}
        results = Path(folder, "results.jsonl")
        for line in results.read_text(encoding="utf-8").splitlines() if results.exists() else ():
            yield {"kind": "cell", **json.loads(line)}


def _methods(found: Sequence[dict]) -> dict[str, list[dict]]:
    methods: dict[str, list[dict]] = {}
    for row in found:
        if row["kind"] == "cell":
            methods.setdefault(row["method"], []).append(row)
    return methods


def tables(found: Sequence[dict]) -> list[Table]:
    """Means over the draws."""
    cells = []
    for method, of_method in _methods(found).items():
        means = [
            statistics.mean(row[key] for row in of_method)
            for key in ("accuracy", "seconds_fit", "seconds_eval")
        ]
        cells.append((method, f"{means[0]:.3f}", f"{means[1]:.1f}", f"{means[2]:.1f}"))
    return [("The demo, three draws", ("method", "accuracy", "fit s", "eval s"), cells)] if cells else []


def finding(found: Sequence[dict]) -> str:
    """How it ended."""
    for row in found:
        if row["kind"] == "missing":
            return f"not at hand: {', '.join(row['paths'])}"
        if row["kind"] == "end" and row["status"]:
            return f"exit status {row['status']}"
    return "; ".join(
        f"{method} fits in {statistics.mean(row['seconds_fit'] for row in cells):.1f} s"
        for method, cells in _methods(found).items()
        if cells[0]["seconds_fit"]
    )
