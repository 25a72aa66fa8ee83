"""What is launched: which kernels a test depends on, and which builds they take. A pytest plugin, too.

    pytest tests/ofa_kernels -p benchmarks.gpu.launches --outcomes FILE --launches FILE

`--outcomes` writes a line as soon as a test has ended, with the kernels that it launched; `--launches` one
for each build, from which `cache.py` compiles without a card.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

INT32 = 2**31


def _canonical(value: int) -> int:
    """The integer that stands for all that Triton compiles alike: by width, by 16 dividing it, and 1."""
    if value == 1:
        return 1
    wide = 0 if -INT32 <= value < INT32 else INT32
    return wide + (16 if value % 16 == 0 else 17)


def described(value: Any, positional: bool) -> object:
    """An argument of a launch as JSON: all of it that bears on the build."""
    if isinstance(value, torch.Tensor):
        return {"tensor": str(value.dtype).removeprefix("torch."), "aligned": value.data_ptr() % 16 == 0}
    if positional and type(value) is int:
        return _canonical(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return {"type": value.name}  # a type of Triton's


def line_of(kernel, args: tuple, options: dict) -> str:
    """A launch as a line of JSON; equal for launches of one build."""
    launch = {
        "module": kernel.fn.__module__,
        "kernel": kernel.fn.__name__,
        "args": [described(value, positional=True) for value in args],
        "options": {name: described(value, positional=False) for name, value in options.items()},
    }
    return json.dumps(launch, sort_keys=True)


@contextmanager
def watching(note: Callable[[object, tuple, dict], None]) -> Iterator[None]:
    """Call `note(kernel, args, options)` at every launch of a Triton kernel, compiled or interpreted."""
    from triton.runtime.jit import KernelInterface

    launcher = KernelInterface.__getitem__

    def noting(self, grid):
        launch = launcher(self, grid)

        def launch_and_note(*args, **options):
            note(self, args, options)
            return launch(*args, **options)

        return launch_and_note

    KernelInterface.__getitem__ = noting
    try:
        yield
    finally:
        KernelInterface.__getitem__ = launcher


def pytest_addoption(parser):
    """Where to write."""
    parser.addoption("--outcomes", metavar="FILE", help="write a line for every test that has ended")
    parser.addoption("--launches", metavar="FILE", help="write a line for every build that was launched")


class _Plugin:
    def __init__(self, outcomes: str | None, launches: str | None):
        self.outcomes, self.launches = outcomes, launches
        self.builds: dict[str, None] = {}
        self.kernels: set[str] = set()

    def _note(self, kernel, args, options) -> None:
        self.kernels.add(kernel.fn.__name__)
        if self.launches:
            self.builds[line_of(kernel, args, options)] = None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        self.kernels = set()
        with watching(self._note):
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        try:
            return (yield)
        finally:
            item.user_properties.append(("kernels", ",".join(sorted(self.kernels))))

    def pytest_runtest_logreport(self, report):
        if not self.outcomes or (report.when != "call" and report.outcome == "passed"):
            return
        kernels = dict(report.user_properties).get("kernels", "")
        row = {
            "test": report.nodeid,
            "outcome": report.outcome,
            "kernels": [name for name in kernels.split(",") if name],
            "message": _last_line(report) if report.outcome == "failed" else "",
        }
        with Path(self.outcomes).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def pytest_sessionfinish(self, session):
        if self.launches and self.builds:
            with Path(self.launches).open("a", encoding="utf-8") as file:
                file.writelines(line + "\n" for line in self.builds)


def _last_line(report) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash else str(report.longrepr)
    return text.strip().partition("\n")[0][:300]


def pytest_configure(config):
    """Watch; processes of pytest-xdist watch too, and their reports come to the first."""
    first = not hasattr(config, "workerinput")
    outcomes = config.getoption("--outcomes") if first else None
    config.pluginmanager.register(_Plugin(outcomes, config.getoption("--launches")), "ofa-launches")
