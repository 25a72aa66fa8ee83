"""How far is each operator from the cost of a copy on this CPU, and from what is used without it?

    python -m benchmarks.cpu                                            # everything, a few minutes
    python -m benchmarks.cpu --only "forward + backward" --shapes 64x576,256x4096 --dtypes float32
    python -m benchmarks.cpu --json copies.json --markdown copies.md

All contenders of a table take turns in one process, in an order drawn anew each round, after each has been
found right against the formulas in float64. A row's columns:

    median, IQR    of the time of one call, allocation of its results included
    GB/s           the bytes the operator can't avoid moving (benchmarks/harness/traffic.py) over the median
    % of copy      that rate over the rate of a copy in the same round
    copies         the time over that of x.clone() in the same round
    time / eager   the time over eager transformers' in the same round

Ours goes through autograd; "kernels alone" are the same kernels called without it. `OFA_BACKEND` chooses
which backend ours is. A large copy is mostly page faults, of which the native kernels take fewer, so they can
come out above 100 %; `copy_` shows the memory's own rate.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.cases import probes, tangents
from benchmarks.cases.rms_norm import ADD, BOTH, FORWARD
from benchmarks.harness import allocator, machine
from benchmarks.harness.case import Case, named
from benchmarks.harness.contenders import LIGER
from benchmarks.harness.inputs import Inputs
from benchmarks.harness.interleave import Pace
from benchmarks.harness.measure import WrongError, measure
from benchmarks.harness.tables import Group, summaries, to_markdown, to_rich
from ofa_kernels.dispatch import backend_for, kernels_for

Shape = tuple[int, int]
LARGE: tuple[Shape, ...] = ((512, 4096), (2048, 4096), (4096, 8192))
FEW_SHOT: tuple[Shape, ...] = tuple(
    (rows, columns) for rows in (16, 64, 256) for columns in (576, 2048, 4096)
)
CASES: tuple[tuple[Case, tuple[Shape, ...]], ...] = (
    (FORWARD, LARGE + FEW_SHOT),
    (BOTH, LARGE + FEW_SHOT),
    (ADD, (*LARGE, (64, 576), (256, 4096))),
    (tangents.JVP, ((64, 576), (512, 4096))),
    (tangents.DOUBLE_BACKWARD, ((64, 576), (512, 4096))),
    (tangents.jvps_and_gradients(8), ((8, 576), (64, 4096))),
    (tangents.tangents(16, with_dy=False), ((512, 4096),)),
    (tangents.tangents(16, with_dy=True), ((512, 4096),)),
    (probes.rademacher_case(8), ((8, 576), (256, 4096))),
    (probes.probes_case(8), ((8, 576), (256, 4096))),
    (probes.dots_case(8), ((8, 576), (256, 4096))),
    (probes.steps_case(31), ((8, 576), (64, 4096))),
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PACE = Pace(budget=1.0, rounds=(5, 101))


def shapes(text: str) -> tuple[Shape, ...]:
    """Parse `64x576,256x4096`."""
    parsed: list[Shape] = []
    for part in text.split(","):
        try:
            rows, columns = map(int, part.split("x"))
        except ValueError:
            rows = columns = 0
        if min(rows, columns) < 1:
            raise argparse.ArgumentTypeError(f"{text!r} is not like 64x576,256x4096")
        parsed.append((rows, columns))
    return tuple(parsed)


def dtypes(text: str) -> tuple[str, ...]:
    """Parse `float32,bfloat16`."""
    names = tuple(text.split(","))
    if unknown := [name for name in names if name not in DTYPES]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)} is not one of {', '.join(DTYPES)}")
    return names


def plan(
    only: str, chosen: tuple[Shape, ...] | None, types: tuple[str, ...]
) -> list[tuple[Case, Shape, str]]:
    """What to measure: cases chosen by `only`, by shape, by type."""
    names = [case.name for case, _ in CASES]
    return [
        (case, shape, name)
        for case, usual in CASES
        if named(case.name, only, names)
        for shape in chosen or usual
        for name in types
    ]


def to_json(groups: list[Group], about: dict) -> str:
    """All numbers, and what they were measured on."""
    return json.dumps({"machine": about, "groups": [group.to_json() for group in groups]}, indent=1) + "\n"


def markdown(groups: list[Group], top: str) -> str:
    """The summaries and every table."""
    lines = [top, "", "What ours costs through autograd, in short:", ""]
    for table in summaries(groups):
        lines += to_markdown(*table)
    for group in groups:
        lines += group.markdown()
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="the case of this name, or those whose name contains it"
    )
    parser.add_argument("--shapes", type=shapes, metavar="RxC,…", help="instead of each case's own")
    parser.add_argument("--dtypes", type=dtypes, default=tuple(DTYPES), metavar="TYPE,…")
    parser.add_argument("--rounds", type=int, metavar="N", help="so many for every table; default: by size")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    planned = plan(options.only, options.shapes, options.dtypes)
    if not planned:
        parser.error(
            f"no case's name contains {options.only!r}; there are {', '.join(c.name for c, _ in CASES)}"
        )

    allocator.settle()
    sample = torch.empty(1, 1)
    about = machine.describe() | {"backend": backend_for(sample)}
    top = f"{machine.line(about)}; backend {about['backend']}. {LIGER} needs a GPU: see docs/gpu.md."
    pace = replace(PACE, rounds=(options.rounds, options.rounds)) if options.rounds else PACE
    # a file or a pipe has no width
    console, groups = Console(width=None if sys.stdout.isatty() else 120), []
    console.print(top, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(planned))
        for case, (rows, n), name in planned:
            progress.update(task, description=f"{case.name}, {rows} x {n}, {name}")
            inputs = Inputs(rows, n, DTYPES[name], case.k)
            try:
                group = measure(case, inputs, kernels_for(sample), pace, skip={LIGER})
            except WrongError as error:
                console.print(f"nothing is reported: {error}", style="red")
                return 1
            groups.append(group)
            console.print(group.table())
            progress.advance(task)
    for table in summaries(groups):
        console.print(to_rich(*table))
    if options.json:
        options.json.write_text(to_json(groups, about), encoding="utf-8")
    if options.markdown:
        options.markdown.write_text(markdown(groups, top), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
