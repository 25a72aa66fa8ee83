"""Launch choices, measured one by one, so that `plan.py` can be rewritten from one run (`apply.py`).

For each kernel and row length: the present choice, then others that differ from it in the columns a program
holds, its warps, the registers of a thread, how many programs share the rows, or how deep their loop is
pipelined. Kernels alone, by graph replay, on tensors larger than the cache; each is found right first.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any
from unittest import mock

import torch

from benchmarks.cases.rms_norm import BACKWARD, FORWARD
from benchmarks.cases.tangents import JVP, tangents
from benchmarks.gpu.card import Card
from benchmarks.gpu.headline import COPY, DTYPE, KERNELS, copy, remember
from benchmarks.gpu.section import Rows, Table, Task
from benchmarks.harness import contenders
from benchmarks.harness.case import Case
from benchmarks.harness.inputs import Inputs
from benchmarks.harness.interleave import interleave
from benchmarks.harness.measure import bytes_of, fault, first_line
from benchmarks.harness.truth import Expected, expected

K = 4  # tangents: enough to fill the kernel's loop; 16 take four times as long
TANGENTS = tangents(K, with_dy=True)
# by the name of the kernel's Residency in plan.py; the row lengths that matter most first
CASES = {
    "FORWARD": (FORWARD, (4096, 8192, 16384, 32768, 65536, 2048, 576)),
    "BACKWARD": (BACKWARD, (4096, 8192, 16384, 32768, 65536, 2048, 576)),
    "JVP": (JVP, (4096, 8192, 16384, 65536)),
    "TANGENT": (TANGENTS, (4096, 8192, 16384, 65536)),
}
REHEARSED = 1024, 3  # columns and rows
ELEMENTS = 2**25  # of x: 64 MiB in bfloat16
UNIT = 8  # the rows' lengths are multiples of it, which fills a load of 16 bytes
WARPS = (4, 8, 16, 32)
WARP_THREADS, REGISTER_FILE = 32, 65536
FEWEST_COLUMNS, MOST_COLUMNS = 8, 32  # of a thread: others spill, or leave it with less than one wide load
BLOCKS = (2048, 4096, 8192)
LONGEST_WHOLE = 32768
REGISTERS = (64, 128, 255)
PROGRAMS = (132, 264, 528, 1056)
PIPELINES = (1, 2, 3)
PARTIALS = ((32, 64), (64, 32), (128, 16), (128, 32), (256, 16), (256, 32))
SHARED_ROWS = ("BACKWARD", "TANGENT")  # whose programs share the rows and leave partial sums


@dataclass(frozen=True)
class Choice:
    """One way to launch.

    Attributes:
        block: the columns of a program.
        whole: whether these are all of the row's.
        warps: of a program.
        registers: the most a thread may have.
        programs: the most that share the rows; None where each takes one.
        pipeline: rows in flight in the loop of a program.
        partials: the block of `sum_partials`; None where there are none to add up.
    """

    block: int
    whole: bool
    warps: int
    registers: int
    programs: int | None = None
    pipeline: int = 1
    partials: tuple[int, int] | None = None

    def __str__(self) -> str:
        """Its name in tables."""
        parts = [f"{self.block}{'' if self.whole else ' of a row'} × {self.warps} warps"]
        parts.append(f"{self.registers} registers")
        parts += [f"{self.programs} programs"] * (self.programs is not None)
        parts += [f"{self.pipeline} rows in flight"] * (self.pipeline > 1)
        if self.partials is not None:
            parts.append(f"partial sums by {self.partials[0]} × {self.partials[1]}")
        return ", ".join(parts)


def present(residency: str, columns: int) -> Choice:
    """What `plan.py` chooses today."""
    from ofa_kernels.triton import plan

    chosen = plan.plan(getattr(plan, residency), columns, DTYPE, UNIT)
    return Choice(
        chosen.block,
        chosen.stages == plan.WHOLE,
        chosen.num_warps,
        chosen.registers,
        chosen.max_programs if residency in SHARED_ROWS else None,
        chosen.pipeline if residency == "BACKWARD" else 1,
        chosen.partials if residency in SHARED_ROWS else None,
    )


def rows_of(columns: int) -> int:
    """How many rows are measured at a length."""
    return ELEMENTS // columns


def choices(residency: str, columns: int) -> list[Choice]:
    """The present choice first, then those that differ from it in one respect (block and warps are one)."""
    import triton

    now = present(residency, columns)
    full = triton.next_power_of_2(columns)
    blocks = [(full, True)] * (full <= LONGEST_WHOLE)
    blocks += [(block, False) for block in BLOCKS if 2 * block <= full]
    tried = [now]
    for block, whole in blocks:
        for warps in WARPS:
            if FEWEST_COLUMNS <= block / (warps * WARP_THREADS) <= MOST_COLUMNS:
                fitting = min(now.registers, REGISTER_FILE // (warps * WARP_THREADS))
                tried.append(replace(now, block=block, whole=whole, warps=warps, registers=fitting))
    threads = now.warps * WARP_THREADS
    tried += [replace(now, registers=count) for count in REGISTERS if count * threads <= REGISTER_FILE]
    if residency in SHARED_ROWS:
        tried += [replace(now, programs=count) for count in PROGRAMS]
    if residency == "BACKWARD":
        tried += [replace(now, pipeline=depth) for depth in PIPELINES]
        tried += [replace(now, partials=block) for block in PARTIALS]
    return list(dict.fromkeys(tried))


@contextmanager
def launching(choice: Choice) -> Iterator[None]:
    """Launch this way, whatever `plan.py` says."""
    from ofa_kernels.triton import plan

    now = plan.plan

    def chosen(residency: plan.Residency, n_cols: int, *rest) -> plan.Plan:
        n_blocks = plan.cdiv(n_cols, choice.block)
        return replace(
            now(residency, n_cols, *rest),
            block=choice.block,
            n_blocks=n_blocks,
            n_blocks_padded=max(1 << (n_blocks - 1).bit_length(), 16),
            num_warps=choice.warps,
            registers=choice.registers,
            stages=plan.WHOLE if choice.whole else plan.BLOCKS,
            max_programs=choice.programs or 1,
            pipeline=choice.pipeline,
            partials=choice.partials or plan.PARTIALS_BLOCK,
        )

    with mock.patch.object(plan, "plan", chosen):
        yield


def launches() -> Iterator[Callable[[], object]]:
    """What each choice launches, on tensors without memory: for compiling ahead."""
    from ofa_kernels.triton import launch

    for residency, columns in items():
        case = CASES[residency][0]
        call = case.makers[contenders.KERNELS_ALONE](
            Inputs(rows_of(columns), columns, DTYPE, case.k, "meta"), launch
        )
        for choice in choices(residency, columns):

            def chosen(call=call, choice=choice):
                with launching(choice):
                    call()

            yield chosen


def items() -> list[tuple[str, int]]:
    """(residency, columns), the lengths that matter most first."""
    longest = max(len(lengths) for _, lengths in CASES.values())
    return [
        (residency, lengths[i])
        for i in range(longest)
        for residency, (_, lengths) in CASES.items()
        if i < len(lengths)
    ]


def _replay(card: Card, case: Case, call: Callable[[], object], inputs: Inputs, truth: Expected) -> Callable:
    try:
        wrong = fault(case, contenders.KERNELS_ALONE, call, inputs, truth)
        replay = card.graph(call)
    except Exception as error:  # more registers or shared memory than there are: that is an answer
        raise contenders.UnavailableError(first_line(error)) from error
    if wrong:
        raise contenders.UnavailableError(wrong)
    return replay


def measure(card: Card, residency: str, columns: int, n_rows: int) -> Rows:
    """A row for each choice at one length, all of them timed in turns."""
    from ofa_kernels.triton import launch

    case = CASES[residency][0]
    inputs = Inputs(n_rows, columns, DTYPE, case.k, card.device)
    call = case.makers[contenders.KERNELS_ALONE](inputs, launch)
    moved = bytes_of(case, inputs)
    with torch.no_grad():
        truth = expected(inputs, case.truth)
        replays: dict[Choice | str, Callable] = {COPY: card.graph(copy(card, moved, 1))}
        notes: dict[Choice, str] = {}
        tried = choices(residency, columns)
        for choice in tried[::4] if card.rehearsal else tried:
            notes[choice] = ""
            with remember(notes, choice), launching(choice):
                replays[choice] = _replay(card, case, call, inputs, truth)
        times = interleave(replays, card.pace(0.03 * len(replays), (3, 15), 20))
    medians = {choice: statistics.median(of) for choice, of in times.items()}
    for i, (choice, note) in enumerate(notes.items()):
        yield {
            "kind": "choice",
            "residency": residency,
            "rows": n_rows,
            "columns": columns,
            "choice": asdict(choice),
            "present": i == 0,
            "seconds": medians.get(choice),
            "percent_of_copy": 100 * medians[COPY] / medians[choice] if choice in medians else None,
            "note": note,
        }


def rows(card: Card, task: Task) -> Rows:
    """Length by length, kernel by kernel."""
    with card.on_stream():
        plan = [(residency, REHEARSED[0]) for residency in CASES] if card.rehearsal else items()
        for residency, columns in plan:
            if set(KERNELS[CASES[residency][0].operator]) & set(task.wrong):
                continue
            yield from _lengths(card, residency, columns)
            card.empty_cache()


def _lengths(card: Card, residency: str, columns: int) -> Rows:
    try:
        yield from measure(card, residency, columns, REHEARSED[1] if card.rehearsal else rows_of(columns))
    except Exception as error:  # the other lengths are worth having all the same
        yield {"kind": "error", "residency": residency, "columns": columns, "note": first_line(error)}


def choice_of(row: dict) -> Choice:
    """A row's choice."""
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row["choice"].items()}
    return Choice(**fields)


def timed(found: Sequence[dict]) -> dict[tuple[str, int], dict[Choice, float]]:
    """Seconds by (residency, columns) and choice, the present one first."""
    by_item: dict[tuple[str, int], dict[Choice, float]] = {}
    for row in found:
        if row["kind"] == "choice" and row["seconds"]:
            by_item.setdefault((row["residency"], row["columns"]), {})[choice_of(row)] = row["seconds"]
    return by_item


def tables(found: Sequence[dict]) -> list[Table]:
    """The present choice and the fastest at each length, then what could not be launched."""
    cells = []
    shares = {
        (row["residency"], row["columns"], choice_of(row)): row["percent_of_copy"]
        for row in found
        if row["kind"] == "choice" and row["seconds"]
    }
    for (residency, columns), times in timed(found).items():
        now, (best, _) = next(iter(times)), min(times.items(), key=lambda item: item[1])
        cells.append(
            (
                f"{residency}, {columns}",
                str(now),
                f"{shares[residency, columns, now]:.0f}",
                "" if best == now else str(best),
                f"{shares[residency, columns, best]:.0f}",
                f"{times[best] / times[now]:.2f}",
            )
        )
    header = ("kernel, columns", "present", "% of copy", "fastest", "% of copy", "time / present")
    lists: list[Table] = [("Launch choices", header, cells)] if cells else []
    failed = [
        (f"{row['residency']}, {row['columns']}", str(choice_of(row)) if "choice" in row else "", row["note"])
        for row in found
        if row.get("note")
    ]
    return lists + ([("Not timed", ("kernel, columns", "choice", "why"), failed)] if failed else [])


def finding(found: Sequence[dict]) -> str:
    """How much faster the fastest choices are."""
    gains = [next(iter(times.values())) / min(times.values()) for times in timed(found).values()]
    if not gains:
        return ""
    return f"the fastest choices are {min(gains):.2f} to {max(gains):.2f} times as fast as the present ones"
