"""What the numbers depend on goes into the JSON beside them."""

import ctypes
import importlib.metadata

import pytest
import torch

# glibc's names for mallopt, and where both thresholds end in a process that has freed a large tensor
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MMAP_THRESHOLD_MAX = 32 * 2**20


@pytest.fixture(autouse=True, scope="session")
def settled_allocator():
    """Start where glibc's thresholds for fresh pages settle in a process that trains.

    They adapt to what has been freed, so that the same code took 12 or 27 ms depending on what ran before.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_MAX)
        mallopt(M_TRIM_THRESHOLD, 2 * MMAP_THRESHOLD_MAX)


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["torch"] = torch.__version__
    machine_info["torch_threads"] = torch.get_num_threads()
    machine_info["transformers"] = importlib.metadata.version("transformers")
