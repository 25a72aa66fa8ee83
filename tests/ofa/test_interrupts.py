"""Ctrl-C while a command is imported ends in one line, whatever is being imported."""

import os
import signal
import subprocess
import sys

import pytest

PRESSED = """
import os, signal, sys
signal.signal(signal.SIGINT, {handler})

class Presses:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Presses())
sys.argv = ["ofa", "adapt", "nothing.csv", "--out", {out!r}]
from ofa.__main__ import main
main()
"""


def press(name, out, handler="signal.default_int_handler"):
    code = PRESSED.format(name=name, out=os.fspath(out), handler=handler)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.parametrize("name", ["typer", "ofa.cli", "torch", "transformers", "sklearn", "ofa.train.fit"])
def test_it_ends_in_one_line_while_something_is_imported(name, tmp_path):
    done = press(name, tmp_path / "out")
    assert (done.returncode, done.stderr, done.stdout) == (130, "stopped\n", "")
    assert not (tmp_path / "out").exists()


def test_where_it_is_ignored_it_stays_so(tmp_path):
    done = press("torch", tmp_path / "out", "signal.SIG_IGN")
    assert done.returncode == 1 and "nothing.csv" in done.stderr


def test_a_command_at_work_gets_a_keyboard_interrupt_again(ctrl_c):
    code = (
        "import os, signal; from ofa.interrupts import stop_at_once, stop_in_order\n"
        "stop_at_once(); stop_in_order()\n"
        "try: os.kill(os.getpid(), signal.SIGINT)\nexcept KeyboardInterrupt: print('caught')"
    )
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n" + code
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "caught\n" and signal.getsignal(signal.SIGINT) is ctrl_c
