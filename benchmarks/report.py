"""Tables from pytest-benchmark's JSON.

    pytest benchmarks/ --benchmark-only --benchmark-json=bench.json
    python -m benchmarks.report bench.json --markdown bench.md

One table a group. Of a benchmark's `extra_info` are read: `label`, its name in the table; `baseline`, true
for the entry that the others are compared with; `bytes`, what it has to move, for GB/s; `copy`, true for the
entry whose rate is 100 %.
"""

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console

from benchmarks.harness import tables
from benchmarks.harness.tables import seconds

HEADER = ("", "median", "IQR", "time / baseline", "GB/s", "% of copy")


def machine(data: dict) -> str:
    """What the numbers were measured on, in one line."""
    info, commit = data.get("machine_info", {}), data.get("commit_info", {})
    cpu = info.get("cpu", {})
    revision = (commit.get("id") or "unknown")[:10] + (" + changes" if commit.get("dirty") else "")
    parts = (
        info.get("card", ""),
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
        ValueError: a group has more than one baseline or copy.
    """
    by_group: dict[str, list[dict]] = {}
    for entry in data["benchmarks"]:
        by_group.setdefault(entry["group"] or "ungrouped", []).append(entry)
    return {
        group: [
            _row(entry, _only(group, "baseline", entries), _only(group, "copy", entries)) for entry in entries
        ]
        for group, entries in by_group.items()
    }


def _only(group: str, role: str, entries: list[dict]) -> dict | None:
    found = [entry for entry in entries if entry["extra_info"].get(role)]
    if len(found) > 1:
        raise ValueError(f"{group} has {len(found)} entries marked {role}; mark one")
    return found[0] if found else None


def _rate(entry: dict) -> float:
    return entry["extra_info"]["bytes"] / entry["stats"]["median"]


def _row(entry: dict, baseline: dict | None, copy: dict | None) -> tuple[str, ...]:
    stats, extra = entry["stats"], entry["extra_info"]
    return (
        extra.get("label", entry["name"]),
        seconds(stats["median"]),
        seconds(stats["iqr"]),
        f"{stats['median'] / baseline['stats']['median']:.2f}" if baseline else "",
        f"{_rate(entry) / 1e9:.1f}" if "bytes" in extra else "",
        f"{100 * _rate(entry) / _rate(copy):.0f}" if copy and "bytes" in extra else "",
    )


def to_markdown(data: dict) -> str:
    """All tables as Markdown."""
    lines = [machine(data), ""]
    for group, rows in groups(data).items():
        lines += tables.to_markdown(group, HEADER, rows)
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
        console.print(tables.to_rich(group, HEADER, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
