"""Runs sections one after the other, each in a process of its own: none can stop, slow or outlast another."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from benchmarks.gpu.section import Section, Task

ROOT = Path(__file__).parents[2]
LOG_BYTES = 2**20  # of a section's output, its end
SHORTEST = 10.0  # seconds: with less left, a section is not begun


@dataclass
class Outcome:
    """What became of a section.

    Attributes:
        status: "done", or what ended it.
        seconds: it took.
        rows: what it yielded.
        log: the end of what it printed.
    """

    status: str
    seconds: float = 0.0
    rows: list[dict] = field(default_factory=list)
    log: str = ""


def read_rows(path: Path) -> list[dict]:
    """The whole lines of a file of JSON lines; the one that a kill cut short is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def environment(rehearsal: bool) -> dict[str, str]:
    """The variables of a section's process: no forced backend on a card, Triton's interpreter without one."""
    variables = {k: v for k, v in os.environ.items() if k not in ("OFA_BACKEND", "TRITON_INTERPRET")}
    if rehearsal:
        # one thread: the tensors are tiny
        variables |= {"TRITON_INTERPRET": "1", "OFA_BACKEND": "triton", "OMP_NUM_THREADS": "1"}
    return variables


def watch(command: Sequence[str], log: Path, limit: float, variables: dict[str, str]) -> tuple[str, float]:
    """Run a command with all its children, at most so many seconds; (status, seconds)."""
    begin = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=variables, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(timeout=limit)
            status = "done" if code == 0 else f"failed with exit status {code}"
        except subprocess.TimeoutExpired:
            status = f"stopped after {limit:.0f} s"
        finally:
            # what it has started lives in its process group; an interrupt here ends it, too
            if process.poll() is None or status != "done":
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return status, time.monotonic() - begin


def run(section: Section, task: Task, limit: float, rehearsal: bool) -> Outcome:
    """One section, from its process's start to its end."""
    with tempfile.TemporaryDirectory() as folder:
        rows, log = Path(folder, "rows.jsonl"), Path(folder, "log")
        told = json.dumps(asdict(replace(task, seconds=limit)))
        command = [sys.executable, "-m", "benchmarks.gpu.worker", section.name, str(rows), told]
        if rehearsal:
            command.append("--rehearse")
        status, seconds = watch(command, log, limit, environment(rehearsal))
        printed = log.read_bytes()[-LOG_BYTES:].decode("utf-8", "replace")
        return Outcome(status, seconds, read_rows(rows), printed)


def run_all(
    sections: Sequence[Section],
    task: Task,
    deadline: float,
    rehearsal: bool,
    begun: Callable[[Section], None],
    ended: Callable[[Section, Outcome], None],
) -> None:
    """Every section in turn, whatever becomes of the others.

    Args:
        sections: in order.
        task: what their processes are told; kernels that the parity section finds wrong are added.
        deadline: the moment (`time.monotonic`) by which the last has to end.
        rehearsal: whether there is no card.
        begun: called before a section.
        ended: called after it, before the next begins: writes its results.
    """
    for section in sections:
        left = deadline - time.monotonic()
        if left < SHORTEST:
            ended(section, Outcome("not begun: the time was up"))
            continue
        begun(section)
        outcome = run(section, task, min(section.limit, left), rehearsal)
        wrong = {kernel for row in outcome.rows for kernel in row.get("wrong_kernels", ())}
        task = replace(task, wrong=tuple(sorted({*task.wrong, *wrong})))
        ended(section, outcome)
