import signal
import subprocess
import sys

import pytest

from ofa.commands.locks import only_run

HOLD = """
import sys, time
from pathlib import Path
from ofa.commands.locks import only_run
with only_run(Path(sys.argv[1]), *sys.argv[2:]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Starts another process that holds the folder."""
    started = []

    def hold(*part):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, tmp_path / "out", *part], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield hold
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_second_run_is_refused_at_once_and_disturbs_nothing(tmp_path, holder):
    holder()
    for _ in range(2):
        refused = pytest.raises(ValueError, match=r"another run is writing to .*out; let it end")
        with refused, only_run(tmp_path / "out"):
            pytest.fail("two runs in one folder")


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_was_killed_holds_nobody_up(tmp_path, holder, end):
    process = holder()
    process.send_signal(end)
    process.wait()
    with only_run(tmp_path / "out"):
        (tmp_path / "out" / "result").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["result"]


def test_parts_are_held_apart(tmp_path, holder):
    holder("cells-0")
    with only_run(tmp_path / "out", "cells-1"):
        pass
    with pytest.raises(ValueError, match="another run"), only_run(tmp_path / "out", "cells-0"):
        pass


def test_what_stays_empty_is_removed_if_it_was_made_here(tmp_path):
    with pytest.raises(KeyError), only_run(tmp_path / "new" / "inner"):
        raise KeyError
    assert not (tmp_path / "new").exists()
    with only_run(tmp_path / "new" / "inner"):
        (tmp_path / "new" / "other").touch()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["other"]
    (tmp_path / "new" / "other").unlink()
    (tmp_path / "new").rmdir()
    with only_run(tmp_path):
        pass
    assert tmp_path.is_dir() and not list(tmp_path.iterdir())


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file; give a folder"), only_run(tmp_path / "file"):
        pass
