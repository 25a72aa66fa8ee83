from dataclasses import replace

import pytest
import torch

from benchmarks.cases.rms_norm import BOTH, FORWARD
from benchmarks.cases.tangents import tangents
from benchmarks.harness import contenders, measure
from benchmarks.harness.inputs import Inputs
from benchmarks.harness.interleave import Pace
from benchmarks.harness.truth import Expected
from ofa_kernels import reference

PACE = Pace(0.0, (2, 2), iterations=1)


def fake(call):
    """A contender that does `call(inputs)`."""
    return lambda inputs, kernels: lambda: call(inputs)


def forward(inputs):
    return reference.rms_norm(inputs.x, inputs.gamma, contenders.EPS)


def case_with(**makers):
    return replace(FORWARD, makers={contenders.EAGER: fake(forward), **makers})


@pytest.fixture
def inputs():
    return Inputs(3, 16, torch.float32)


def test_a_table(inputs):
    group = measure.measure(case_with(**{contenders.OURS: fake(forward)}), inputs, None, PACE)
    assert str(group) == "forward, 3 x 16, float32"
    labels = [entry.label for entry in group.entries]
    assert labels == [measure.COPY, measure.COPY_WARM, contenders.EAGER, contenders.OURS]
    assert group.entries[2].per_eager == 1.0
    assert group.entries[3].bytes == 2 * 3 * 16 * 4 + 16 * 4


def test_others_that_are_wrong_or_fail_are_not_timed(inputs):
    def broken(inputs):
        raise RuntimeError("no double backward\nat line 1")

    case = case_with(wrong=fake(lambda p: forward(p) * 1.01), broken=fake(broken))
    group = measure.measure(case, inputs, None, PACE)
    notes = {entry.label: entry.note for entry in group.entries if entry.median is None}
    assert notes["wrong"].startswith("wrong by") and notes["wrong"].endswith("not timed")
    assert notes["broken"] == "raises RuntimeError: no double backward"


def test_ours_wrong_is_an_error(inputs):
    case = case_with(**{contenders.OURS: fake(lambda p: forward(p) * 1.01)})
    with pytest.raises(measure.WrongError, match="forward, 3 x 16, float32: ofa_kernels is wrong by"):
        measure.measure(case, inputs, None, PACE)


def test_ours_failing_is_an_error(inputs):
    def broken(inputs):
        raise RuntimeError("launch failed")

    with pytest.raises(RuntimeError, match="launch failed"):
        measure.measure(case_with(**{contenders.OURS: fake(broken)}), inputs, None, PACE)


def test_what_only_says_that_it_is_compiled_is_not_timed(inputs):
    case = case_with(**{contenders.COMPILED: fake(forward)})
    entry = measure.measure(case, inputs, None, PACE).entries[-1]
    assert (entry.label, entry.note) == (contenders.COMPILED, "torch.compile compiled nothing")


def test_skipped_contenders_are_not_mentioned(inputs):
    group = measure.measure(case_with(other=fake(forward)), inputs, None, PACE, skip=("other",))
    assert "other" not in [entry.label for entry in group.entries]


def test_k_tangents_are_compared_with_a_copy_of_k_tensors():
    case, inputs = tangents(4, with_dy=False), Inputs(3, 16, torch.float32, 4)
    calls, moved = measure.copies_of(case, inputs)
    assert calls[measure.COPY_K]().shape == (4, 3, 16)
    assert moved[measure.COPY_K] == 4 * moved[measure.COPY] == 4 * 2 * 3 * 16 * 4
    assert measure.full_rate(case) == measure.COPY_K
    assert measure.full_rate(BOTH) == measure.COPY


def test_a_contender_with_random_signs_is_checked_by_size(inputs):
    case = replace(case_with(), draws=("signs",))
    truth = Expected((forward(inputs).detach().double(),), (), torch.arange(3))

    def negated(p):
        return -forward(p), "nothing that could be checked"

    assert measure.fault(case, "signs", lambda: negated(inputs), inputs, truth) is None
    assert measure.fault(case, "signs", lambda: (2 * forward(inputs),), inputs, truth) is not None
