"""Every CUDA kernel on an emulated device against float64: types, lengths, strides, absences and devices."""

import pytest

from tests.ofa_kernels.cuda_emulated.cases import ABSENT, BF16, DEVICES, F32, Case, pairwise
from tests.ofa_kernels.cuda_emulated.checks import check, problem_of
from tests.ofa_kernels.cuda_emulated.driver import LAYOUTS

operators = pytest.mark.parametrize("operator", ABSENT)


def test_every_operator_has_its_cases():
    assert list(ABSENT) == list(LAYOUTS)


@pytest.mark.parametrize("case", [case for name in ABSENT for case in pairwise(name)], ids=str)
def test_parity(library, case):
    check(library, case)


@operators
def test_no_order_of_threads_changes_a_bit(library, operator):
    for device in DEVICES[1:]:
        case = Case(operator, BF16, rows=21, columns=250, tangents=3, device=device)
        check(library, case, seeds=(1, 1, *range(2, 8)))


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@operators
def test_one_argument_of_any_size(library, operator, dtype):
    usual = Case(operator, dtype, columns=70, tangents=2, device=DEVICES[2])
    inputs = problem_of(usual)[0].inputs
    for name in (
        name for name, t in inputs.items() if t.is_floating_point() and name not in ("rstd", "lengths")
    ):
        for factor in (0.0, 1e-38, 1e-30, 1e19, 1e30, 1e37):
            check(library, Case(operator, dtype, F32, 3, 70, 2, device=DEVICES[2], magnitude=(name, factor)))


@pytest.mark.parametrize(("rows", "tangents"), [(0, 1), (0, 3), (3, 0), (0, 0)])
@operators
def test_nothing_to_do(library, operator, rows, tangents):
    check(library, Case(operator, rows=rows, tangents=tangents))
