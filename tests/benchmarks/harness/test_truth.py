import pytest
import torch

from benchmarks.cases.rms_norm import BOTH, FORWARD
from benchmarks.harness.contenders import EPS
from benchmarks.harness.inputs import Inputs
from benchmarks.harness.truth import CHECKED, CHUNKS, as_results, expected, rounding_errors
from ofa_kernels import reference


@pytest.fixture
def inputs():
    return Inputs(9, 8, torch.float32)


def results(inputs):
    x, w, dy = (t.detach() for t in (inputs.x, inputs.gamma, inputs.dy))
    return [reference.rms_norm(x, w, EPS), *reference.rms_norm_backward(x, w, dy, EPS)]


@pytest.mark.parametrize("checked", [2**21, 32, 0])
def test_sums_are_over_all_rows_however_many_are_checked(inputs, checked, monkeypatch):
    monkeypatch.setitem(CHECKED, "cpu", checked)
    monkeypatch.setitem(CHUNKS, "cpu", 16)
    true = expected(inputs, BOTH.truth)
    x, w, dy = (t.detach().double() for t in (inputs.x, inputs.gamma, inputs.dy))
    _, dw = reference.rms_norm_backward(x, w, dy, EPS)
    torch.testing.assert_close(true.sums[0], dw, rtol=1e-5, atol=1e-5)
    assert true.rows.tolist() == {2**21: list(range(9)), 32: [0, 2, 5, 8], 0: [0, 8]}[checked]
    torch.testing.assert_close(true.by_row[0], reference.rms_norm(x, w, EPS)[true.rows])
    assert rounding_errors(results(inputs), true, inputs) <= 1


@pytest.mark.parametrize("result", [0, 1, 2])
@pytest.mark.parametrize("wrong", [1.001, float("nan"), float("inf")])
def test_one_wrong_row_is_seen(inputs, result, wrong):
    true, got = expected(inputs, BOTH.truth), results(inputs)
    got[result][-1] *= wrong
    assert rounding_errors(got, true, inputs) > 1


def test_what_is_not_a_number_is_seen_in_rows_that_are_not_compared(inputs, monkeypatch):
    monkeypatch.setitem(CHECKED, "cpu", 0)
    true, got = expected(inputs, FORWARD.truth), results(inputs)[:1]
    got[0][4, 3] = float("nan")
    assert rounding_errors(got, true, inputs) == float("inf")


def test_a_missing_row_or_result_is_refused(inputs):
    true, got = expected(inputs, BOTH.truth), results(inputs)
    with pytest.raises(ValueError, match="9 rows"):
        rounding_errors([got[0][1:], *got[1:]], true, inputs)
    with pytest.raises(ValueError, match="shape"):
        rounding_errors([*got[:2], got[2][1:]], true, inputs)
    with pytest.raises(ValueError, match="longer"):
        rounding_errors(got[:2], true, inputs)


def test_cancellation_widens_the_tolerance(inputs):
    true, got = expected(inputs, FORWARD.truth), results(inputs)[:1]
    got[0] *= 1.001
    assert rounding_errors(got, true, inputs, cancellation=1e4) < 1 < rounding_errors(got, true, inputs)


def test_a_list_of_tangents_is_stacked():
    one, two = torch.zeros(2), torch.ones(3)
    assert [t.shape for t in as_results([(one, two), (one, two)])] == [(2, 2), (2, 3)]
    assert as_results(one) == (one,)
