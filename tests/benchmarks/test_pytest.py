"""`pytest benchmarks/` times a case's contenders in turns, and reports all of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.harness import contenders
from benchmarks.harness.measure import COPY, COPY_K, COPY_WARM

ROOT = Path(__file__).parents[2]
TITLE = "rademacher, K = 8, 8 x 576, float32"


def run(*options):
    command = [sys.executable, "-m", "pytest", "benchmarks/test_probes.py", "-p", "no:cacheprovider"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    chosen = ["-k", "rademacher and 8x576 and float32"]
    return subprocess.run(
        [*command, *chosen, *options], cwd=ROOT, env=environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def timed(tmp_path_factory):
    file = tmp_path_factory.mktemp("benchmark") / "b.json"
    done = run("--benchmark-only", f"--benchmark-json={file}")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads(file.read_text())


def test_the_table_has_every_contender_with_copies_and_ratios(timed):
    shown, _ = timed
    _, _, table = shown.partition(TITLE)
    header = table.splitlines()[2]
    assert all(name in header for name in ("median", "% of copy", "copies", "time / eager"))
    for label in (COPY, COPY_WARM, COPY_K, "eager PyTorch", contenders.OURS, contenders.KERNELS_ALONE):
        assert f"│ {label} " in table
    assert "threads" in shown and "backend" in shown


def test_the_file_has_the_times_of_ours_and_everyones_numbers(timed):
    (entry,) = timed[1]["benchmarks"]
    assert entry["group"] == contenders.OURS
    numbers = {row["label"]: row for row in entry["extra_info"]["entries"]}
    assert entry["stats"]["median"] == numbers[contenders.OURS]["median"] > 0
    assert entry["stats"]["rounds"] >= 5
    assert numbers["eager PyTorch"]["per_eager"] == 1.0
    assert "backend" in timed[1]["machine_info"]["measured_on"]


def test_without_a_timer_everything_runs_and_nothing_is_reported():
    done = run("--benchmark-disable")
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr
    assert TITLE not in done.stdout
