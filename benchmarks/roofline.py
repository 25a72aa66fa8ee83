"""How fast can each kernel be at best? Its minimal bytes, and the time they take.

    python -m benchmarks.roofline                                    # 4096 rows of 4096, bfloat16
    python -m benchmarks.roofline --rows 512 --columns 4096 --dtype float32 -k 16 --markdown roofline.md
    python -m benchmarks.roofline --predict                          # the shares of a copy in docs/gpu.md
    python -m benchmarks.roofline --predict --rows 64 --columns 4096 # where the time of one shape goes

A row pass is one reading or writing of a tensor of x's size; γ and its gradients (float32) count in the
bytes. K is the number of tangents or probes that share a primal, and of states for the step lengths. The
GPUs' times are the bytes over the peak of their data sheets, below which no kernel gets; this CPU's are over
the rate of x.clone() measured now, its fresh memory included.

--predict says what to expect of the Triton and CUDA kernels on cards that are not there, by the model of
benchmarks/prediction/model.py, and for one shape why. With --markdown FILE the tables replace those that FILE
has between the two comments that mark them.
"""

import argparse
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.harness import allocator, machine
from benchmarks.harness.interleave import cpu_clock
from benchmarks.harness.tables import seconds, to_markdown, to_rich
from benchmarks.harness.traffic import KERNELS
from benchmarks.prediction import tables

PEAKS = {"H100": 3.35e12, "H200": 4.8e12}  # bytes a second
DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}
COPIED = 2**25  # bytes, as 2048 x 4096 in float32
SIZE = 4096  # of rows and columns
BEGIN, END = "<!-- predictions: begin -->", "<!-- predictions: end -->"


def copy_rate(rounds: int = 15) -> float:
    """Bytes a second that x.clone() moves on this CPU, read and written, median."""
    allocator.settle()
    x = torch.ones(COPIED // 4)
    x.clone()
    return 2 * x.nbytes / statistics.median(cpu_clock(x.clone, 1) for _ in range(rounds))


def header(rates: Mapping[str, float]) -> tuple[str, ...]:
    """The columns' names."""
    return "kernel", "row passes", "MB", *(f"{name}, {rate / 1e9:,.0f} GB/s" for name, rate in rates.items())


def rows(
    n_rows: int, columns: int, dtype: torch.dtype, k: int, rates: Mapping[str, float]
) -> list[tuple[str, ...]]:
    """A row of text for each kernel."""
    table = []
    for name, traffic in KERNELS.items():
        moved = traffic.bytes(n_rows, columns, dtype, k)
        times = (seconds(moved / rate) for rate in rates.values())
        table.append((name, str(traffic), f"{moved / 1e6:,.1f}", *times))
    return table


def predict(console: Console, shape: tuple[int, int] | None, file: Path | None) -> None:
    """Print what the model says: of all shapes, or of one of them why.

    Raises:
        ValueError: the file has no place for the tables.
    """
    if shape:
        names = ("card", "operator", "kernels", "of a copy", "the time goes into")
        console.print(to_rich("{} x {}, bfloat16, predicted".format(*shape), names, tables.reasons(shape)))
        return
    text = "\n".join(tables.predictions())
    print(text)
    if file:
        before, begin, rest = file.read_text(encoding="utf-8").partition(BEGIN)
        _, end, after = rest.partition(END)
        if not end:
            raise ValueError(f"{file} has no place for the tables: the lines {BEGIN} and {END}")
        file.write_text(f"{before}{begin}\n\n{text}\n{end}{after}", encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.roofline",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", type=int, metavar="N", help=f"default: {SIZE}")
    parser.add_argument("--columns", type=int, metavar="N", help=f"default: {SIZE}")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("-k", type=int, default=16, metavar="K")
    parser.add_argument("--cpu-rate", type=float, metavar="GB/S", help="instead of measuring a copy")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table as Markdown too")
    parser.add_argument("--predict", action="store_true", help="what the kernels should reach on five cards")
    options = parser.parse_args(argv)
    chosen = options.rows is not None or options.columns is not None
    n_rows, columns = (SIZE if size is None else size for size in (options.rows, options.columns))
    if min(n_rows, columns, options.k) < 1:
        parser.error("--rows, --columns and -k must be at least 1")
    console = Console(width=None if sys.stdout.isatty() else 120)
    if options.predict:
        predict(console, (n_rows, columns) if chosen else None, options.markdown)
        return 0

    rate = options.cpu_rate * 1e9 if options.cpu_rate else copy_rate()
    rates = {**PEAKS, "this CPU's copy": rate}
    title = f"{n_rows} x {columns}, {options.dtype}, K = {options.k}"
    top, names = machine.line(machine.describe()), header(rates)
    table = rows(n_rows, columns, DTYPES[options.dtype], options.k, rates)
    console.print(top, highlight=False)
    console.print(to_rich(title, names, table))
    if options.markdown:
        options.markdown.write_text("\n".join([top, "", *to_markdown(title, names, table)]), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
