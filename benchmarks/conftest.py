"""How `pytest benchmarks/` times: each test is a table, whose contenders take turns in one process.

pytest-benchmark's own table and files hold the times of ours; every contender's numbers are in the file's
`extra_info` and in the tables at the end. Without a timer (`--benchmark-disable`) every contender of the
first shape of each file runs once and is checked.
"""

import io
from collections.abc import Callable
from functools import partial

import pytest
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.harness import allocator, contenders, machine
from benchmarks.harness.case import Case
from benchmarks.harness.inputs import Inputs
from benchmarks.harness.interleave import Pace, cuda_clock
from benchmarks.harness.measure import prepare
from benchmarks.harness.replay import Replay
from benchmarks.harness.tables import Group, summaries, to_rich
from ofa_kernels.dispatch import backend_for, kernels_for

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.bfloat16)
FLUSHED = 2**30  # bytes: more than a card's cache, and more time than the host needs for a launch
TABLES = pytest.StashKey[list[Group | Table]]()
BUDGET, ROUNDS = 0.4, (5, 101)  # everything has to end within five minutes on two cores
REPLAY = Replay()


def _pace() -> Pace:
    if DEVICE == "cpu":
        return Pace(BUDGET, ROUNDS)
    target = torch.empty(FLUSHED, dtype=torch.uint8, device=DEVICE)
    event = partial(torch.cuda.Event, enable_timing=True)
    clock = cuda_clock(target.zero_, torch.cuda.synchronize, event)
    return Pace(BUDGET, ROUNDS, iterations=20, clock=clock, before=lambda: None)


def pytest_configure(config):
    config.stash[TABLES] = []


@pytest.fixture(autouse=True, scope="session")
def settled_allocator():
    allocator.settle()


def _machine() -> dict:
    return machine.describe(DEVICE) | {"backend": backend_for(torch.empty(1, 1, device=DEVICE))}


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["measured_on"] = _machine()  # "cpu" and others are taken


def pytest_generate_tests(metafunc):
    """A module's CASES at its SHAPES, by type."""
    if "case" not in metafunc.fixturenames:
        return
    module = metafunc.module
    shapes = module.SHAPES[: 1 if metafunc.config.getoption("benchmark_disable") else None]
    tables = [
        pytest.param(case, shape, dtype, id=f"{case.name}-{shape[0]}x{shape[1]}-{str(dtype)[6:]}")
        for case in module.CASES
        for shape in shapes
        for dtype in DTYPES
    ]
    metafunc.parametrize(("case", "shape", "dtype"), tables)


def pytest_collection_modifyitems(items):
    for item in items:
        if "add_table" in item.fixturenames:
            item.add_marker(pytest.mark.benchmark(timer=REPLAY.clock))


@pytest.fixture
def add_table(benchmark, pytestconfig) -> Callable[[Group | Table, dict, list[float]], None]:
    """Reports a table, its numbers in pytest-benchmark's file, and some of its times as the test's."""

    def add(table: Group | Table, numbers: dict, times: list[float]) -> None:
        pytestconfig.stash[TABLES].append(table)
        benchmark.extra_info.update(numbers)
        REPLAY.feed(benchmark, times)

    return add


@pytest.fixture
def time_case(benchmark, add_table) -> Callable[[Case, tuple[int, int], torch.dtype], None]:
    """Finds all contenders of a case right against float64, then times them in turns."""

    def time(case: Case, shape: tuple[int, int], dtype: torch.dtype) -> None:
        inputs = Inputs(*shape, dtype, case.k, DEVICE)
        skipped = {contenders.LIGER} if DEVICE == "cpu" else set()
        prepared = prepare(case, inputs, kernels_for(inputs.x.detach()), skipped)
        if benchmark.disabled:
            benchmark(prepared.calls[contenders.OURS])
            return
        times = prepared.time(_pace())
        group = prepared.group(times)
        benchmark.group = contenders.OURS
        add_table(group, group.to_json(), times[contenders.OURS])

    return time


@pytest.hookimpl(trylast=True)  # after pytest-benchmark's own table
def pytest_terminal_summary(terminalreporter, config):
    tables = config.stash[TABLES]
    if not tables:
        return
    text = io.StringIO()
    console = Console(file=text, width=120)
    about = _machine()
    console.print(f"{machine.line(about)}; backend {about['backend']}", highlight=False)
    for table in tables:
        console.print(table.table() if isinstance(table, Group) else table)
    for summary in summaries(table for table in tables if isinstance(table, Group)):
        console.print(to_rich(*summary))
    terminalreporter.section("contenders in turns")
    terminalreporter.write(text.getvalue())
