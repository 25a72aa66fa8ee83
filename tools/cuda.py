"""Gate over what nvcc makes of `csrc/cuda`: compile every kernel without a GPU, and read its machine code.

    python -m tools.cuda                            # exit status 1 if a kernel fails, 0 without nvcc
    python -m tools.cuda --arch 90a
    python -m tools.cuda --write tools/cuda.md

No kernel may spill registers or have a stack. CLAIMS says what else each one is written for, and its machine
code must show: accesses of 128 bits to global memory, copies to shared memory of as many that no thread waits
for, barriers of a cluster and what its blocks send each other. A kernel that is not in CLAIMS fails, and so
does a committed table that is not what this nvcc gives.

What is up to date in build/cuda, where `pip install` leaves it, is read and not compiled again.
"""

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from ofa_kernels import build_cuda
from ofa_kernels.build_cuda import ARCHITECTURES, ROOT, BuildError, NoCompilerError, Object, number, run
from tools.ptx import parse_ptxas

TABLE = ROOT / "tools" / "cuda.md"
# what shows in the machine code of a kernel that has it, and the first architecture that can
FEATURES = {
    "128-bit loads": (r"\bLDG\.E\S*\.128", 80),
    "128-bit stores": (r"\bSTG\.E\S*\.128", 80),
    "128-bit copies": (r"\bLDGSTS\.E\S*\.128", 80),
    "cluster barriers": (r"\bUCGABAR_WAIT", 90),
    "deliveries": (r"\bSTAS\b", 90),  # what blocks of a cluster send each other, and wait for alone
    "early begin": (r"\bACQBULK", 90),  # waits itself for the kernels in front of it
    "device fences": (r"\bMEMBAR\.\w+\.GPU", 90),  # nobody's claim: each waits until all stores are in memory
}
LOADS, STORES, COPIES, CLUSTER, SENT, EARLY, _ = FEATURES
# rows are fetched ahead and summed over a cluster; the weight is loaded
RING = (LOADS, STORES, COPIES, CLUSTER, SENT)
# by the file that declares a kernel, which is part of its name here
CLAIMS = {
    "rms_norm.forward": RING,
    "rms_norm.backward": RING,
    "rms_norm_tangent.jvp": RING,
    "rms_norm_tangent.backward_tangent": RING,
    "rms_norm_tangent.jvp_backward": RING,
    "probes.rademacher": (STORES,),
    "probes.scale": (STORES,),
    "probes.dot": (LOADS,),
    "probes.probes": RING,
    "probes.backward": RING,
    "step_lengths.lengths": (LOADS,),
    "step_lengths.backward": (LOADS, STORES),
    # a warp reads 32 neighbouring values, a line of memory, and writes as many: no vectors are needed
    "row_sums.add_up_teams": (EARLY,),
}


@dataclass(frozen=True)
class Use:
    """What one build uses, and how often its machine code shows each of FEATURES."""

    registers: int
    stack: int
    spills: int
    counts: dict[str, int]

    def faults(self, kernel: str, architecture: str) -> list[str]:
        """Why this build fails; empty where it passes."""
        gated = {"bytes of spills": self.spills, "bytes of stack": self.stack}
        faults = [f"{value} {name}" for name, value in gated.items() if value]
        if kernel not in CLAIMS:
            return [*faults, "not in CLAIMS"]
        claimed = (name for name in CLAIMS[kernel] if number(architecture) >= FEATURES[name][1])
        return faults + [f"no {name}" for name in claimed if not self.counts[name]]


@dataclass(frozen=True)
class Row:
    """One kernel, by its file and name, for one type of its rows, on every architecture."""

    kernel: str
    variant: str
    uses: dict[str, Use]

    def faults(self) -> list[str]:
        """The faults on every architecture."""
        return [f"sm_{a}: {fault}" for a, use in self.uses.items() for fault in use.faults(self.kernel, a)]

    def cells(self) -> list[str]:
        """The row as text."""
        uses = self.uses.values()
        registers = [str(use.registers) for use in uses]
        counts = [" ".join(str(use.counts[name]) for use in uses) for name in FEATURES]
        lost = str(max(use.spills + use.stack for use in uses))
        return [self.kernel, self.variant, *registers, lost, *counts, "; ".join(self.faults()) or "pass"]


def parse_log(log: str) -> dict[tuple[str, str], dict[str, int]]:
    """What ptxas said, by architecture and mangled name.

    Args:
        log: Of nvcc with `-Xptxas -v`.

    Raises:
        ValueError: ptxas said nothing of a kernel's registers and spills.
    """
    parts = re.split(r"Compiling entry function '(\S+)' for 'sm_(\w+)'", log)[1:]
    return {(parts[i + 1], parts[i]): parse_ptxas(parts[i + 2]) for i in range(0, len(parts), 3)}


def parse_sass(sass: str) -> dict[tuple[str, str], dict[str, int]]:
    """How often each of FEATURES is in the machine code, by architecture and mangled name.

    Args:
        sass: What `cuobjdump -sass` prints of an object file.
    """
    found = {}
    parts = re.split(r"^arch = sm_(\w+)$", sass, flags=re.M)[1:]
    for architecture, code in zip(parts[::2], parts[1::2], strict=True):
        functions = re.split(r"^\s*Function : (\S+)$", code, flags=re.M)[1:]
        for name, text in zip(functions[::2], functions[1::2], strict=True):
            counts = {feature: len(re.findall(pattern, text)) for feature, (pattern, _) in FEATURES.items()}
            found[architecture, name] = counts
    return found


def demangled(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """(kernel, variant) of mangled names: ("forward", "bfloat16") of ofa::forward<ofa::bfloat16>(...).

    Raises:
        ValueError: a name is no kernel's of the namespace ofa.
    """
    names = list(names)
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    found = {}
    for name, text in zip(names, done.stdout.splitlines(), strict=True):
        parts = re.match(r"(?:void )?ofa::(\w+)(?:<(.*?)>)?\(", text)
        if not parts:
            raise ValueError(f"{text} is no kernel of the namespace ofa")
        found[name] = parts[1], (parts[2] or "").replace("ofa::", "")
    return found


def disassembler() -> str:
    """The path of cuobjdump, which CUDA has and Triton brings along.

    Raises:
        BuildError: there is none.
    """
    triton = find_spec("triton")
    inside = Path(triton.origin).parent / "backends" / "nvidia" / "bin" if triton and triton.origin else None
    found = shutil.which("cuobjdump") or (inside and shutil.which("cuobjdump", path=str(inside)))
    if not found:
        raise BuildError("no cuobjdump: it comes with CUDA's tools and with Triton")
    return found


def declared(csrc: Path) -> dict[str, set[str]]:
    """The names of the kernels in each source and header, by its stem."""
    files = [*csrc.glob("cuda/*.cu"), *csrc.glob("cuda/*.cuh")]
    pattern = r"__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\("
    return {file.stem: set(re.findall(pattern, file.read_text(encoding="utf-8"))) for file in files}


def full_name(kernel: str, source: str, names: dict[str, set[str]]) -> str:
    """The kernel's name with the file that declares it: the source itself, or else a header."""
    declaring = [stem for stem, kernels in names.items() if kernel in kernels]
    return f"{source if source in declaring else next(iter(declaring), source)}.{kernel}"


def read(objects: list[Object]) -> list[Row]:
    """A row for each kernel and type, by name.

    Raises:
        BuildError: an object can't be read.
        ValueError: ptxas' log and the machine code don't hold the same kernels.
    """
    tool = disassembler()
    with ThreadPoolExecutor() as pool:
        texts = list(pool.map(lambda made: run([tool, "-sass", str(made.path)]), objects))
    found: dict[tuple[str, str], dict[str, Use]] = {}
    for made, sass in zip(objects, texts, strict=True):
        counts, sizes = parse_sass(sass), parse_log(made.log.read_text(encoding="utf-8"))
        if counts.keys() != sizes.keys():
            raise ValueError(f"{made.source.name}: ptxas' log and the machine code hold different kernels")
        names = demangled(sorted({name for _, name in counts}))
        in_files = declared(made.source.parents[1])
        for architecture, mangled in sorted(counts, key=lambda key: number(key[0])):
            of = sizes[architecture, mangled]
            use = Use(
                of["registers"],
                of["stack"],
                of["spill_stores"] + of["spill_loads"],
                counts[architecture, mangled],
            )
            kernel, variant = names[mangled]
            of_kernel = found.setdefault((full_name(kernel, made.source.stem, in_files), variant), {})
            of_kernel[architecture] = use
    return [Row(*key, uses) for key, uses in sorted(found.items())]


def header(architectures: Iterable[str]) -> list[str]:
    """The names of a row's cells."""
    registers = (f"registers sm_{architecture}" for architecture in architectures)
    return ["kernel", "rows", *registers, "spill and stack bytes", *FEATURES, "verdict"]


def to_markdown(rows: list[Row], release: str) -> str:
    """The committed table."""
    names = header(rows[0].uses)
    lines = [
        "# What nvcc makes of the CUDA kernels",
        "",
        f"Written by `python -m tools.cuda --write tools/cuda.md` with nvcc {release}; no GPU was present.",
        "",
        "Gated: no spills, no stack, and the instructions that a kernel is written for (CLAIMS in "
        "tools/cuda.py) are in its machine code. They are counted for each architecture in turn; 128-bit "
        "copies are those to shared memory that no thread waits for. Beside the wide accesses each kernel "
        "has narrow ones, for rows that don't start at a multiple of 16 bytes.",
        "",
        *("| " + " | ".join(cells) + " |" for cells in (names, ["---"] * len(names))),
        *("| " + " | ".join(row.cells()) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def judge(rows: list[Row], csrc: Path) -> list[str]:
    """All that is wrong, a line each: rows that fail, and kernels of the sources that are in no row."""
    failed = [f"{row.kernel} {row.variant}: {fault}" for row in rows for fault in row.faults()]
    names = {f"{stem}.{kernel}" for stem, kernels in declared(csrc).items() for kernel in kernels}
    missing = sorted(names - {row.kernel for row in rows})
    return failed + [f"{name}: declared, and not in the machine code" for name in missing]


def main(argv: list[str] | None = None) -> int:
    """Run the gate; the exit status is 1 if a kernel fails."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.cuda", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--arch", nargs="+", choices=ARCHITECTURES, default=ARCHITECTURES, help="default: all"
    )
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table as Markdown")
    options = parser.parse_args(argv)

    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False, soft_wrap=True)
    try:
        compiler = build_cuda.find_compiler()
        architectures = compiler.chosen(tuple(options.arch))
        rows = read(build_cuda.compile_all(compiler, architectures, console.print))
    except NoCompilerError as error:
        console.print(f"skipped: {error}")
        return 0
    except (BuildError, ValueError) as error:
        console.print(f"FAIL {error}", style="red", markup=False)
        return 1
    text = to_markdown(rows, compiler.release)
    failed = judge(rows, ROOT / "csrc")
    if options.write:
        options.write.write_text(text, encoding="utf-8")
    elif architectures == ARCHITECTURES and f"with nvcc {compiler.release};" in (
        old := TABLE.read_text("utf-8")
    ):
        failed += ["tools/cuda.md is not what these sources give: run `make cuda`"] * (old != text)
    for line in failed:
        console.print(f"FAIL {line}", style="red", markup=False)
    most = {a: max(row.uses[a].registers for row in rows) for a in architectures}
    registers = ", ".join(f"{value} on sm_{a}" for a, value in most.items())
    console.print(f"{len(rows)} kernels by type, at most {registers} registers: {len(failed)} faults")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
