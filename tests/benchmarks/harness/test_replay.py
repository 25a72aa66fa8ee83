"""What pytest-benchmark reports of replayed times."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
TEST = """
import pytest
from benchmarks.harness.replay import Replay

REPLAY = Replay()

@pytest.mark.benchmark(timer=REPLAY.clock)
@pytest.mark.parametrize("times", [[0.25, 1e-6, 3.0], [2e-9]])
def test_replayed(benchmark, times):
    REPLAY.feed(benchmark, times)
"""


def test_its_file_holds_the_times_that_were_measured(tmp_path):
    (tmp_path / "test_replayed.py").write_text(TEST)
    options = ["-p", "no:cacheprovider", "--benchmark-only", "--benchmark-save-data"]
    options += [f"--benchmark-json={tmp_path / 'b.json'}", f"--benchmark-storage={tmp_path}"]
    command = [sys.executable, "-m", "pytest", f"--rootdir={tmp_path}", str(tmp_path), *options]
    # that these tests run on several processes, which forbids timing, is nothing to the command
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = json.loads((tmp_path / "b.json").read_text())["benchmarks"]
    assert first["stats"]["data"] == [0.25, 1e-6, 3.0] and first["stats"]["median"] == 0.25
    assert second["stats"]["data"] == [2e-9]
