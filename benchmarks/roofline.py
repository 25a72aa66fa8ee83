"""How fast can each kernel be at best? Its minimal bytes, and the time they take.

    python -m benchmarks.roofline                                    # 4096 rows of 4096, bfloat16
    python -m benchmarks.roofline --rows 512 --columns 4096 --dtype float32 -k 16 --markdown roofline.md

A row pass is one reading or writing of a tensor of x's size; γ and its gradients (float32) count in the
bytes. K is the number of tangents or probes that share a primal, and of states for the step lengths. The
GPUs' times are the bytes over the peak of their data sheets, below which no kernel gets; this CPU's are over
the rate of x.clone() measured now, its fresh memory included.
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

PEAKS = {"H100": 3.35e12, "H200": 4.8e12}  # bytes a second
DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}
COPIED = 2**25  # bytes, as 2048 x 4096 in float32


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


def main(argv: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.roofline",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", type=int, default=4096, metavar="N")
    parser.add_argument("--columns", type=int, default=4096, metavar="N")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("-k", type=int, default=16, metavar="K")
    parser.add_argument("--cpu-rate", type=float, metavar="GB/S", help="instead of measuring a copy")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table as Markdown too")
    options = parser.parse_args(argv)
    if min(options.rows, options.columns, options.k) < 1:
        parser.error("--rows, --columns and -k must be at least 1")

    rate = options.cpu_rate * 1e9 if options.cpu_rate else copy_rate()
    rates = {**PEAKS, "this CPU's copy": rate}
    title = f"{options.rows} x {options.columns}, {options.dtype}, K = {options.k}"
    top, names = machine.line(machine.describe()), header(rates)
    table = rows(options.rows, options.columns, DTYPES[options.dtype], options.k, rates)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(top, highlight=False)
    console.print(to_rich(title, names, table))
    if options.markdown:
        options.markdown.write_text("\n".join([top, "", *to_markdown(title, names, table)]), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
