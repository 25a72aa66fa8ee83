"""Ctrl-C in the seconds in which a command is still being imported."""

import os
import signal
import sys
from types import FrameType


def _end(number: int, frame: FrameType | None) -> None:
    # libraries make other errors of a KeyboardInterrupt while they are imported; nothing is written yet
    os.write(sys.stderr.fileno(), b"stopped\n")
    os._exit(130)


def stop_at_once() -> None:
    """From here on, Ctrl-C ends the process in one line; where it is ignored, it stays so."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def stop_in_order() -> None:
    """From here on, Ctrl-C is a KeyboardInterrupt again; the inverse of `stop_at_once`."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)
