"""Build the CUDA kernels of `csrc/cuda` with nvcc, into `ofa_kernels/_cuda.so`; no GPU is needed.

    python -m ofa_kernels.build_cuda                  # for every card that the kernels run on
    python -m ofa_kernels.build_cuda --arch 90a       # for an H100 or H200 alone, in a third of the time

`pip install` does the same where it finds nvcc, unless the environment says OFA_CUDA=0. nvcc is the command
in $NVCC, else $CUDA_HOME/bin/nvcc, else the one on PATH; it must be of CUDA 12 or later. What is up to date
in build/cuda is not compiled again.

setup.py loads this file by its path where there is no PyTorch: it may import Python's own modules only.
"""

import argparse
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIBRARY = Path("ofa_kernels") / "_cuda.so"
# Machine code runs on cards of the same major version and a minor one that is no older: that of 80 on 86
# and 89 too, that of 100 on 103. The letter a, for what one version alone has, makes an exception: 90a runs
# on 90, which is the only 9.x there is.
ARCHITECTURES = ("80", "90a", "100")
OLDEST_CUDA = 12  # the first that knows 90a
FLAGS = ["-std=c++17", "-O3", "-cudart", "static", "-Xcompiler", "-fPIC,-fvisibility=hidden", "-Xptxas", "-v"]


class BuildError(RuntimeError):
    """What keeps the kernels from being built."""


class NoCompilerError(BuildError):
    """There is no nvcc."""


def run(command: list[str], folder: Path = Path()) -> str:
    """Run one command in a folder.

    Returns:
        What it printed, on both streams.

    Raises:
        BuildError: it failed or is not there; the message is its own.
    """
    try:
        done = subprocess.run(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    except OSError as error:
        raise BuildError(f"$ {shlex.join(command)}\n{error}") from error
    if done.returncode:
        raise BuildError(f"$ {shlex.join(command)}\n{done.stdout}")
    return done.stdout


@dataclass(frozen=True)
class Compiler:
    """An nvcc.

    Attributes:
        command: Its path, and arguments that it always gets.
        release: Its version, such as "13.0.88".
        known: The architectures that it can make machine code for, without letters.
    """

    command: list[str]
    release: str
    known: frozenset[str]

    def chosen(self, wanted: tuple[str, ...]) -> tuple[str, ...]:
        """Those of the wanted architectures that it can make machine code for, oldest first.

        Raises:
            BuildError: there are none.
        """
        chosen = sorted((a for a in wanted if a.rstrip("af") in self.known), key=number)
        if not chosen:
            raise BuildError(f"nvcc {self.release} knows none of the architectures {', '.join(wanted)}")
        return tuple(chosen)


def number(architecture: str) -> int:
    """90 for "90a"."""
    return int(architecture.rstrip("af"))


def find_compiler() -> Compiler:
    """The nvcc to use.

    Raises:
        NoCompilerError: there is none.
        BuildError: it fails, or is too old.
    """
    home = Path(os.environ.get("CUDA_HOME") or "/nowhere") / "bin" / "nvcc"
    if os.environ.get("NVCC"):
        command = shlex.split(os.environ["NVCC"])
    elif home.is_file():
        command = [str(home)]
    elif found := shutil.which("nvcc"):
        command = [found]
    else:
        raise NoCompilerError("no nvcc: $NVCC and $CUDA_HOME don't name one, and none is on PATH")
    version = run([*command, "--version"])
    release = re.search(r"V((\d+)\.[\d.]+)", version)
    if not release or int(release[2]) < OLDEST_CUDA:
        raise BuildError(f"CUDA {OLDEST_CUDA} or later is needed, and {shlex.join(command)} is:\n{version}")
    known = re.findall(r"sm_(\d+)", run([*command, "--list-gpu-code"]))
    return Compiler(command, release[1], frozenset(known))


def generated(architectures: tuple[str, ...]) -> list[str]:
    """nvcc's flags: machine code for each, and PTX, which later cards compile as they load it.

    The PTX is of the newest: 120, say, takes that of 100 or 90. Its letter is left out, since PTX that has
    one is for that version alone.
    """
    flags = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
    newest = number(architectures[-1])
    return [*flags, f"-gencode=arch=compute_{newest},code=compute_{newest}"]


@dataclass(frozen=True)
class Object:
    """One compiled source; `log` holds what ptxas said of its kernels."""

    source: Path
    path: Path

    @property
    def log(self) -> Path:
        """Beside it."""
        return self.path.with_suffix(".log")

    @property
    def key(self) -> Path:
        """What it was made from, as a digest."""
        return self.path.with_suffix(".key")

    def is_made_from(self, digest: str) -> bool:
        """Whether it is up to date."""
        return self.path.exists() and self.key.exists() and self.key.read_text() == digest


def compile_all(
    compiler: Compiler, architectures: tuple[str, ...], report: Callable[[str], None], root: Path = ROOT
) -> list[Object]:
    """Compile every source for the architectures, in parallel, unless what is in build/cuda is up to date.

    Args:
        compiler: An nvcc.
        architectures: Such as ("80", "90a"), oldest first.
        report: Is told of the work, and of each source that has been compiled.
        root: The folder of `csrc`.

    Raises:
        BuildError: there are no sources, or nvcc failed; the message is nvcc's.
    """
    csrc = root / "csrc"
    sources = sorted((csrc / "cuda").glob("*.cu"), key=lambda path: path.stat().st_size, reverse=True)
    if not sources:
        raise BuildError(f"there are no sources in {csrc / 'cuda'}: build in a checkout or an sdist")
    flags = [*FLAGS, *generated(architectures), "-Icsrc/include", "-Icsrc/cuda"]
    flags.append(f'-DOFA_CUDA_ARCHITECTURES="{" ".join(architectures)}"')
    common = hashlib.sha256(shlex.join([compiler.release, *flags]).encode())
    for header in sorted([*csrc.glob("cuda/*.cuh"), *csrc.glob("include/*.h")]):
        common.update(header.read_bytes())
    folder = Path("build") / "cuda" / "-".join(architectures)
    (root / folder).mkdir(parents=True, exist_ok=True)
    objects = [Object(source, root / folder / f"{source.stem}.o") for source in sources]
    digests = {
        made: hashlib.sha256(common.digest() + made.source.read_bytes()).hexdigest() for made in objects
    }
    stale = [made for made in objects if not made.is_made_from(digests[made])]
    processes = os.cpu_count() or 1
    if stale:
        report(f"compiling {', '.join(made.source.name for made in stale)}, {processes} at a time")

    def compile_one(made: Object) -> None:
        begun = time.monotonic()
        made.key.unlink(missing_ok=True)
        source, target = (str(path.relative_to(root)) for path in (made.source, made.path))
        said = run([*compiler.command, *flags, "-c", source, "-o", target], root)
        made.log.write_text(said, encoding="utf-8")
        made.key.write_text(digests[made])
        report(f"{made.source.name}: {time.monotonic() - begun:.0f} s")

    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(compile_one, stale))
    return objects


def build(
    library: Path,
    wanted: tuple[str, ...] = ARCHITECTURES,
    report: Callable[[str], None] = print,
    root: Path = ROOT,
) -> None:
    """Build the library, whole or not at all; where this fails an earlier one is gone.

    Args:
        library: Where it goes; the reason of a failure goes beside it, into a file with the suffix .log.
        wanted: Architectures; those that nvcc doesn't know are left out.
        report: Is told what is being done.
        root: The folder of `csrc`.

    Raises:
        NoCompilerError: there is no nvcc.
        BuildError: the build failed, for the reason that the log holds.
    """
    log, unfinished = library.with_suffix(".log"), library.with_suffix(".part")
    library.parent.mkdir(parents=True, exist_ok=True)
    library.unlink(missing_ok=True)
    log.unlink(missing_ok=True)
    try:
        compiler = find_compiler()
        architectures = compiler.chosen(wanted)
        report(
            f"nvcc {compiler.release}, for {', '.join(architectures)} and PTX of {number(architectures[-1])}"
        )
        objects = [str(made.path) for made in compile_all(compiler, architectures, report, root)]
        link = ["-shared", "-cudart", "static", "-Xlinker", "-s"]
        run([*compiler.command, *link, *objects, "-o", str(unfinished)])
        unfinished.replace(library)
    except NoCompilerError:
        raise
    except (BuildError, OSError) as error:
        log.write_text(f"{error}\n", encoding="utf-8")
        raise BuildError(f"{error}\nThis is in {log} too.") from error


def main(argv: list[str] | None = None) -> int:
    """Build beside the sources; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m ofa_kernels.build_cuda",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--arch", nargs="+", default=ARCHITECTURES, help=f"of {', '.join(ARCHITECTURES)} (default: all)"
    )
    options = parser.parse_args(argv)
    if unknown := [name for name in options.arch if name not in ARCHITECTURES]:
        parser.error(f"{', '.join(unknown)}: the kernels are written for {', '.join(ARCHITECTURES)}")
    try:
        build(ROOT / LIBRARY, tuple(options.arch), lambda line: print(line, flush=True))
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"built {ROOT / LIBRARY}, {(ROOT / LIBRARY).stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
