"""Is everything right on this machine's GPU, and how fast is it there? One command, under ten minutes.

    python -m benchmarks.gpu                                # everything, into benchmarks/results/
    python -m benchmarks.gpu --sections parity,headline --minutes 4 --out DIR
    python -m benchmarks.gpu --dry-run                      # what it would do, and for how long; needs no GPU
    python -m benchmarks.gpu --rehearse                     # every section's code on a machine without a GPU
    python -m benchmarks.gpu --apply sweep.json             # the launch choices that the sweep speaks for

Sections run in order of value, each in a process of its own with its own time limit, and each writes what it
has measured before the next begins: one that fails stops no other. A kernel that fails a parity test
loses its own speed rows only. docs/gpu.md says what each number means.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from benchmarks.gpu import runner
from benchmarks.gpu.report import DATA, TEXT, Record
from benchmarks.gpu.section import SECTIONS, Section, Task, chosen
from benchmarks.harness.tables import to_rich

RESULTS = runner.ROOT / "benchmarks" / "results"
MINUTES = 9.5


def describe_plan(sections: tuple[Section, ...], console: Console) -> None:
    """Print when each section begins and ends, if all goes as estimated."""
    cells, begin = [], 0.0
    for section in sections:
        end = begin + section.seconds
        cells.append((section.name, section.title, f"{begin:.0f}–{end:.0f}", f"{section.limit:.0f}"))
        begin = end
    console.print(to_rich("the plan", ("section", "what", "seconds", "stopped after"), cells))
    console.print(f"{begin:.0f} s in all, as estimated")


def run(
    sections: tuple[Section, ...], task: Task, minutes: float, rehearsal: bool, console: Console
) -> Record:
    """Run the sections, say how each ended, and write their results."""
    record = Record(Path(task.out))
    status = console.status("")

    def begun(section: Section) -> None:
        status.update(f"{section.name}: {section.title} (at most {section.limit:.0f} s)")
        status.start()

    def ended(section: Section, outcome: runner.Outcome) -> None:
        status.stop()
        record.add(section, outcome)
        style = None if outcome.status == "done" else "red"
        said = f"{section.name}: {outcome.status}, {outcome.seconds:.0f} s; {record.finding(section)}"
        console.print(said, style=style, highlight=False, soft_wrap=True)

    runner.run_all(sections, task, time.monotonic() + 60 * minutes, rehearsal, begun, ended)
    return record


def main(argv: list[str] | None = None) -> int:
    """Run the sections, and print a short table last.

    Returns:
        The exit status: 1 if a section did not end as it should or a test failed, 2 without a GPU.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = ", ".join(section.name for section in SECTIONS)
    parser.add_argument("--sections", default="", metavar="NAME,…", help=f"which of {names}; default: all")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"for everything; default: {MINUTES}")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: $OUT, else benchmarks/results/CARD")
    parser.add_argument("--dry-run", action="store_true", help="list the plan")
    parser.add_argument(
        "--rehearse", action="store_true", help="run every section without a GPU, on tiny shapes"
    )
    parser.add_argument("--apply", type=Path, metavar="FILE", help="propose launch choices from a sweep.json")
    options = parser.parse_args(argv)
    console = Console(width=None if sys.stdout.isatty() else 160)
    try:
        sections = chosen([name for name in options.sections.split(",") if name])
    except ValueError as error:
        parser.error(str(error))
    if options.apply:
        from benchmarks.gpu import apply

        return apply.main(options.apply, console)
    if options.dry_run:
        describe_plan(sections, console)
        return 0
    card = None if options.rehearse else _card_name()
    if card is None and not options.rehearse:
        console.print("this machine has no GPU that PyTorch can use; --rehearse runs without", style="red")
        return 2

    out = options.out or (Path(os.environ["OUT"]) if os.environ.get("OUT") else None)
    if out is None:  # nothing that was rehearsed is a result
        out = RESULTS / card if card else Path(tempfile.mkdtemp(prefix="rehearsal-"))
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    record = run(sections, Task(str(out)), options.minutes, options.rehearse, console)
    console.print(to_rich("sections", ("section", "status", "s", "finding"), record.summary()))
    console.print(f"wrote {out / DATA} and {out / TEXT}")
    faults = [s for s in sections if record.sections[s.name].status != "done"]
    wrong = any(row.get("kind") == "failed" for s in sections for row in record.sections[s.name].rows)
    return 1 if faults or wrong else 0


def _card_name() -> str | None:
    """The first card's name as a folder's, None without a card."""
    import torch

    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name(0)
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


if __name__ == "__main__":
    sys.exit(main())
