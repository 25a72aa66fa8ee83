"""The CUDA C++ kernels beside Triton's, alone and by graph replay: which of them should serve which call."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import ModuleType

from benchmarks.gpu import headline
from benchmarks.gpu.card import Card
from benchmarks.gpu.section import Rows, Table, Task
from benchmarks.harness.case import Call, Case
from benchmarks.harness.contenders import KERNELS_ALONE, UnavailableError
from benchmarks.harness.inputs import Inputs
from ofa_kernels import cuda

CUDA, TRITON = "CUDA C++", "Triton"
LABELS = (CUDA, TRITON)
# besides the headline's: few prompts' prediction tokens, and all tokens of a few-shot batch
SHAPES = ((8, 4096), (352, 4096), *headline.SHAPES)


def _cuda_kernels() -> ModuleType:
    if reason := cuda.missing():
        raise UnavailableError(reason)
    return cuda.calls


def _triton_kernels() -> ModuleType:
    from ofa_kernels.triton import launch

    return launch


def beside(case: Case) -> Case:
    """The same case with two contenders: the kernels alone of either kind."""
    alone = case.makers[KERNELS_ALONE]

    def of(kernels: Callable[[], ModuleType]):
        def maker(inputs: Inputs, _: ModuleType | None) -> Call:
            return alone(inputs, kernels())

        return maker

    return replace(case, makers={CUDA: of(_cuda_kernels), TRITON: of(_triton_kernels)}, eager=TRITON)


def rows(card: Card, task: Task) -> Rows:
    """A table for each case and shape."""
    shapes, cases = headline.REHEARSED if card.rehearsal else (SHAPES, headline.CASES)
    plan = headline.items(shapes, [beside(case) for case in cases])
    yield from headline.table_rows(card, task, plan, LABELS)


def _shares(row: dict) -> dict[str, float]:
    entries = row.get("group", {}).get("entries", ())
    return {
        e["label"]: e["percent_of_copy"] for e in entries if e["percent_of_copy"] and e["label"] in LABELS
    }


def tables(found: Sequence[dict]) -> list[Table]:
    """The share of a copy's rate that each kind reaches, and why one of them has no number."""
    cells = []
    for row in found:
        shares = _shares(row)
        entries = row.get("group", {}).get("entries", ())
        notes = [row["note"], *(f"{e['label']}: {e['note']}" for e in entries if e["note"])]
        cells.append(
            (
                row["case"],
                f"{row['rows']} × {row['columns']}",
                *(f"{shares[label]:.0f}" if label in shares else "" for label in LABELS),
                f"{shares[CUDA] / shares[TRITON]:.2f}" if len(shares) == len(LABELS) else "",
                "; ".join(note for note in notes if note),
            )
        )
    header = (
        "operator",
        "rows × columns",
        *(f"{label}, % of copy" for label in LABELS),
        "CUDA C++ / Triton",
        "",
    )
    return [("CUDA C++ beside Triton, bfloat16", header, cells)] if cells else []


def finding(found: Sequence[dict]) -> str:
    """How many times as fast as Triton, from the worst shape to the best."""
    ratios: dict[str, list[float]] = {}
    for row in found:
        shares = _shares(row)
        if len(shares) == len(LABELS):
            ratios.setdefault(row["case"], []).append(shares[CUDA] / shares[TRITON])
    parts = [f"{case} {min(of):.2f}–{max(of):.2f} of Triton's rate" for case, of in ratios.items()]
    return "; ".join(parts) or "no shape was timed with both"
