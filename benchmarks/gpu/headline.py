"""Seven shapes, four operators: ours, its kernels alone, and the others, by graph replay.

A graph holds one call after the other on as many sets of tensors as the cache can't hold, so that what is
timed is the kernels, with the gap of about a microsecond that a graph leaves between them, and not the host.
The unit is a copy of the bytes that the operator has to move, timed the same way.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

import torch

from benchmarks.cases.rms_norm import BACKWARD, FORWARD
from benchmarks.cases.tangents import JVP, tangents
from benchmarks.gpu.card import Card
from benchmarks.gpu.section import Rows, Table, Task
from benchmarks.harness import contenders
from benchmarks.harness.case import OURS, Case
from benchmarks.harness.inputs import Inputs
from benchmarks.harness.interleave import Label, interleave
from benchmarks.harness.measure import WrongError, bytes_of, checked_call, first_line
from benchmarks.harness.tables import Entry, Group, entries, summaries
from benchmarks.harness.truth import Expected, expected
from ofa_kernels.dispatch import kernels_for

K = 16
TANGENTS = tangents(K, with_dy=True)
CASES = (FORWARD, BACKWARD, JVP, TANGENTS)
# what each operator launches: a parity test that any of them failed takes our rows away
KERNELS = {
    FORWARD.operator: ("rms_norm_forward",),
    BACKWARD.operator: ("rms_norm_backward", "sum_partials"),
    JVP.operator: ("rms_norm_forward", "rms_norm_jvp"),
    TANGENTS.operator: ("rms_norm_backward_tangent", "sum_partials"),
}
SHAPES = (
    (64, 4096),
    (4096, 4096),
    (16384, 4096),
    (4096, 8192),
    (2048, 16384),
    (1024, 32768),
    (512, 65536),
)
REHEARSED = ((3, 128), (2, 160)), (FORWARD, BACKWARD, JVP, tangents(2, with_dy=True))
LABELS = (*OURS, contenders.EAGER, contenders.FUNCTIONAL, contenders.LIGER)
DTYPE = torch.bfloat16
COPY = "copy of the same bytes"
SECONDS_A_CONTENDER = 0.4  # made, found right, captured and timed, on the high side


@dataclass(frozen=True)
class Item:
    """One table to make."""

    case: Case
    rows: int
    columns: int

    def inputs(self, device: str) -> Inputs:
        """Its tensors."""
        return Inputs(self.rows, self.columns, DTYPE, self.case.k, device)


def items(shapes: Sequence[tuple[int, int]] = SHAPES, cases: Sequence[Case] = CASES) -> list[Item]:
    """Shape by shape, the tangents last, since they take longest."""
    plan = [Item(case, *shape) for shape in shapes for case in cases]
    return sorted(plan, key=lambda item: item.case.k)


def estimate() -> float:
    """Seconds of all tables, the kernels' compilation apart."""
    return len(items()) * (1 + len(LABELS)) * SECONDS_A_CONTENDER


def launches() -> Iterator[Callable[[], object]]:
    """What our kernels are called with, on tensors without memory: for compiling ahead."""
    from ofa_kernels.triton import launch

    for item in items():
        yield item.case.makers[contenders.KERNELS_ALONE](item.inputs("meta"), launch)


def copy(card: Card, moved: int, sets: int) -> Callable[[], object]:
    """A function that copies `moved` / 2 bytes between each of so many pairs of tensors."""
    pairs = [torch.empty(2, max(moved // 2, 1), dtype=torch.uint8, device=card.device) for _ in range(sets)]
    for pair in pairs:
        pair.random_()
    return lambda: [pair[0].copy_(pair[1]) for pair in pairs]


def _replay(
    card: Card,
    case: Case,
    label: str,
    input_sets: Sequence[Inputs],
    kernels: ModuleType | None,
    truth: Expected,
) -> Callable[[], object]:
    """A contender's graph: found right on the first inputs, then captured on all of them.

    Raises:
        WrongError: it is ours, and wrong.
        UnavailableError: it can't be timed.
    """
    try:
        first = checked_call(case, label, input_sets[0], kernels, truth)
        calls = [first, *(case.makers[label](inputs, kernels) for inputs in input_sets[1:])]
        for call in calls:  # making the others may have thrown away what was compiled for the first
            call()
        return card.graph(lambda: [call() for call in calls])
    except (contenders.UnavailableError, WrongError):
        raise
    except Exception as error:  # code may refuse to be captured in its own way
        raise contenders.UnavailableError(first_line(error)) from error


def measure(card: Card, item: Item, labels: Sequence[str], kernels: ModuleType | None) -> Group:
    """The table of one case at one shape: every contender found right, then all in turns.

    Raises:
        WrongError: one of ours is wrong.
    """
    case = item.case
    notes: dict[str, str] = {}
    input_sets = [item.inputs(card.device)]
    moved = bytes_of(case, input_sets[0])
    sets = card.rotations(moved)
    input_sets += [item.inputs(card.device) for _ in range(sets - 1)]
    with card.on_stream(), torch.set_grad_enabled(case.recorded):
        with torch.no_grad():
            truth = expected(input_sets[0], case.truth)
        replays = {COPY: card.graph(copy(card, moved, sets))}
        for label in labels:
            with remember(notes, label):
                replays[label] = _replay(card, case, label, input_sets, kernels, truth)
        times = interleave(replays, card.pace(0.5, (5, 51), 50))
    times = {label: [seconds / sets for seconds in of_label] for label, of_label in times.items()}
    bytes_moved = dict.fromkeys(times, moved) | {COPY: 2 * max(moved // 2, 1)}
    lines = entries(times, bytes_moved, COPY, COPY, case.eager, notes)
    return Group(case.name, item.rows, item.columns, input_sets[0].dtype_name, tuple(lines))


@contextmanager
def remember(notes: dict[Label, str], label: Label) -> Iterator[None]:
    """Why a contender can't be timed goes into the notes."""
    try:
        yield
    except contenders.UnavailableError as reason:
        notes[label] = str(reason)


def _without_ours(labels: Sequence[str], case: Case, wrong: Sequence[str]) -> tuple[list[str], str]:
    """The labels to time, and why ours are not among them."""
    doubted = [kernel for kernel in KERNELS[case.operator] if kernel in wrong]
    if not doubted:
        return list(labels), ""
    return [label for label in labels if label not in OURS], f"a parity test failed: {', '.join(doubted)}"


def table_rows(card: Card, task: Task, plan: Sequence[Item], labels: Sequence[str]) -> Rows:
    """A row for each item: its table, or why there is none."""
    for item in plan:
        row = {"kind": "table", "case": item.case.name, "rows": item.rows, "columns": item.columns}
        yield row | _table(card, item, *_without_ours(labels, item.case, task.wrong))
        card.empty_cache()


def _table(card: Card, item: Item, labels: Sequence[str], note: str) -> dict:
    kernels = kernels_for(torch.empty(1, 1, device=card.device))
    try:
        try:
            group = measure(card, item, labels, kernels)
        except WrongError as error:
            note = str(error)
            group = measure(card, item, [label for label in labels if label not in OURS], kernels)
        return {"group": group.to_json(), "note": note}
    except Exception as error:  # the other shapes are worth having all the same
        return {"note": first_line(error)}


def rows(card: Card, task: Task) -> Rows:
    """All tables."""
    yield from table_rows(card, task, items(*REHEARSED) if card.rehearsal else items(), LABELS)


def group_of(row: dict) -> Group:
    """A row's table."""
    group = row["group"]
    return Group(**{**group, "entries": tuple(Entry(**entry) for entry in group["entries"])})


def tables(found: Sequence[dict]) -> list[Table]:
    """What ours costs at each shape, a table a case; then whatever was not timed, and why."""
    of_rows = [row for row in found if row["kind"] == "table"]
    lists = summaries(group_of(row) for row in of_rows if "group" in row)
    notes: dict[tuple[str, str], int] = {}
    for row in of_rows:
        said = [(row["case"], row["note"])] if row["note"] else []
        said += [(f"{row['case']}: {e['label']}", e["note"]) for e in row.get("group", {}).get("entries", ())]
        for note in said:
            if note[1]:
                notes[note] = notes.get(note, 0) + 1
    cells = [(*note, str(count)) for note, count in notes.items()]
    return lists + ([("Not timed", ("what", "why", "shapes"), cells)] if cells else [])


def finding(found: Sequence[dict]) -> str:
    """The share of a copy's rate that each of our operators reaches, from its worst to its best shape."""
    shares: dict[str, list[float]] = {}
    for row in found:
        for entry in row.get("group", {}).get("entries", ()):
            if entry["label"] == contenders.KERNELS_ALONE and entry["percent_of_copy"]:
                shares.setdefault(row["case"], []).append(entry["percent_of_copy"])
    return "; ".join(f"{case} {min(of):.0f}–{max(of):.0f} % of copy" for case, of in shares.items())
