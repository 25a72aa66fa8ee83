"""Ahead-of-time gate: compile every Triton kernel for every architecture without a GPU, and read the result.

    python -m benchmarks.aot                            # the table; exit status 1 if a row fails
    python -m benchmarks.aot --arch 90 --columns 576
    python -m benchmarks.aot --write benchmarks/aot.md

The package's own launch functions run with the launch itself intercepted, so what is compiled is what a GPU
would be given: the same warps and blocks, and the arguments specialised by Triton's own rules.
"""

import argparse
import contextlib
import io
import os
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

# the interpreter replaces @triton.jit at import, after which nothing can be compiled
os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
from rich.console import Console
from rich.table import Table
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from ofa_kernels.triton import launch

ARCHITECTURES = (80, 90, 100)
COLUMNS = (576, 2048, 4096, 8192)
DTYPES = (torch.bfloat16, torch.float32)
ROWS = 352
WIDE_BITS = 128


@dataclass(frozen=True)
class Case:
    """One kernel: how the package launches it, and whether it reads whole rows."""

    kernel: str
    call: Callable[[Tensor, Tensor], object]
    reads_rows: bool = True


def _probes(x: Tensor, weight: Tensor):
    # seed 1: Triton makes arguments equal to 1 constants, and a kernel must compile then too
    return launch.rademacher(x.shape[1], torch.arange(8), 8, torch.arange(1), 1, x.dtype)


CASES = (
    Case("rms_norm_forward", lambda x, w: launch.rms_norm_forward(x, w, 1e-6, 0.0, "hf")),
    Case("rms_norm_backward", lambda x, w: launch.rms_norm_backward(x, w, x, 1e-6, 0.0, True)),
    Case("rms_norm_backward, no dw", lambda x, w: launch.rms_norm_backward(x, w, x, 1e-6, 0.0, False)),
    Case("rademacher", _probes, reads_rows=False),
)


@dataclass(frozen=True)
class Row:
    """What one compiled kernel uses; `loads` and `stores` are (wide, all) global instructions."""

    kernel: str
    arch: int
    dtype: str
    columns: int
    warps: int
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    loads: tuple[int, int]
    stores: tuple[int, int]
    reads_rows: bool

    def faults(self) -> list[str]:
        """Why this row fails the gate; empty where it passes."""
        gated = {
            "bytes of spill stores": self.spill_stores,
            "bytes of spill loads": self.spill_loads,
            "bytes of local memory": self.stack,
        }
        found = [f"{value} {name}" for name, value in gated.items() if value]
        for name, (wide, total) in {"loads": self.loads, "stores": self.stores}.items():
            if (name == "stores" or self.reads_rows) and (wide < total or not wide):
                found.append(f"{total - wide} of {total} global {name} narrower than {WIDE_BITS} bits")
        return found

    def cells(self) -> list[str]:
        """The row as text, in the order of `HEADER`."""
        loads = "{}/{}".format(*self.loads) if self.reads_rows else "no rows"
        spills = f"{self.spill_stores}/{self.spill_loads}"
        verdict = "; ".join(self.faults()) or "pass"
        numbers = (self.columns, self.warps, self.registers, self.stack, spills, loads)
        texts = [str(number) for number in numbers]
        return [self.kernel, f"sm_{self.arch}", self.dtype, *texts, "{}/{}".format(*self.stores), verdict]


HEADER = (
    "kernel",
    "target",
    "x",
    "columns",
    "warps",
    "registers",
    "local bytes",
    "spill bytes (st/ld)",
    "wide loads",
    "wide stores",
    "verdict",
)


def parse_ptxas(log: str) -> dict[str, int]:
    """Registers, stack frame and spill bytes from what `ptxas -v` says.

    Raises:
        ValueError: the log doesn't hold the numbers, so nothing can be said about the kernel.
    """
    sizes = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    registers = re.search(r"Used (\d+) registers", log)
    if not (sizes and registers):
        raise ValueError(f"ptxas said nothing about registers and spills: {log!r}")
    stack, spill_stores, spill_loads = map(int, sizes.groups())
    return {
        "registers": int(registers[1]),
        "stack": stack,
        "spill_stores": spill_stores,
        "spill_loads": spill_loads,
    }


def count_wide(ptx: str, instruction: str) -> tuple[int, int]:
    """(at least `WIDE_BITS` wide, all) global instructions `ld` or `st` in PTX text."""
    found = re.findall(rf"\b{instruction}\.global\S*?(?:\.v(\d))?\.[a-z]+(\d+)\s", ptx)
    widths = [int(vector or 1) * int(bits) for vector, bits in found]
    return sum(width >= WIDE_BITS for width in widths), len(widths)


def intercept(call: Callable[[], object]) -> tuple[JITFunction, tuple, dict]:
    """The kernel that `call` launches, its arguments and its options; nothing is launched."""
    launches = []

    def record(kernel, *args, grid, warmup, **options):
        launches.append((kernel, args, options))

    with mock.patch.object(JITFunction, "run", record):
        call()
    (only,) = launches
    return only


def compile_for(arch: int, kernel: JITFunction, args: tuple, options: dict) -> tuple[str, str]:
    """(PTX, ptxas log) of a kernel as Triton's just-in-time path would build it for sm_`arch`."""
    target = GPUTarget("cuda", arch, 32)
    backend = make_backend(target)
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, extra = bind(*args, **options)
    parsed, signature, constants, attributes = kernel._pack_args(
        backend, options, bound, specialization, extra
    )
    source = ASTSource(kernel, signature, constants, attributes)
    log = io.StringIO()
    with contextlib.redirect_stdout(log):
        compiled = triton.compile(source, target=target, options=vars(parsed))
    return compiled.asm["ptx"], log.getvalue()


def measure(case: Case, arch: int, dtype: torch.dtype, columns: int) -> Row:
    """Compile one case and read its numbers."""
    x, weight = torch.empty(ROWS, columns, dtype=dtype), torch.empty(columns)
    kernel, args, options = intercept(lambda: case.call(x, weight))
    ptx, log = compile_for(arch, kernel, args, options)
    return Row(
        kernel=case.kernel,
        arch=arch,
        dtype=str(dtype).removeprefix("torch."),
        columns=columns,
        warps=options.get("num_warps", 4),
        loads=count_wide(ptx, "ld"),
        stores=count_wide(ptx, "st"),
        reads_rows=case.reads_rows,
        **parse_ptxas(log),
    )


def to_markdown(rows: list[Row]) -> str:
    """The table with what it means."""
    lines = [
        "# Ahead-of-time compile gate",
        "",
        f"Written by `python -m benchmarks.aot --write benchmarks/aot.md` with Triton {triton.__version__}; "
        "no GPU was present. The weight is float32 throughout.",
        "",
        "Gated: spill bytes and local memory must be 0; every global load of a kernel that reads rows, and "
        f"every global store, must be at least {WIDE_BITS} bits wide. Registers and warps are information. "
        "Gated are row lengths divisible by 16 in bfloat16 and float32. Other lengths are loaded element by "
        "element; beyond 4,096 columns their backward with dw spills up to 120 bytes a thread, and that of "
        "float64 up to 492.",
        "",
        "| " + " | ".join(HEADER) + " |",
        "|" + " --- |" * len(HEADER),
        *("| " + " | ".join(row.cells()) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Run the gate; the exit status is 1 if a row fails."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.aot", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--arch", type=int, nargs="+", default=ARCHITECTURES, help="compute capability × 10")
    parser.add_argument("--columns", type=int, nargs="+", default=COLUMNS, help="row lengths")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table as Markdown too")
    options = parser.parse_args(argv)

    warnings.filterwarnings("ignore", message="TRITON_DEFAULT_FP_FUSION is unset")
    # a kernel from the cache comes without ptxas' log
    triton.knobs.compilation.always_compile = True
    triton.knobs.nvidia.dump_ptxas_log = True
    rows = [
        measure(case, arch, dtype, columns)
        for case in CASES
        for arch in options.arch
        for dtype in DTYPES
        for columns in options.columns
    ]

    table = Table(*HEADER, title=f"Triton {triton.__version__}")
    for row in rows:
        table.add_row(*row.cells(), style="red" if row.faults() else None)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    failed = [row for row in rows if row.faults()]
    for row in failed:
        console.print(f"FAIL {' '.join(row.cells())}", style="red", highlight=False, soft_wrap=True)
    console.print(f"{len(rows) - len(failed)} of {len(rows)} pass")
    if options.write:
        options.write.write_text(to_markdown(rows), encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
