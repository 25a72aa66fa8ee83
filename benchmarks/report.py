"""Tables from pytest-benchmark's JSON.

    pytest benchmarks/ --benchmark-only --benchmark-json=bench.json
    python -m benchmarks.report bench.json --markdown bench.md

One table a group. Of a benchmark's `extra_info` are read: `label`, its name in the table; `baseline`, true
for the entry that the others are compared with; `bytes`, what it has to move, for GB/s.
"""

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

HEADER = ("", "median", "IQR", "time / baseline", "GB/s")
UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))


def seconds(value: float) -> str:
    """Three digits and a unit."""
    scale, unit = next(((s, u) for s, u in UNITS if value >= s), UNITS[-1])
    return f"{value / scale:.3g} {unit}"


def machine(data: dict) -> str:
    """What the numbers were measured on, in one line."""
    info, commit = data.get("machine_info", {}), data.get("commit_info", {})
    cpu = info.get("cpu", {})
    revision = (commit.get("id") or "unknown")[:10] + (" + changes" if commit.get("dirty") else "")
    parts = (
        cpu.get("brand_raw") or info.get("machine", "unknown CPU"),
        f"{cpu.get('count', '?')} cores",
        f"{info.get('torch_threads', '?')} threads",
        f"torch {info.get('torch', '?')}",
        f"Python {info.get('python_version', '?')}",
        f"commit {revision}",
        data.get("datetime", "")[:10],
    )
    return ", ".join(part for part in parts if part)


def groups(data: dict) -> dict[str, list[tuple[str, ...]]]:
    """Rows of text per group, in the file's order.

    Raises:
        ValueError: a group has more than one baseline.
    """
    by_group: dict[str, list[dict]] = {}
    for entry in data["benchmarks"]:
        by_group.setdefault(entry["group"] or "ungrouped", []).append(entry)
    tables = {}
    for group, entries in by_group.items():
        baselines = [e["stats"]["median"] for e in entries if e["extra_info"].get("baseline")]
        if len(baselines) > 1:
            raise ValueError(f"{group} has {len(baselines)} baselines; mark one")
        tables[group] = [_row(entry, baselines[0] if baselines else None) for entry in entries]
    return tables


def _row(entry: dict, baseline: float | None) -> tuple[str, ...]:
    stats, extra = entry["stats"], entry["extra_info"]
    median = stats["median"]
    return (
        extra.get("label", entry["name"]),
        seconds(median),
        seconds(stats["iqr"]),
        f"{median / baseline:.2f}" if baseline else "",
        f"{extra['bytes'] / median / 1e9:.1f}" if "bytes" in extra else "",
    )


def to_markdown(data: dict) -> str:
    """All tables as Markdown."""
    lines = [machine(data), ""]
    for group, rows in groups(data).items():
        lines += [f"**{group}**", "", f"| {' | '.join(HEADER)} |", "| --- |" + " ---: |" * (len(HEADER) - 1)]
        lines += [f"| {' | '.join(row)} |" for row in rows] + [""]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Print the tables of one file."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("json", type=Path, help="what --benchmark-json wrote")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables as Markdown too")
    options = parser.parse_args(argv)

    data = json.loads(options.json.read_text(encoding="utf-8"))
    if options.markdown:
        options.markdown.write_text(to_markdown(data), encoding="utf-8")
    console = Console()
    console.print(machine(data), highlight=False)
    for group, rows in groups(data).items():
        table = Table(HEADER[0], title=group, title_justify="left")
        for name in HEADER[1:]:
            table.add_column(name, justify="right")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
