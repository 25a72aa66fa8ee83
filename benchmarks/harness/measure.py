"""One table: make the contenders of a case, find them right, time them in turns."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from torch._dynamo.utils import counters

from benchmarks.harness import contenders
from benchmarks.harness.case import OURS, Case
from benchmarks.harness.inputs import Inputs
from benchmarks.harness.interleave import Pace, interleave
from benchmarks.harness.tables import Group, entries
from benchmarks.harness.traffic import OPERATORS
from benchmarks.harness.truth import Expected, as_results, expected, rounding_errors

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


def fault(case: Case, label: str, call: Callable[[], object], inputs: Inputs, truth: Expected) -> str | None:
    """What is wrong with a contender's results, or None."""
    results = as_results(call())
    if label in case.draws:
        results, truth = (results[0].abs(),), Expected((truth.by_row[0].abs(),), (), truth.rows)
    errors = rounding_errors(results, truth, inputs, case.cancellation)
    return None if errors <= 1 else f"wrong by {errors:.2g} times what rounding explains; not timed"


def checked_call(
    case: Case, label: str, inputs: Inputs, kernels: ModuleType | None, truth: Expected
) -> Callable[[], object]:
    """A contender's call, found right.

    Raises:
        UnavailableError: it can't run here, is wrong, or was not compiled although it says so.
    """
    before = _compiled_graphs()
    try:
        call = case.makers[label](inputs, kernels)
        wrong = fault(case, label, call, inputs, truth)
    except contenders.UnavailableError:
        raise
    except Exception as error:  # other people's code may raise anything
        if label in OURS:
            raise
        raise contenders.UnavailableError(first_line(error)) from error
    if wrong and label in OURS:
        size = f"{inputs.rows} x {inputs.columns}, {inputs.dtype_name}"
        raise WrongError(f"{case.name}, {size}: {label} is {wrong}")
    if wrong:
        raise contenders.UnavailableError(wrong)
    if "torch.compile" in label and _compiled_graphs() == before:
        raise contenders.UnavailableError("torch.compile compiled nothing")
    return call


def bytes_of(case: Case, inputs: Inputs) -> int:
    """What the case's operator has to move at this size."""
    return OPERATORS[case.operator].bytes(inputs.rows, inputs.columns, inputs.dtype, k=inputs.k)


def copies_of(case: Case, inputs: Inputs) -> tuple[dict[str, Callable[[], object]], dict[str, int]]:
    """The copies that set 100 %, and the bytes they move.

    Fresh memory costs by amount: K tangents are compared with a copy of K tensors. On a CPU, where it may
    cost more than the copying, a copy without fresh memory is there to compare with, and sets nothing.
    """
    x = inputs.x.detach()
    calls: dict[str, Callable[[], object]] = {COPY: x.clone}
    moved = {COPY: 2 * x.nbytes}
    if inputs.device == "cpu":
        target = x.clone()
        calls[COPY_WARM], moved[COPY_WARM] = lambda: target.copy_(x), 2 * x.nbytes
    if case.k > 1:
        stacked = inputs.x_dot.detach()
        calls[COPY_K], moved[COPY_K] = stacked.clone, 2 * stacked.nbytes
    return calls, moved


def full_rate(case: Case) -> str:
    """The copy whose rate is 100 %."""
    return COPY_K if case.k > 1 else COPY


@dataclass(frozen=True)
class Prepared:
    """A case's contenders at one size, found right and ready to be timed.

    Attributes:
        calls: by contender, the copies first.
        moved: the bytes that each has to move.
        notes: contenders that can't be timed, and why.
    """

    case: Case
    inputs: Inputs
    calls: dict[str, Callable[[], object]]
    moved: dict[str, int]
    notes: dict[str, str]

    def time(self, pace: Pace) -> dict[str, list[float]]:
        """Seconds a call of every contender, in turns."""
        graphs = _compiled_graphs()
        with torch.set_grad_enabled(self.case.recorded):
            times = interleave(self.calls, pace)
        if _compiled_graphs() != graphs:
            raise RuntimeError(f"{self.case.name}: torch.compile compiled again while it was timed")
        return times

    def group(self, times: Mapping[str, Sequence[float]]) -> Group:
        """The table of these times."""
        case, inputs = self.case, self.inputs
        rows = entries(times, self.moved, COPY, full_rate(case), case.eager, self.notes)
        return Group(case.name, inputs.rows, inputs.columns, inputs.dtype_name, tuple(rows))


def prepare(case: Case, inputs: Inputs, kernels: ModuleType | None, skip: Collection[str] = ()) -> Prepared:
    """Make every contender's call, run it once, and find it right.

    Args:
        case: what is to be timed.
        inputs: the tensors.
        kernels: the backend's module, None for PyTorch's composition.
        skip: contenders to leave out without a word.

    Raises:
        WrongError: one of our own operators is wrong.
    """
    notes: dict[str, str] = {}
    with torch.set_grad_enabled(case.recorded):
        calls, moved = copies_of(case, inputs)
        with torch.no_grad():
            truth = expected(inputs, case.truth)
        for label in case.makers:
            if label in skip:
                continue
            try:
                calls[label] = checked_call(case, label, inputs, kernels, truth)
                moved[label] = bytes_of(case, inputs)
            except contenders.UnavailableError as reason:
                notes[label] = str(reason)
    return Prepared(case, inputs, calls, moved, notes)


def measure(
    case: Case,
    inputs: Inputs,
    kernels: ModuleType | None,
    pace: Pace,
    skip: Collection[str] = (),
) -> Group:
    """The table of one case at one size, timed as `pace` says; `prepare` has the other arguments."""
    prepared = prepare(case, inputs, kernels, skip)
    return prepared.group(prepared.time(pace))
