"""What NVIDIA's tools say of the kernels, where they are installed: counters of each, and memory errors.

Nsight Compute reads how busy memory is, what the cache holds and what warps wait for; the clocks are left as
they are. compute-sanitizer looks for accesses outside of tensors (memcheck) and races (racecheck).
"""

import csv
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.card import Card
from benchmarks.gpu.section import Rows, Table, Task

ROOT = Path(__file__).parents[2]
METRICS = {
    "gpu__time_duration.sum": "time",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "DRAM %",
    "lts__t_sector_hit_rate.pct": "L2 hits %",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "warps active %",
    "launch__registers_per_thread": "registers",
    "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio": "waits for memory",
    "smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio": "waits at barriers",
}
SANITIZERS = ("memcheck", "racecheck")
FOUND = 86  # the exit status that means an error was found
# a tensor an allocation, or an access outside of one may fall into the next
VARIABLES = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


def _program(rows: int, columns: int, device: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.gpu.every_kernel", str(rows), str(columns), device]


def _stand_ins(folder: Path) -> None:
    """Programs of the tools' names that run what they are given: for the rehearsal."""
    table = (
        ["ID", "Kernel Name", *METRICS],
        ["", "", *("%" for _ in METRICS)],
        ["0", "none", *("1" for _ in METRICS)],
    )
    lines = [",".join(f'"{cell}"' for cell in line) for line in table]
    for tool, printed in (("ncu", "\n".join(lines)), ("compute-sanitizer", "ERROR SUMMARY: 0 errors")):
        path = folder / tool
        path.write_text(
            f"#!{sys.executable}\nimport subprocess, sys\n"
            f"command = sys.argv[sys.argv.index({sys.executable!r}):]\n"
            f"code = subprocess.call(command)\nprint({printed!r})\nsys.exit(code)\n",
            encoding="utf-8",
        )
        path.chmod(0o755)


def _ncu(card: Card, out: Path) -> list[str]:
    shape = (4, 256) if card.rehearsal else (4096, 4096)
    metrics = [
        "--metrics",
        ",".join(METRICS),
        "--kernel-name",
        "regex:rms_norm|probe|step|partials|rademacher",
    ]
    return [
        "ncu",
        "--clock-control",
        "none",
        "--csv",
        "--page",
        "raw",
        *metrics,
        *_program(*shape, card.device),
    ]


def _sanitizer(card: Card, tool: str) -> list[str]:
    shape = (3, 130) if card.rehearsal else (37, 4100)
    return [
        "compute-sanitizer",
        "--tool",
        tool,
        "--error-exitcode",
        str(FOUND),
        *_program(*shape, card.device),
    ]


def parse_ncu(printed: str) -> list[dict]:
    """A row for each launch, of ncu's CSV in either of its layouts; lines that are none of it are skipped."""
    lines = [line for line in printed.splitlines() if line.startswith('"')]
    table = list(csv.DictReader(io.StringIO("\n".join(lines))))
    found: dict[tuple, dict] = {}
    for number, line in enumerate(table):
        if "Metric Name" in line:
            key = line.get("ID", ""), line["Kernel Name"]
            row = found.setdefault(key, {"kind": "counters", "kernel": line["Kernel Name"]})
            if line["Metric Name"] in METRICS:
                row[METRICS[line["Metric Name"]]] = (
                    f"{line['Metric Value']} {line.get('Metric Unit', '')}".strip()
                )
        elif line.get("Kernel Name"):  # with --page raw a column a metric, and the units in the first line
            row = {"kind": "counters", "kernel": line["Kernel Name"]}
            found[number, row["kernel"]] = row | {
                name: f"{line[metric]} {table[0][metric]}".strip()
                for metric, name in METRICS.items()
                if metric in line
            }
    return list(found.values())


def _begin(command: Sequence[str], log: Path, path: str) -> subprocess.Popen:
    with log.open("wb") as file:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"PATH": path} | (VARIABLES if "sanitizer" in command[0] else {}),
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def rows(card: Card, task: Task) -> Rows:
    """Counters of each launch, then the sanitizers' verdicts; all tools run side by side but the counters."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, path = Path(temporary), os.environ.get("PATH", "")
        if card.rehearsal:
            _stand_ins(folder)
            path = f"{folder}{os.pathsep}{path}"
        commands = {"ncu": _ncu(card, folder)} | {tool: _sanitizer(card, tool) for tool in SANITIZERS}
        for name in list(commands):
            if shutil.which(commands[name][0], path=path) is None:
                yield {"kind": "missing", "tool": commands[name][0]}
                del commands[name]
        deadline = time.monotonic() + task.seconds - 5
        for name, command in commands.items():
            log = Path(task.out, "ncu.csv") if name == "ncu" else Path(task.out, f"{name}.log")
            begin = time.monotonic()
            process = _begin(command, log, path)
            try:
                code = process.wait(timeout=max(1.0, deadline - begin))
            except subprocess.TimeoutExpired:
                process.kill()
                code = None
            printed = log.read_text(encoding="utf-8", errors="replace")
            if name == "ncu":
                yield from parse_ncu(printed)
            summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY:.*", printed)
            yield {
                "kind": "tool",
                "tool": name,
                "status": code,
                "seconds": time.monotonic() - begin,
                "summary": summary[-1] if summary else "",
            }


def tables(found: Sequence[dict]) -> list[Table]:
    """Counters by launch, then how each tool ended."""
    counters = [row for row in found if row["kind"] == "counters"]
    names = ("kernel", *METRICS.values())
    lists: list[Table] = []
    if counters:
        cells = [tuple(row.get(name, "") for name in names) for row in counters]
        lists.append(("Counters", names, cells))
    ended = [(row["tool"], _verdict(row), f"{row['seconds']:.0f}") for row in found if row["kind"] == "tool"]
    ended += [(row["tool"], "not installed", "") for row in found if row["kind"] == "missing"]
    return lists + ([("Tools", ("", "result", "s"), ended)] if ended else [])


def _verdict(row: dict) -> str:
    if row["status"] is None:
        return "stopped: the time was up"
    if row["status"] == FOUND:
        return f"found errors: {row['summary']}"
    return row["summary"] or ("done" if row["status"] == 0 else f"exit status {row['status']}")


def finding(found: Sequence[dict]) -> str:
    """How each tool ended."""
    ended = [f"{row['tool']}: {_verdict(row)}" for row in found if row["kind"] == "tool"]
    return "; ".join(ended + [f"{row['tool']} is not installed" for row in found if row["kind"] == "missing"])
