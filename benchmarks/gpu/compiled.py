"""torch.compile beside ours, at the shapes whose tensors fill the cache in a call or two."""

from collections.abc import Sequence

from benchmarks.cases.rms_norm import BACKWARD, FORWARD
from benchmarks.cases.tangents import JVP
from benchmarks.gpu import headline
from benchmarks.gpu.card import Card
from benchmarks.gpu.section import Rows, Table, Task
from benchmarks.harness import contenders
from benchmarks.harness.case import OURS

# every set of tensors costs a compilation of some seconds
SHAPES = ((4096, 4096), (4096, 8192), (2048, 16384))
REHEARSED = ((3, 128),)
LABELS = (*OURS, contenders.EAGER, contenders.COMPILED)


def rows(card: Card, task: Task) -> Rows:
    """All tables."""
    shapes, cases = (REHEARSED, (FORWARD,)) if card.rehearsal else (SHAPES, (FORWARD, BACKWARD, JVP))
    yield from headline.table_rows(card, task, headline.items(shapes, cases), LABELS)


def tables(found: Sequence[dict]) -> list[Table]:
    """As the headline's."""
    return headline.tables(found)


def finding(found: Sequence[dict]) -> str:
    """The time of torch.compile over that of our kernels, by case."""
    ratios: dict[str, list[float]] = {}
    for row in found:
        medians = {e["label"]: e["median"] for e in row.get("group", {}).get("entries", ())}
        ours, compiled = medians.get(contenders.KERNELS_ALONE), medians.get(contenders.COMPILED)
        if ours and compiled:
            ratios.setdefault(row["case"], []).append(compiled / ours)
    return "; ".join(
        f"{case}: compiled takes {min(of):.2f}–{max(of):.2f} of ours" for case, of in ratios.items()
    )
