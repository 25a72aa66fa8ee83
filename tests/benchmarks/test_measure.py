from dataclasses import replace

import pytest
import torch

from benchmarks import measure, norms
from benchmarks.alternate import Pace
from benchmarks.cases import BOTH, FORWARD
from benchmarks.problem import Problem
from benchmarks.tangent_cases import tangents
from benchmarks.truth import Expected
from ofa_kernels import reference

PACE = Pace(0.0, (2, 2), iterations=1)


def fake(call):
    """A contender that does `call(problem)`."""
    return lambda problem, kernels: lambda: call(problem)


def forward(problem):
    return reference.rms_norm(problem.x, problem.gamma, norms.EPS)


def case_with(**makers):
    return replace(FORWARD, makers={norms.EAGER: fake(forward), **makers})


@pytest.fixture
def problem():
    return Problem(3, 16, torch.float32)


def test_a_table(problem):
    group = measure.measure(case_with(**{norms.OURS: fake(forward)}), problem, None, PACE)
    assert str(group) == "forward, 3 x 16, float32"
    labels = [entry.label for entry in group.entries]
    assert labels == [measure.COPY, measure.COPY_WARM, norms.EAGER, norms.OURS]
    assert group.entries[2].per_eager == 1.0
    assert group.entries[3].bytes == 2 * 3 * 16 * 4 + 16 * 4


def test_others_that_are_wrong_or_fail_are_not_timed(problem):
    def broken(problem):
        raise RuntimeError("no double backward\nat line 1")

    case = case_with(wrong=fake(lambda p: forward(p) * 1.01), broken=fake(broken))
    group = measure.measure(case, problem, None, PACE)
    notes = {entry.label: entry.note for entry in group.entries if entry.median is None}
    assert notes["wrong"].startswith("wrong by") and notes["wrong"].endswith("not timed")
    assert notes["broken"] == "raises RuntimeError: no double backward"


def test_ours_wrong_is_an_error(problem):
    case = case_with(**{norms.OURS: fake(lambda p: forward(p) * 1.01)})
    with pytest.raises(measure.WrongError, match="forward, 3 x 16, float32: ofa_kernels is wrong by"):
        measure.measure(case, problem, None, PACE)


def test_ours_failing_is_an_error(problem):
    def broken(problem):
        raise RuntimeError("launch failed")

    with pytest.raises(RuntimeError, match="launch failed"):
        measure.measure(case_with(**{norms.OURS: fake(broken)}), problem, None, PACE)


def test_what_only_says_that_it_is_compiled_is_not_timed(problem):
    case = case_with(**{norms.COMPILED: fake(forward)})
    entry = measure.measure(case, problem, None, PACE).entries[-1]
    assert (entry.label, entry.note) == (norms.COMPILED, "torch.compile compiled nothing")


def test_skipped_contenders_are_not_mentioned(problem):
    group = measure.measure(case_with(other=fake(forward)), problem, None, PACE, skip=("other",))
    assert "other" not in [entry.label for entry in group.entries]


def test_k_tangents_are_compared_with_a_copy_of_k_tensors():
    case, problem = tangents(4, with_dy=False), Problem(3, 16, torch.float32, 4)
    calls, moved = measure.copies_of(case, problem)
    assert calls[measure.COPY_K]().shape == (4, 3, 16)
    assert moved[measure.COPY_K] == 4 * moved[measure.COPY] == 4 * 2 * 3 * 16 * 4
    assert measure.full_rate(case) == measure.COPY_K
    assert measure.full_rate(BOTH) == measure.COPY


def test_a_contender_with_random_signs_is_checked_by_size(problem):
    case = replace(case_with(), draws=("signs",))
    truth = Expected((forward(problem).detach().double(),), (), torch.arange(3))

    def negated(p):
        return -forward(p), "nothing that could be checked"

    assert measure.fault(case, "signs", lambda: negated(problem), problem, truth) is None
    assert measure.fault(case, "signs", lambda: (2 * forward(problem),), problem, truth) is not None
