"""Is everything right on this machine's GPU, and how fast is it there? One command, under 8 minutes.

    python -m benchmarks.gpu
    python -m benchmarks.gpu --dry-run          # what it would do; needs no GPU
    python -m benchmarks.gpu --only JVP         # one operator's tables

First the parity suite runs on the device; if it fails, no speed is reported. Then forward, backward, both,
JVP and 16 tangents of the backward are timed at 576 to 65,536 columns and 16 to 16,384 rows, in bfloat16 and
float32, against a copy, eager transformers, F.rms_norm, Liger-Kernel (if installed) and torch.compile (at a
few shapes). Device time is taken by CUDA events with the L2 cache flushed, all contenders in turns, each
found right first. For few rows there is a second table of the time a call takes seen from the host.

Tables (Markdown) and all numbers (JSON) go to benchmarks/results/, under the card's name.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import gpu_plan, machine
from benchmarks.alternate import Pace, cuda_clock, host_clock
from benchmarks.gpu_plan import BUDGET, DTYPES, FEWEST_ROUNDS, RESERVE, TABLE_SECONDS, Item, Result
from benchmarks.measure import WrongError, measure
from benchmarks.problem import Problem
from benchmarks.table import Group, summaries, to_markdown, to_rich
from ofa_kernels.dispatch import backend_for, kernels_for

ROOT = Path(__file__).parents[1]
DEVICE = "cuda"
RESULTS = ROOT / "benchmarks" / "results"
PARITY = ("-m", "pytest", "tests/ofa_kernels", "-q", "-p", "no:cacheprovider")
PARITY_LIMIT = 300.0
FLUSHED = 2**30  # bytes: more than any L2, and writing them takes longer than launching a call
ITERATIONS = 5  # each with a flush before it


def parity(limit: float = PARITY_LIMIT, command: Sequence[str] = PARITY) -> tuple[bool, str]:
    """Run the suite; whether it passed, and its last lines."""
    environment = {k: v for k, v in os.environ.items() if k not in ("OFA_BACKEND", "TRITON_INTERPRET")}
    try:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=limit,
        )
    except subprocess.TimeoutExpired:
        return False, f"the parity suite took longer than {limit:.0f} s"
    lines = (done.stdout + done.stderr).strip().splitlines() or ["no output"]
    return done.returncode == 0, "\n".join(lines[-1:] if done.returncode == 0 else lines[-40:])


def describe_device() -> dict[str, str | int]:
    """The machine, its card, and which backend serves it."""
    return machine.describe(DEVICE) | {"backend": backend_for(torch.empty(1, 1, device=DEVICE))}


def paces() -> tuple[Pace, Pace]:
    """How to time on this device: the device's time, and the host's."""
    total = torch.cuda.get_device_properties(0).total_memory
    buffer = torch.empty(min(FLUSHED, total // 16), dtype=torch.uint8, device=DEVICE)
    clock = cuda_clock(buffer.zero_, torch.cuda.synchronize, lambda: torch.cuda.Event(enable_timing=True))
    rounds = FEWEST_ROUNDS, 101
    device = Pace(TABLE_SECONDS, rounds, ITERATIONS, clock)
    return device, Pace(TABLE_SECONDS, rounds, clock=host_clock(torch.cuda.synchronize))


def table_of(item: Item, device: Pace, host: Pace) -> Group:
    """Measure one item."""
    problem = Problem(item.rows, item.columns, DTYPES[item.dtype], item.case.k, DEVICE)
    kernels = kernels_for(problem.x.detach())
    group = measure(item.case, problem, kernels, host if item.host else device, item.skip)
    torch.cuda.empty_cache()
    return replace(group, case=f"{group.case}, seen from the host") if item.host else group


def markdown(found: Mapping, suite: str, result: Result) -> str:
    """The card, the suite's result, what ours costs in each case, and what is missing."""
    lines = [f"# {found['card']}", "", machine.line(dict(found)) + f"; backend {found['backend']}", ""]
    lines += [f"Parity suite on the device: {suite}", ""]
    lines += [
        "Medians of device time with a flushed L2 cache. Copies are times over that of `x.clone()`, % of "
        "copy is the rate of the bytes that have to be moved over a copy's, the ratios are our time over "
        "that of others, all measured in the same run.",
        "",
    ]
    for table in summaries(result.tables):
        lines += to_markdown(*table)
    notes: dict[str, int] = {}
    for group in result.tables:
        for entry in group.entries:
            if entry.note:
                # one line for all sizes, whatever the amount
                reason = re.sub(r"wrong by \S+ times", "wrong by more", entry.note)
                said = f"{group.case}: {entry.label}: {reason}"
                notes[said] = notes.get(said, 0) + 1
    lists = {
        "Contenders that were not timed": [f"{note} (sizes: {count})" for note, count in notes.items()],
        "Left out": [f"{item}: {reason}" for item, reason in result.left_out.items()],
        "Failed": [f"{item}: {reason}" for item, reason in result.failed.items()],
    }
    for heading, found_lines in lists.items():
        if found_lines:
            lines += [f"{heading}:", "", *(f"* {text}" for text in found_lines), ""]
    return "\n".join(lines)


def write(folder: Path, found: Mapping, suite: str, result: Result) -> tuple[Path, Path]:
    """The JSON and the Markdown file, named after the card and the day."""
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^a-z0-9]+", "-", f"{found['card']}".lower()).strip("-") + f"-{found['date']}"
    data = {
        "machine": dict(found),
        "parity": suite,
        "groups": [group.to_json() for group in result.tables],
        "left_out": result.left_out,
        "failed": result.failed,
    }
    paths = folder / f"{name}.json", folder / f"{name}.md"
    paths[0].write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    paths[1].write_text(markdown(found, suite, result), encoding="utf-8")
    return paths


def describe_plan(items: Sequence[Item], console: Console) -> None:
    """Print the tables by case, and the estimate."""
    by_case: dict[str, list[Item]] = {}
    for item in items:
        by_case.setdefault(item.case.name, []).append(item)
    rows = [
        (
            case,
            str(len(of_case)),
            f"{min(i.rows for i in of_case):,} to {max(i.rows for i in of_case):,}",
            f"{min(i.columns for i in of_case):,} to {max(i.columns for i in of_case):,}",
            ", ".join(dict.fromkeys(i.dtype for i in of_case)),
            str(sum(i.compiled for i in of_case)),
            str(sum(i.host for i in of_case)),
        )
        for case, of_case in by_case.items()
    ]
    header = ("case", "tables", "rows", "columns", "types", "compiled", "host")
    console.print(to_rich("the plan, after the parity suite", header, rows))
    parts = gpu_plan.estimate(items)
    console.print(to_rich("estimate", ("", "s"), [(name, f"{value:.0f}") for name, value in parts.items()]))
    console.print(f"{sum(parts.values()):.0f} s in all; nothing is begun after {BUDGET - RESERVE:.0f} s")


def main(argv: list[str] | None = None) -> int:
    """Check, measure, print and write.

    Returns:
        The exit status: 1 if anything of ours is wrong or fails, 2 without a GPU.
    """
    start = time.monotonic()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dry-run", action="store_true", help="list the plan; needs no GPU")
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="the case of this name, or those whose name contains it"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    options = parser.parse_args(argv)
    console = Console(width=None if sys.stdout.isatty() else 120)
    items = gpu_plan.plan(options.only)
    if not items:
        parser.error(f"no case's name contains {options.only!r}: {', '.join(c.name for c in gpu_plan.CASES)}")
    if options.dry_run:
        describe_plan(items, console)
        return 0
    if not torch.cuda.is_available():
        console.print("this machine has no GPU that PyTorch can use; --dry-run lists the plan", style="red")
        return 2

    console.print("parity suite on the device …")
    passed, suite = parity()
    console.print(suite, highlight=False)
    if not passed:
        console.print("the parity suite failed on this device: no speed is reported", style="red")
        return 1

    found = describe_device()
    console.print(machine.line(found), highlight=False)
    device, host = paces()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(items))

        def make(item: Item) -> Group:
            progress.update(task, description=str(item))
            progress.advance(task)
            return table_of(item, device, host)

        try:
            result = gpu_plan.run(
                items, make, time.monotonic, start + BUDGET - RESERVE, lambda: torch.cuda.mem_get_info()[0]
            )
        except WrongError as error:
            console.print(f"no speed is reported: {error}", style="red")
            return 1
    for table in summaries(result.tables):
        console.print(to_rich(*table))
    for path in write(options.results, found, suite, result):
        console.print(f"wrote {path}")
    for item, reason in result.failed.items():
        console.print(f"{item}: {reason}", style="red")
    seconds = time.monotonic() - start
    console.print(f"{len(result.tables)} tables, {len(result.left_out)} left out, {seconds:.0f} s")
    return 1 if result.failed else 0


if __name__ == "__main__":
    sys.exit(main())
