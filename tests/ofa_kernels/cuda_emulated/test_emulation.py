"""The emulated device itself: what it calls a fault, and what it does in more than one way."""

import ctypes
from pathlib import Path

import pytest

from tests.ofa_kernels.cuda_emulated.driver import Device, Library
from tools import emulation

SEEDS = range(1, 21)
# kernel of faults.cu -> the fault, which some order of threads meets or every one
FAULTS = {
    "a thread that leaves before a barrier": "a barrier that not all threads of the block reach",
    "a block that leaves before the cluster's barrier": "a barrier that not all threads of the cluster reach",
    "a lane that is not in a shuffle": "a shuffle in which not all lanes take part",
    "lanes at another barrier than the shuffle": "lanes",
    "a lane that leaves before the warp's barrier": "a barrier that not all lanes of the warp reach",
    "a vector read across two": "a vector that is not aligned (thread",
    "a vector written across two": "a vector that is not aligned (thread",
    "a copy from across two": "a vector that is not aligned (thread",
    "a write behind shared memory": "a write past the end of shared memory",
    "a sum behind shared memory": "a write past the end of shared memory",
    "a block that is not there": "a block that is not in the cluster (thread",
    "a delivery that has not begun": "a delivery that has not begun (thread",
    "a delivery of which a part is not sent": "a delivery of which not all is sent",
    "a place that is not in shared memory": "a place in another block that is not in shared memory (thread",
}
SOMETIMES = {
    "a block that may not have begun": "the shared memory of a block that has not begun (thread",
    "a block that may have ended": "the shared memory of a block that has ended (thread",
}
# kernel -> what it sees, in one order of threads or another
SEEN = {
    "whether a copy has arrived before it is waited for": {0, 1},
    "a copy that is waited for, and what follows it": {21},
    "whether a value has arrived before its delivery has": {0, 1},
    "whether shared memory is NaN": {4 * 64},
    "which block runs last": {0, 1, 2, 3},
    "which warp runs last": {0, 1},
    "which lane runs last": {0, 31},
}


@pytest.fixture(scope="module")
def kernels(emulated_library):  # where that could be built, this can
    library = Library(emulation.library(kernels=[Path(__file__).with_name("faults.cu")]))
    functions = library.functions
    for function in (functions.kernel_name, functions.kernel_fault, functions.launch_fault):
        function.restype = ctypes.c_char_p
    functions.kernel_seen.restype = ctypes.c_double
    return library


def names(library):
    return [library.functions.kernel_name(i).decode() for i in range(library.functions.kernel_count())]


def outcomes(library, name):
    """[fault, seen] of a kernel for each order of threads."""
    number = names(library).index(name)
    for seed in SEEDS:
        library.configure(Device(64), seed)
        yield library.functions.kernel_fault(number).decode(), library.functions.kernel_seen()


def test_every_kernel_is_tested(kernels):
    assert names(kernels) == [name for name in names(kernels) if name in FAULTS | SOMETIMES | SEEN]
    assert len(names(kernels)) == len(FAULTS | SOMETIMES | SEEN)


@pytest.mark.parametrize("name", FAULTS)
def test_fault_in_every_order(kernels, name):
    assert all(FAULTS[name] in fault for fault, _ in outcomes(kernels, name))


@pytest.mark.parametrize("name", SOMETIMES)
def test_fault_in_some_order(kernels, name):
    faults = {fault[: len(SOMETIMES[name])] for fault, _ in outcomes(kernels, name)}
    assert SOMETIMES[name] in faults <= {"", SOMETIMES[name]}


@pytest.mark.parametrize("name", SEEN)
def test_what_threads_see(kernels, name):
    found = list(outcomes(kernels, name))
    assert {fault for fault, _ in found} == {""}
    assert {seen for _, seen in found} == SEEN[name]


def test_a_seed_decides(kernels):
    name = "which block runs last"
    assert list(outcomes(kernels, name)) == list(outcomes(kernels, name))


@pytest.mark.parametrize(
    ("sizes", "fault"),
    [
        ((4, 64, 2, 227 * 1024), ""),
        ((4, 64, 2, 227 * 1024 + 1), "more shared memory than a block may have"),
        ((4, 65, 1, 0), "a bad launch"),
        ((4, 2048, 1, 0), "a bad launch"),
        ((4, 0, 1, 0), "a bad launch"),
        ((0, 64, 1, 0), "a bad launch"),
        ((3, 64, 2, 0), "a bad launch"),
    ],
    ids=str,
)
def test_launches(kernels, sizes, fault):
    kernels.configure(Device(64), 1)
    assert kernels.functions.launch_fault(*map(ctypes.c_int64, sizes)).decode() == fault
