"""The emulated library, where a C++ compiler is there."""

import pytest

from tests.ofa_kernels.cuda_emulated.driver import Library
from tools import emulation


@pytest.fixture(autouse=True)
def device():
    """What the kernels take for a device's memory is the host's."""
    return "cpu"


@pytest.fixture(scope="session")
def library():
    try:
        return Library(emulation.library())
    except emulation.UnavailableError as error:
        pytest.skip(str(error))
