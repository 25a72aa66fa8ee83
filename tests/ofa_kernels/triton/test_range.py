"""The Triton kernels where one of their arguments is large or small, against float64.

Products of two that are large together overflow here, where the CPU kernels go on in double.
"""

import itertools

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from ofa_kernels.triton import launch
from tests.ofa_kernels.range_checks import OPERATORS, arguments, check_at

pytestmark = [
    pytest.mark.usefixtures("nan_poisoned_empty"),
    pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning"),  # of the interpreter's NumPy
]


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.__name__)
def test_one_argument_of_any_size(device, operator):
    for name, scale in itertools.product(arguments(operator), [1e-38, 1e19, 1e37]):
        check_at({name: scale}, launch, operator, device=device)
