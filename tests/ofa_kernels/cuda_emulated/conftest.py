"""The emulated library, and where its tensors are."""

import pytest

from tests.ofa_kernels.cuda_emulated.driver import Library


@pytest.fixture(autouse=True)
def device():
    """What the kernels take for a device's memory is the host's."""
    return "cpu"


@pytest.fixture(scope="session")
def library(emulated_library):
    return Library(emulated_library)
