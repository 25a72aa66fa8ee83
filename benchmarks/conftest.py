"""How one contender of a case is timed by pytest-benchmark, and what its numbers depend on.

Without a timer (`--benchmark-disable`) only the first shape of each file runs: enough to see that it runs.
"""

import importlib.metadata
from collections.abc import Callable
from functools import lru_cache

import pytest
import torch

from benchmarks.harness import allocator, contenders, measure
from benchmarks.harness.case import Case
from benchmarks.harness.inputs import Inputs
from benchmarks.harness.truth import expected
from ofa_kernels.dispatch import kernels_for

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.bfloat16)
BACKENDS = ("triton" if DEVICE == "cuda" else "native", "reference")
ELEMENTS_A_ROUND = 4_000_000


@pytest.fixture(autouse=True, scope="session")
def settled_allocator():
    allocator.settle()


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["torch"] = torch.__version__
    machine_info["torch_threads"] = torch.get_num_threads()
    machine_info["transformers"] = importlib.metadata.version("transformers")
    if DEVICE == "cuda":
        machine_info["card"] = torch.cuda.get_device_name()


def pytest_generate_tests(metafunc):
    """A module's CASES at its SHAPES, by type and contender; ours once a backend."""
    if "contender" not in metafunc.fixturenames:
        return
    module, runs = metafunc.module, []
    smoke = metafunc.config.getoption("benchmark_disable")
    for case in module.CASES:
        left_out = {contenders.KERNELS_ALONE, contenders.OURS} | (
            {contenders.LIGER} if DEVICE == "cpu" else set()
        )
        labels = dict.fromkeys((measure.COPY, measure.full_rate(case), *case.makers))
        labels = [label for label in labels if label not in left_out]
        labels += [f"{contenders.OURS}, {backend}" for backend in BACKENDS]
        for rows, columns in module.SHAPES[: 1 if smoke else None]:
            for dtype in DTYPES:
                size = rows, columns, dtype, case.k
                runs += [
                    pytest.param(
                        case, size, label, id=f"{case.name}-{rows}x{columns}-{str(dtype)[6:]}-{label}"
                    )
                    for label in labels
                ]
    metafunc.parametrize(("case", "size", "contender"), runs)


# the contenders of a case at one size follow each other and share its tensors
@lru_cache(maxsize=1)
def _problem(case: Case, size: tuple):
    inputs = Inputs(*size, device=DEVICE)
    with torch.no_grad():
        return inputs, expected(inputs, case.truth)


def _waiting(call: Callable[[], object]) -> Callable[[], object]:
    def wait():
        result = call()
        torch.cuda.synchronize()
        return result

    return wait if DEVICE == "cuda" else call


@pytest.fixture
def time_contender(benchmark, monkeypatch) -> Callable[[Case, tuple, str], None]:
    """Finds a contender right against float64, then times it."""

    def time(case: Case, size: tuple, label: str) -> None:
        inputs, truth = _problem(case, size)
        maker, _, backend = label.partition(f"{contenders.OURS}, ")
        copies, moved = measure.copies_of(case, inputs)
        with torch.set_grad_enabled(case.recorded):
            if label in copies:
                call, bytes_moved = copies[label], moved[label]
            else:
                if backend:
                    maker = contenders.OURS
                    monkeypatch.setenv("OFA_BACKEND", backend)
                try:
                    kernels = kernels_for(inputs.x.detach())
                except RuntimeError as reason:  # the backend can't run here
                    pytest.skip(str(reason))
                try:
                    call = measure.checked_call(case, maker, inputs, kernels, truth)
                except contenders.UnavailableError as reason:
                    pytest.skip(str(reason))
                bytes_moved = measure.bytes_of(case, inputs)
            benchmark.group = f"{case.name}, {inputs.rows} x {inputs.columns}, {inputs.dtype_name}"
            benchmark.extra_info.update(
                label=label,
                baseline=label == case.eager,
                copy=label == measure.full_rate(case),
                bytes=bytes_moved,
            )
            # a round of a small tensor is repeated until it takes about as long as one of the largest
            iterations = max(1, ELEMENTS_A_ROUND // (inputs.x.numel() * inputs.k))
            benchmark.pedantic(_waiting(call), rounds=7, warmup_rounds=2, iterations=iterations)

    return time
