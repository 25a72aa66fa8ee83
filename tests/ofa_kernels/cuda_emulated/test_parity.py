"""Every CUDA kernel on an emulated device against float64: all types, lengths, strides, absences and sizes."""

import pytest

from tests.ofa_kernels.cuda_emulated.cases import ABSENT, pairwise
from tests.ofa_kernels.cuda_emulated.checks import check
from tests.ofa_kernels.cuda_emulated.driver import LAYOUTS


def test_every_operator_has_its_cases():
    assert list(ABSENT) == list(LAYOUTS)


@pytest.mark.parametrize("operator", ABSENT)
def test_parity(library, operator):
    if operator not in library:
        pytest.skip("to be written")
    for case in pairwise(operator):
        try:
            check(library, case)
        except AssertionError as error:
            raise AssertionError(f"{case}: {error}") from error
