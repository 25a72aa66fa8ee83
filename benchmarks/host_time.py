"""What does a call cost the host on a GPU's backends? Their kernels take less for a few rows.

    python -m benchmarks.host_time                            # no GPU is needed; under a minute
    python -m benchmarks.host_time --markdown FILE

Every launch is a stub that returns at once, so the times are those of Python, of PyTorch's allocations (in
the host's memory) and of the way to the launch; a real one takes the driver another 2 to 3 µs. Each number is
the best of the rounds, in which all calls of a backend take short turns: others on the machine only add.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.gpu.host import COMPARED, PROBES, SHAPE, makers
from benchmarks.harness import allocator
from benchmarks.harness.inputs import Inputs
from benchmarks.harness.interleave import cpu_clock
from benchmarks.harness.stubs import build, stubbed_cuda, stubbed_triton
from benchmarks.harness.tables import to_markdown, to_rich

TITLE = "Microseconds of the host a call, launches stubbed"
# the step ratio's check reads what a stub has not written
LEFT_OUT = {*COMPARED, "step_ratio"}
# where PyTorch adds up gradients on this CPU, the fewest of them: the host's time is the same
SMALL_SHAPE = (8, 16)
TURN_SECONDS = 3e-4  # so short that most turns are not interrupted
SMALL = ("a layer's six calls, recorded", "these and their backward")
Stub = contextlib.AbstractContextManager


def stubs(folder: Path) -> dict[str, Stub]:
    """What stubs each backend's launches; a library for CUDA is compiled into the folder."""
    return {"Triton": stubbed_triton(), "CUDA": stubbed_cuda(build(folder))}


def _turn(call: Callable[[], object]) -> float:
    """Seconds a call in one turn."""
    once = cpu_clock(call, 1)
    return cpu_clock(call, max(1, round(TURN_SECONDS / once)))


def measure(stub: Stub, rounds: int) -> dict[str, float]:
    """Seconds a call, the best of the rounds, by the calls' names; `stub` is of the backend's launches."""
    usual, small = (makers(Inputs(*shape, torch.bfloat16, PROBES)) for shape in (SHAPE, SMALL_SHAPE))
    best: dict[str, float] = {}
    with stub:
        made = {name: (small if name in SMALL else usual)[name]() for name in usual if name not in LEFT_OUT}
        for _ in range(rounds):
            for name, call in made.items():
                best[name] = min(best.get(name, float("inf")), _turn(call))
    return best


def measure_or_say(backend: str, stub: Stub, rounds: int) -> dict[str, float]:
    """The same; nothing where the backend can't be stubbed here, and why."""
    try:
        return measure(stub, rounds)
    except (ImportError, RuntimeError) as reason:
        print(f"{backend}: {reason}", file=sys.stderr)
        return {}


def table(found: dict[str, dict[str, float]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The header and a row a call."""
    names = next(iter(found.values()))
    rows = [(name, *(f"{times[name] * 1e6:.1f}" for times in found.values())) for name in names]
    return ("", *found), rows


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and write Markdown where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    os.environ.pop("OFA_BACKEND", None)  # a backend is chosen as it is where none is forced
    torch.set_num_threads(1)
    allocator.settle()
    warnings.filterwarnings("ignore", "TRITON_DEFAULT_FP_FUSION")
    with tempfile.TemporaryDirectory() as folder:
        times = {
            backend: measure_or_say(backend, stub, options.rounds)
            for backend, stub in stubs(Path(folder)).items()
        }
    header, rows = table({backend: own for backend, own in times.items() if own})
    Console().print(to_rich(TITLE, header, rows))
    if options.markdown is not None:
        options.markdown.write_text("\n".join(to_markdown(TITLE, header, rows)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
