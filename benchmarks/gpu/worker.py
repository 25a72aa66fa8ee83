"""The process of one section: `python -m benchmarks.gpu.worker SECTION ROWS_FILE TASK [--rehearse]`."""

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu.card import Card, Rehearsal
from benchmarks.gpu.section import Task, chosen


def _count_builds() -> dict[str, int]:
    """How many kernels Triton compiles, and how many it finds compiled, from now on."""
    counts = {"compiled": 0, "found_compiled": 0}
    try:
        from triton import knobs
    except ImportError:
        return counts

    def count(*, cache_hit: bool, **_) -> None:
        counts["found_compiled" if cache_hit else "compiled"] += 1

    knobs.compilation.listener = count
    return counts


def main(argv: list[str] | None = None) -> int:
    """Write every row of the section as a line, as soon as it is there."""
    name, rows_file, told, *rest = sys.argv[1:] if argv is None else argv
    (section,) = chosen([name])
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(told).items()}
    task = Task(**fields)
    counts = _count_builds()
    card = Rehearsal() if rest else Card()
    with Path(rows_file).open("a", encoding="utf-8") as file:

        def write(row: dict) -> None:
            file.write(json.dumps(row) + "\n")
            file.flush()

        for row in section.module.rows(card, task):
            write(row)
        if any(counts.values()):
            write({"kind": "builds", **counts})
    return 0


if __name__ == "__main__":
    sys.exit(main())
