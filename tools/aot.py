"""Ahead-of-time gate: compile every Triton kernel for every architecture without a GPU, and read the result.

    python -m tools.aot                                # exit status 1 if a kernel fails
    python -m tools.aot --arch 90 --columns 576 --only rms_norm_forward
    python -m tools.aot --write tools/aot.md

The package's own launch functions run with the launches themselves intercepted, so what is compiled is what a
GPU would be given: the same warps, blocks and stages, and the arguments specialised by Triton's own rules.

Spill bytes and local memory must be 0, and global accesses to rows 128 bits wide. In the PTX every address is
traced back to the kernel argument that it comes from; arguments whose last size is the row length hold rows.
Left out are example ids, scratch sums and results of one number a row, which are a few bytes a program, and
rows of which some don't start at a multiple of 16 bytes.
"""

import argparse
import contextlib
import importlib
import io
import os
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

# the interpreter replaces @triton.jit at import, after which nothing can be compiled
os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
from rich.console import Console
from rich.table import Table
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from tools.aot_cases import CASES, cases_of, launches
from tools.ptx import accesses, parse_ptxas

ARCHITECTURES = (80, 90, 100)
WIDE_BITS = 128
# a program adds up 64 columns and stores each once, a value a thread
NARROW = {("sum_partials", "out_ptr"), ("sum_segments", "out_ptr")}
# arguments of which a variant does not say that they are absent
_UNSAID = ("sums", "seed", "index", "order", "ranks")


@dataclass(frozen=True)
class Build:
    """A kernel as Triton would compile it for sm_`arch`: no tensors, so that another process can."""

    module: str
    kernel: str
    arch: int
    signature: dict
    constants: dict
    attributes: dict
    options: dict
    row_arguments: frozenset[str]
    aligned: bool

    def key(self) -> str:
        """Equal for builds with the same machine code."""
        return repr((self.module, self.kernel, self.signature, self.constants, self.attributes, self.options))


@dataclass(frozen=True)
class Use:
    """What one build uses; `loads` and `stores` are (wide, all) global accesses to rows."""

    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int
    loads: tuple[int, int]
    stores: tuple[int, int]

    def faults(self, aligned: bool) -> list[str]:
        """Why this build fails the gate; empty where it passes."""
        gated = {
            "bytes of spill stores": self.spill_stores,
            "bytes of spill loads": self.spill_loads,
            "bytes of local memory": self.stack,
        }
        faults = [f"{value} {name}" for name, value in gated.items() if value]
        for name, (wide, total) in {"loads": self.loads, "stores": self.stores}.items():
            if aligned and wide < total:
                faults.append(f"{total - wide} of {total} global {name} narrower than {WIDE_BITS} bits")
        if not self.loads[1] + self.stores[1]:
            faults.append("no global access to rows")
        return faults


@dataclass
class Row:
    """One kernel with one set of constants on every architecture, for all lengths and types it serves."""

    kernel: str
    variant: str
    aligned: bool
    dtypes: list[str]
    columns: list[str]
    uses: dict[int, Use]

    def faults(self) -> list[str]:
        """The faults on every architecture."""
        return [
            f"sm_{arch}: {fault}" for arch, use in self.uses.items() for fault in use.faults(self.aligned)
        ]

    def cells(self) -> list[str]:
        """The row as text."""
        loads, stores = (
            " ".join(sorted({"{}/{}".format(*getattr(use, name)) for use in self.uses.values()}))
            for name in ("loads", "stores")
        )
        lists = (", ".join(values) for values in (self.dtypes, self.columns))
        registers = (str(use.registers) for use in self.uses.values())
        shared = str(max(use.shared for use in self.uses.values()))
        spills = str(max(use.spill_stores + use.spill_loads + use.stack for use in self.uses.values()))
        verdict = "; ".join(self.faults()) or "pass"
        return [self.kernel, self.variant, *lists, *registers, shared, spills, loads, stores, verdict]


def specialise(arch: int, columns: int, kernel: JITFunction, args: tuple, options: dict) -> Build:
    """What Triton's just-in-time path would compile for sm_`arch`."""
    backend = make_backend(GPUTarget("cuda", arch, 32))
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, extra = bind(*args, **options)
    parsed, signature, constants, attributes = kernel._pack_args(
        backend, options, bound, specialization, extra
    )
    rows = {
        name: value
        for name, value in bound.items()
        if isinstance(value, torch.Tensor)
        and value.shape[-1:] == (columns,)
        and (kernel.__name__, name) not in NARROW
    }
    return Build(
        kernel.__module__,
        kernel.__name__,
        arch,
        signature,
        constants,
        attributes,
        vars(parsed),
        frozenset(rows),
        all(map(starts_at_vectors, rows.values())),
    )


def starts_at_vectors(rows: torch.Tensor) -> bool:
    """Whether every row starts at a multiple of the widest access."""
    starts = [rows.storage_offset(), *rows.stride()[:-1]]
    return not any(8 * start * rows.element_size() % WIDE_BITS for start in starts)


def compile_build(build: Build) -> Use:
    """Compile and read the numbers."""
    kernel = getattr(importlib.import_module(build.module), build.kernel)
    source = ASTSource(kernel, build.signature, build.constants, build.attributes)
    log = io.StringIO()
    with contextlib.redirect_stdout(log):
        compiled = triton.compile(source, target=GPUTarget("cuda", build.arch, 32), options=build.options)
    pointers = [name for name, kind in build.signature.items() if kind.startswith("*")]

    def wide(instruction: str) -> tuple[int, int]:
        traced = accesses(compiled.asm["ptx"], instruction)
        widths = [bits for argument, bits in traced if pointers[argument] in build.row_arguments]
        return sum(bits >= WIDE_BITS for bits in widths), len(widths)

    return Use(
        shared=compiled.metadata.shared,
        loads=wide("ld"),
        stores=wide("st"),
        **parse_ptxas(log.getvalue()),
    )


def variant_of(build: Build) -> str:
    """What tells apart the builds of one kernel: stage, block, warps, rows in flight, absent arguments."""
    names = list(build.signature)
    constants = {names[path[0]]: value for path, value in build.constants.items()}
    absent = [name.removesuffix("_ptr") for name, value in constants.items() if value is None]
    absent = [f"no {name}" for name in absent if name not in _UNSAID]
    seed = "a seed a row" if constants.get("SEED_PER_ROW") else "seed in memory"
    absent += [seed] if build.signature.get("seed_ptr", "").startswith("*") else []
    absent += [name for name in ("index", "order") if build.signature.get(f"{name}_ptr", "").startswith("*")]
    absent += ["float32 sums"] if constants.get("SUM_F64") is False else []
    stage = [str(constants["STAGE"])] if "STAGE" in constants else []
    size = f"{constants['BLOCK_N']} × {build.options['num_warps']}"
    pipeline = constants.get("PIPELINE", 1)
    in_flight = [f"{pipeline} rows in flight"] if pipeline > 1 else []
    return ", ".join([*stage, size, *in_flight, *absent])


def _prepare() -> None:
    warnings.filterwarnings("ignore", message="TRITON_DEFAULT_FP_FUSION is unset")
    # a kernel from the cache comes without ptxas' log
    knobs.compilation.always_compile = True
    knobs.nvidia.dump_ptxas_log = True


def measure(architectures: list[int], columns: list[int] | None, only: str) -> list[Row]:
    """Compile what the launchers would launch, each build once, and read the numbers."""
    builds: dict[str, Build] = {}
    by_key: dict[str, tuple[Row, list[str]]] = {}
    cases = cases_of(columns) if columns else CASES
    for case in cases:
        for kernel, args, options in launches(case):
            if only not in kernel.__name__:
                continue
            mine = [specialise(arch, case.columns, kernel, args, options) for arch in architectures]
            keys = [build.key() for build in mine]
            builds |= dict(zip(keys, mine, strict=True))
            row = Row(mine[0].kernel, variant_of(mine[0]), False, [], [], {})
            row, _ = by_key.setdefault(keys[0], (row, keys))
            row.aligned |= mine[0].aligned
            row.dtypes += {str(case.dtype).removeprefix("torch.")} - set(row.dtypes)
            row.columns += {str(case)} - set(row.columns)
    with ProcessPoolExecutor(os.cpu_count(), initializer=_prepare) as pool:
        uses = dict(zip(builds, pool.map(compile_build, builds.values(), chunksize=8), strict=True))
    for row, keys in by_key.values():
        row.uses |= {arch: uses[key] for arch, key in zip(architectures, keys, strict=True)}
    return sorted((row for row, _ in by_key.values()), key=lambda row: (row.kernel, not row.aligned))


def summary(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """One line a kernel, under a header: how many builds, and the most registers that one of them uses."""
    architectures = list(rows[0].uses)
    lines = []
    for kernel in dict.fromkeys(row.kernel for row in rows):
        mine = [row for row in rows if row.kernel == kernel]
        most = (str(max(row.uses[arch].registers for row in mine)) for arch in architectures)
        failing = sum(bool(row.faults()) for row in mine)
        lines.append([kernel, str(len(mine) * len(architectures)), *most, str(failing)])
    return ["kernel", "builds", *(f"registers sm_{arch}" for arch in architectures), "failing"], lines


def to_markdown(rows: list[Row], path: Path) -> str:
    """The text for `path`: what each kernel needs at most, then a line for each build that matters most."""

    def table(names: list[str], lines: list[list[str]]) -> list[str]:
        return ["| " + " | ".join(line) + " |" for line in (names, ["---"] * len(names), *lines)]

    common = [row for row in rows if row.aligned and set(row.dtypes) & {"bfloat16", "float32"}]
    registers = (f"registers sm_{arch}" for arch in rows[0].uses)
    names = ["kernel", "variant", "x", "columns", *registers]
    names += ["shared bytes", "spill and local bytes", "wide loads", "wide stores", "verdict"]
    lines = [
        "# Ahead-of-time compile gate",
        "",
        f"Written by `python -m tools.aot --write {path}` with Triton {triton.__version__}; "
        "no GPU was present. The weight is float32 throughout; 1 and 16 tangents are the same machine code.",
        "",
        "Gated: spill bytes and local memory must be 0 everywhere, and where every row starts at a multiple "
        f"of 16 bytes every global load and store of a row must be {WIDE_BITS} bits wide. Registers and "
        "shared memory are information.",
        "",
        "## Every build, the most that one of them uses",
        "",
        *table(*summary(rows)),
        "",
        "## bfloat16 and float32, rows that start at multiples of 16 bytes",
        "",
        "A variant is its stage (`row`: a program holds a row; `sums`, `apply`: the two launches for rows "
        "cut into blocks), columns a program × warps, rows in flight where there are several, and what sets "
        "its arguments apart. Columns of a wider tensor begin after the rest of it.",
        "",
        *table(names, [row.cells() for row in common]),
    ]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Run the gate; the exit status is 1 if a row fails."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.aot", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--arch", type=int, nargs="+", default=ARCHITECTURES, help="compute capability × 10")
    parser.add_argument("--columns", type=int, nargs="+", help="row lengths; default: those of the table")
    parser.add_argument("--only", default="", metavar="TEXT", help="kernels with TEXT in their names")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table as Markdown")
    options = parser.parse_args(argv)

    _prepare()
    rows = measure(list(options.arch), options.columns, options.only)
    console = Console(width=None if sys.stdout.isatty() else 160)
    names, lines = summary(rows)
    table = Table(*names, title=f"Triton {triton.__version__}")
    for line in lines:
        table.add_row(*line, style=None if line[-1] == "0" else "red")
    console.print(table)
    failed = [row for row in rows if row.faults()]
    for row in failed:
        console.print(f"FAIL {' '.join(row.cells())}", style="red", highlight=False, soft_wrap=True)
    console.print(f"{len(rows) - len(failed)} of {len(rows)} pass")
    if options.write:
        options.write.write_text(to_markdown(rows, options.write), encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
