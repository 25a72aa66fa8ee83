"""One table: make the contenders of a case, find them right, time them in turns."""

from collections.abc import Callable, Collection
from types import ModuleType

import torch
from torch._dynamo.utils import counters

from benchmarks import norms
from benchmarks.alternate import Pace, alternate
from benchmarks.cases import OURS, Case
from benchmarks.problem import Problem
from benchmarks.table import Group, entries
from benchmarks.traffic import OPERATORS
from benchmarks.truth import Expected, as_results, expected, rounding_errors

COPY = "copy: x.clone()"
COPY_K = "copy of K such tensors"
COPY_WARM = "copy_ into memory in use"


class WrongError(Exception):
    """One of our own operators is wrong; nothing is timed."""


def _compiled_graphs() -> int:
    return counters["stats"]["unique_graphs"]


def first_line(error: BaseException) -> str:
    """An error in one line."""
    text = str(error).strip().splitlines() or [""]
    return f"raises {type(error).__name__}: {text[0]}"[:140]


def fault(
    case: Case, label: str, call: Callable[[], object], problem: Problem, truth: Expected
) -> str | None:
    """What is wrong with a contender's results, or None."""
    results = as_results(call())
    if label in case.draws:
        results, truth = (results[0].abs(),), Expected((truth.by_row[0].abs(),), (), truth.rows)
    errors = rounding_errors(results, truth, problem, case.cancellation)
    return None if errors <= 1 else f"wrong by {errors:.2g} times what rounding explains; not timed"


def checked_call(
    case: Case, label: str, problem: Problem, kernels: ModuleType | None, truth: Expected
) -> Callable[[], object]:
    """A contender's call, found right.

    Raises:
        UnavailableError: it can't run here, is wrong, or was not compiled although it says so.
    """
    before = _compiled_graphs()
    try:
        call = case.makers[label](problem, kernels)
        found = fault(case, label, call, problem, truth)
    except norms.UnavailableError:
        raise
    except Exception as error:  # other people's code may raise anything
        if label in OURS:
            raise
        raise norms.UnavailableError(first_line(error)) from error
    if found and label in OURS:
        size = f"{problem.rows} x {problem.columns}, {problem.dtype_name}"
        raise WrongError(f"{case.name}, {size}: {label} is {found}")
    if found:
        raise norms.UnavailableError(found)
    if "torch.compile" in label and _compiled_graphs() == before:
        raise norms.UnavailableError("torch.compile compiled nothing")
    return call


def bytes_of(case: Case, problem: Problem) -> int:
    """What the case's operator has to move at this size."""
    return OPERATORS[case.operator].bytes(problem.rows, problem.columns, problem.dtype, k=problem.k)


def copies_of(case: Case, problem: Problem) -> tuple[dict[str, Callable[[], object]], dict[str, int]]:
    """The copies that set 100 %, and the bytes they move.

    Fresh memory costs by amount: K tangents are compared with a copy of K tensors. On a CPU, where it may
    cost more than the copying, a copy without fresh memory is there to compare with, and sets nothing.
    """
    x = problem.x.detach()
    calls, moved = {COPY: x.clone}, {COPY: 2 * x.nbytes}
    if problem.device == "cpu":
        target = x.clone()
        calls[COPY_WARM], moved[COPY_WARM] = lambda: target.copy_(x), 2 * x.nbytes
    if case.k > 1:
        stacked = problem.x_dot.detach()
        calls[COPY_K], moved[COPY_K] = stacked.clone, 2 * stacked.nbytes
    return calls, moved


def full_rate(case: Case) -> str:
    """The copy whose rate is 100 %."""
    return COPY_K if case.k > 1 else COPY


def measure(
    case: Case,
    problem: Problem,
    kernels: ModuleType | None,
    pace: Pace,
    skip: Collection[str] = (),
) -> Group:
    """The table of one case at one size.

    Args:
        case: what to time.
        problem: the tensors.
        kernels: the backend's module, None for PyTorch's composition.
        pace: how long and how often to time.
        skip: contenders to leave out without a word.

    Raises:
        WrongError: one of our own operators is wrong.
    """
    notes: dict[str, str] = {}
    with torch.set_grad_enabled(case.recorded):
        calls, moved = copies_of(case, problem)
        with torch.no_grad():
            truth = expected(problem, case.truth)
        for label in case.makers:
            if label in skip:
                continue
            try:
                calls[label] = checked_call(case, label, problem, kernels, truth)
                moved[label] = bytes_of(case, problem)
            except norms.UnavailableError as reason:
                notes[label] = str(reason)
        del truth
        graphs = _compiled_graphs()
        times = alternate(calls, pace)
    if _compiled_graphs() != graphs:
        raise RuntimeError(f"{case.name}: torch.compile compiled again while it was timed")
    rows = entries(times, moved, COPY, full_rate(case), case.eager, notes)
    return Group(case.name, problem.rows, problem.columns, problem.dtype_name, tuple(rows))
