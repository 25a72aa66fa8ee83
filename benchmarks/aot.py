"""Ahead-of-time gate: compile every Triton kernel for every architecture without a GPU, and read the result.

    python -m benchmarks.aot                                # exit status 1 if a kernel fails
    python -m benchmarks.aot --arch 90 --columns 576 --only rms_norm_forward
    python -m benchmarks.aot --write benchmarks/aot.md

The package's own launch functions run with the launches themselves intercepted, so what is compiled is what a
GPU would be given: the same warps, blocks and stages, and the arguments specialised by Triton's own rules.

Spill bytes and local memory must be 0, and global accesses to rows 128 bits wide. In the PTX every address is
traced back to the kernel argument that it comes from; arguments whose last size is the row length hold rows.
Left out are example ids, scratch sums and results of one number a row, which are a few bytes a program, and
rows whose length is no multiple of 16, which don't all start at a multiple of 16 bytes.
"""

import argparse
import contextlib
import importlib
import io
import os
import re
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

# the interpreter replaces @triton.jit at import, after which nothing can be compiled
os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
from rich.console import Console
from rich.table import Table
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from ofa_kernels.triton import launch

ARCHITECTURES = (80, 90, 100)
F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
COLUMNS = {
    BF16: (576, 2048, 4096, 8192, 16384, 32768, 65536, 577, 4097, 65535),
    F32: (576, 2048, 4096, 8192, 16384, 32768, 65536, 577, 4097, 65535),
    F16: (4096, 65536),
    F64: (576, 65536, 577),
}
ROWS = 352
PROBES = 8
WIDE_BITS = 128
# a program adds up 64 columns and stores each once, a value a thread
NARROW = {("sum_partials", "out_ptr")}


def calls(dtype: torch.dtype, columns: int) -> list[Callable[[], object]]:
    """Every launcher at one shape; tensors of the device "meta" have sizes and no memory."""
    x, w = torch.empty(ROWS, columns, dtype=dtype, device="meta"), torch.empty(columns, device="meta")
    ids, layers = torch.arange(ROWS, device="meta"), torch.arange(1, device="meta")
    p = x.new_empty(PROBES, *x.shape)
    lengths = x.new_empty(PROBES, ROWS, dtype=F64 if dtype == F64 else F32)
    eps, offset, layer = 1e-6, 0.0, 1  # Triton makes a 1 a constant where it may: it must not here
    found = [
        lambda: launch.rms_norm_forward(x, w, eps, offset, "hf"),
        lambda: launch.add_rms_norm_forward(x, x, w, eps, offset, "fp32"),
        lambda: launch.rms_norm_backward(x, w, x, x, eps, offset, True, True),
        lambda: launch.rms_norm_backward(x, w, x, None, eps, offset, True, False),
        lambda: launch.step_lengths(p),
        lambda: launch.step_lengths_backward(p, lengths[1:], lengths[1:]),
    ]
    for seed in (1, torch.empty((), dtype=torch.int64, device="meta")):
        found += [
            lambda s=seed: launch.rademacher(columns, ids, PROBES, layers, s, dtype),
            lambda s=seed: launch.preconditioned_probes(x, w, eps, offset, s, PROBES, ids, layer),
            lambda s=seed: launch.preconditioned_probes_backward(x, w, p, eps, offset, s, ids, layer),
            lambda s=seed: launch.probe_dot(p, s, ids, layer),
            lambda s=seed: launch.probe_scale(lengths, columns, s, ids, layer, dtype),
        ]
    for k in (1, 16):
        t, v = x.new_empty(k, *x.shape), w.new_empty(k, columns)
        found += [
            lambda t=t, v=v: launch.rms_norm_jvp(x, w, t, v, eps, offset),
            lambda t=t, v=v: launch.rms_norm_backward_tangent(x, w, x, t, v, t, eps, offset, True),
            lambda t=t, v=v: launch.rms_norm_backward_tangent(x, w, x, t, None, t, eps, offset, False),
            lambda t=t, v=v: launch.rms_norm_jvp_backward(x, w, t, t, v, eps, offset, True, True),
            lambda t=t, v=v: launch.rms_norm_jvp_backward(x, w, t, t, None, eps, offset, True, False),
        ]
    return found


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
    loads: tuple[int, int]
    stores: tuple[int, int]

    def faults(self, aligned: bool) -> list[str]:
        """Why this build fails the gate; empty where it passes."""
        gated = {
            "bytes of spill stores": self.spill_stores,
            "bytes of spill loads": self.spill_loads,
            "bytes of local memory": self.stack,
        }
        found = [f"{value} {name}" for name, value in gated.items() if value]
        for name, (wide, total) in {"loads": self.loads, "stores": self.stores}.items():
            if aligned and wide < total:
                found.append(f"{total - wide} of {total} global {name} narrower than {WIDE_BITS} bits")
        if not self.loads[1] + self.stores[1]:
            found.append("no global access to rows")
        return found


@dataclass
class Row:
    """One kernel with one set of constants on every architecture, for all lengths and types it serves."""

    kernel: str
    variant: str
    aligned: bool
    dtypes: list[str]
    columns: list[int]
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
        lists = (", ".join(map(str, values)) for values in (self.dtypes, self.columns))
        registers = (str(use.registers) for use in self.uses.values())
        spills = str(max(use.spill_stores + use.spill_loads + use.stack for use in self.uses.values()))
        verdict = "; ".join(self.faults()) or "pass"
        return [self.kernel, self.variant, *lists, *registers, spills, loads, stores, verdict]


def parse_ptxas(log: str) -> dict[str, int]:
    """Registers, stack frame and spill bytes from what `ptxas -v` says.

    Raises:
        ValueError: the log doesn't hold the numbers, so nothing can be said about the kernel.
    """
    sizes = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    registers = re.search(r"Used (\d+) registers", log)
    if not (sizes and registers):
        raise ValueError(f"ptxas said nothing about registers and spills: {log!r}")
    values = map(int, (registers[1], *sizes.groups()))
    return dict(zip(("registers", "stack", "spill_stores", "spill_loads"), values, strict=True))


def accesses(ptx: str, instruction: str) -> list[tuple[int, int]]:
    """(pointer argument, bits) of every global `ld` or `st`, pointers counted in the kernel's order.

    Raises:
        ValueError: an address comes from no pointer argument or from several, or there are asynchronous
            copies, which aren't counted.
    """
    if "cp.async" in ptx:
        raise ValueError("asynchronous copies from global memory are not counted")
    pointers = re.findall(r"\.param \.u64 \.ptr \S+ \.align \d+ (\w+)", ptx)
    sources: dict[str, set[str]] = {}
    # what is loaded from global memory is data: an address made with it is not one of it
    for name, operands in re.findall(r"^\s*(?:@!?%p\d+\s+)?(?!ld\.global)\S+\s+(%rd\d+),(.*);", ptx, re.M):
        sources.setdefault(name, set()).update(re.findall(r"%rd\d+|\w+_param_\d+", operands))

    def origins(name: str) -> set[int]:
        found, seen, left = set(), set(), [name]
        while left:
            name = left.pop()
            if name in pointers:
                found.add(pointers.index(name))
            elif name not in seen:
                seen.add(name)
                left += sources.get(name, ())
        return found

    found = []
    pattern = rf"\b{instruction}\.global\S*?(?:\.v(\d))?\.[a-z]+(\d+)\s[^;\[]*\[ *(%rd\d+)"
    for vector, bits, address in re.findall(pattern, ptx):
        argument = origins(address)
        if len(argument) != 1:
            raise ValueError(f"address {address} is made from {len(argument)} pointer arguments")
        found.append((argument.pop(), int(vector or 1) * int(bits)))
    return found


def intercept(call: Callable[[], object]) -> list[tuple[JITFunction, tuple, dict]]:
    """The kernels that `call` launches, each with its arguments and options; nothing is launched."""
    launches = []

    def record(kernel, *args, grid, warmup, **options):
        launches.append((kernel, args, options))

    with mock.patch.object(JITFunction, "run", record):
        call()
    return launches


def specialise(arch: int, columns: int, kernel: JITFunction, args: tuple, options: dict) -> Build:
    """What Triton's just-in-time path would compile for sm_`arch`."""
    backend = make_backend(GPUTarget("cuda", arch, 32))
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, extra = bind(*args, **options)
    parsed, signature, constants, attributes = kernel._pack_args(
        backend, options, bound, specialization, extra
    )
    rows = frozenset(
        name
        for name, value in bound.items()
        if isinstance(value, torch.Tensor)
        and value.shape[-1:] == (columns,)
        and (kernel.__name__, name) not in NARROW
    )
    return Build(
        kernel.__module__, kernel.__name__, arch, signature, constants, attributes, vars(parsed), rows
    )


def compile_build(build: Build) -> Use:
    """Compile and read the numbers."""
    kernel = getattr(importlib.import_module(build.module), build.kernel)
    source = ASTSource(kernel, build.signature, build.constants, build.attributes)
    log = io.StringIO()
    with contextlib.redirect_stdout(log):
        compiled = triton.compile(source, target=GPUTarget("cuda", build.arch, 32), options=build.options)
    pointers = [name for name, kind in build.signature.items() if kind.startswith("*")]

    def wide(instruction: str) -> tuple[int, int]:
        found = accesses(compiled.asm["ptx"], instruction)
        widths = [bits for argument, bits in found if pointers[argument] in build.row_arguments]
        return sum(bits >= WIDE_BITS for bits in widths), len(widths)

    return Use(loads=wide("ld"), stores=wide("st"), **parse_ptxas(log.getvalue()))


def variant_of(build: Build) -> str:
    """What tells apart the builds of one kernel: absent arguments, stage, block and warps."""
    names = list(build.signature)
    constants = {names[path[0]]: value for path, value in build.constants.items()}
    absent = [name.removesuffix("_ptr") for name, value in constants.items() if value is None]
    absent = [f"no {name}" for name in absent if name not in ("sums", "seed")]
    absent += ["seed in memory"] if build.signature.get("seed_ptr", "").startswith("*") else []
    stage = [str(constants["STAGE"])] if "STAGE" in constants else []
    return ", ".join([*stage, f"{constants['BLOCK_N']} × {build.options['num_warps']}", *absent])


def _prepare() -> None:
    warnings.filterwarnings("ignore", message="TRITON_DEFAULT_FP_FUSION is unset")
    # a kernel from the cache comes without ptxas' log
    triton.knobs.compilation.always_compile = True
    triton.knobs.nvidia.dump_ptxas_log = True


def measure(architectures: list[int], columns: list[int] | None, only: str) -> list[Row]:
    """Compile what the launchers would launch, each build once, and read the numbers."""
    builds: dict[str, Build] = {}
    found: dict[str, tuple[Row, list[str]]] = {}
    launches = (
        (dtype, n, *launched)
        for dtype, lengths in COLUMNS.items()
        for n in columns or lengths
        for call in calls(dtype, n)
        for launched in intercept(call)
    )
    for dtype, n, kernel, args, options in launches:
        if only not in kernel.__name__:
            continue
        mine = [specialise(arch, n, kernel, args, options) for arch in architectures]
        keys = [build.key() for build in mine]
        builds |= dict(zip(keys, mine, strict=True))
        row = Row(mine[0].kernel, variant_of(mine[0]), n % 16 == 0, [], [], {})
        row, _ = found.setdefault(keys[0], (row, keys))
        row.dtypes += {str(dtype).removeprefix("torch.")} - set(row.dtypes)
        row.columns += {n} - set(row.columns)
    with ProcessPoolExecutor(os.cpu_count(), initializer=_prepare) as pool:
        uses = dict(zip(builds, pool.map(compile_build, builds.values(), chunksize=8), strict=True))
    for row, keys in found.values():
        row.uses |= {arch: uses[key] for arch, key in zip(architectures, keys, strict=True)}
    return sorted((row for row, _ in found.values()), key=lambda row: (row.kernel, not row.aligned))


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


def to_markdown(rows: list[Row]) -> str:
    """What every kernel needs at most, then one line for each of the builds that matter most."""

    def table(names: list[str], lines: list[list[str]]) -> list[str]:
        return ["| " + " | ".join(line) + " |" for line in (names, ["---"] * len(names), *lines)]

    common = [row for row in rows if row.aligned and set(row.dtypes) & {"bfloat16", "float32"}]
    registers = (f"registers sm_{arch}" for arch in rows[0].uses)
    names = ["kernel", "variant", "x", "columns", *registers]
    names += ["spill and local bytes", "wide loads", "wide stores", "verdict"]
    lines = [
        "# Ahead-of-time compile gate",
        "",
        f"Written by `python -m benchmarks.aot --write benchmarks/aot.md` with Triton {triton.__version__}; "
        "no GPU was present. The weight is float32 throughout; 1 and 16 tangents are the same machine code.",
        "",
        "Gated: spill bytes and local memory must be 0 everywhere, and where the row length is a multiple of "
        f"16 every global load and store of a row must be {WIDE_BITS} bits wide. Registers are information.",
        "",
        "## Every build, the most that one of them uses",
        "",
        *table(*summary(rows)),
        "",
        "## bfloat16 and float32, lengths that are multiples of 16",
        "",
        "A variant is its stage (`row`: a program holds a row; `sums`, `apply`: the two launches for rows "
        "cut into blocks), columns a program × warps, and what sets its arguments apart.",
        "",
        *table(names, [row.cells() for row in common]),
    ]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Run the gate; the exit status is 1 if a row fails."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.aot", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
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
        options.write.write_text(to_markdown(rows), encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
