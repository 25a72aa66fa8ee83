"""The step lengths' operators as problems: their inputs, and the truth of what they write."""

import torch

from ofa_kernels import reference
from tests.ofa_kernels.bounds import doubles
from tests.ofa_kernels.cuda_emulated.checks import Problem, within
from tests.ofa_kernels.cuda_emulated.norms import of_rows


def walk(case, operands):
    """States [steps + 1, examples, columns] whose second step stands still; `tangents` is how many steps."""
    states = operands.rows("states", case.tangents + 1, case.rows, case.columns)
    if case.tangents > 1:
        for example in range(case.rows):  # one by one: they may be the same memory
            states[2, example] = states[1, example]
        operands.given("states", states)
    return states


def sizes(case):
    return {"steps": case.tangents, "examples": case.rows}


def step_lengths(case, operands):
    states = walk(case, operands)

    def check(got):
        truth = reference.step_lengths(states.double())
        within(got["lengths"], truth, truth, states, got["lengths"].dtype)
        assert case.tangents < 2 or not got["lengths"][1].any()

    outputs = {"lengths": ((case.tangents, case.rows), operands.accumulator)}
    return Problem(sizes(case), {"states": states}, outputs, check)


def step_lengths_backward(case, operands):
    states = walk(case, operands)
    lengths = operands.given("lengths", reference.step_lengths(states.double()).to(operands.accumulator))
    dlengths = operands.flat("dlengths", (case.tangents, case.rows), operands.accumulator)

    def check(got):
        if not case.tangents:  # a state without steps
            assert not got["dstates"].any()
            return
        z, n, dn = doubles(states, lengths, dlengths)
        slopes = torch.where(n > 0, dn / n, 0).abs()
        pulls = torch.nn.functional.pad(z.diff(dim=0).abs() * slopes[..., None], (0, 0, 0, 0, 1, 1))
        truth = reference.step_lengths_backward(z, n, dn)
        within(got["dstates"], truth, pulls[1:] + pulls[:-1], states, case.dtype)

    inputs = {"states": states, "lengths": lengths, "dlengths": dlengths}
    return Problem(sizes(case), inputs, {"dstates": of_rows(case, case.tangents + 1)}, check)


PROBLEMS = {builder.__name__: builder for builder in (step_lengths, step_lengths_backward)}
