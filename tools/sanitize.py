"""Sanitizer gate: the CPU kernels under AddressSanitizer and UBSan, fuzzed and called from Python.

    python -m tools.sanitize                        # exit status 1 on a finding
    python -m tools.sanitize --isa avx2 --cases 20000 --seed 7
    python -m tools.sanitize --python tests/ofa_kernels/native

Every kernel is compiled once for each instruction set and linked with `csrc/fuzz.cpp`, which calls the C
interface with random types, shapes, strides, absent tensors and misaligned rows. Buffers end with their last
element, so that a read or write of one element too many is a finding; so is an output that is left unwritten
or an input that is changed.

Then tests run in a Python whose `ofa_kernels.native` calls the same kernels: whether it hands them the right
pointers, sizes and strides of torch's tensors, which are surrounded by memory that may not be touched.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
KERNEL_FLAGS = ["-O1", "-g1", "-fno-omit-frame-pointer", *SANITIZERS]
# it doubles the time to compile, and scopes are the same for every instruction set: portable keeps it
FAST = ["-fno-sanitize-address-use-after-scope"]
SEED, CASES = 20260101, 5000
PYTHON_TESTS = ["tests/ofa_kernels/test_uses.py"]
# pytest with the library of the first argument; a finding ends the process, so pytest must not capture it
RUN_TESTS = """
import sys
from pathlib import Path

import pytest

from ofa_kernels.native import library

library.LIBRARY = Path(sys.argv[1])
assert library.missing() is None, library.missing()
assert sys.argv[1] in Path("/proc/self/maps").read_text(), "another library was loaded"
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "--capture=sys", "-k", "native", *sys.argv[2:]]))
"""


def load_setup() -> ModuleType:
    """The repository's `setup.py`, which knows the compiler, its flags and the instruction sets."""
    spec = importlib.util.spec_from_file_location("ofa_setup", ROOT / "setup.py")
    if spec is None or spec.loader is None:
        raise RuntimeError("setup.py can't be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compile_kernels(folder: Path, names: list[str]) -> list[Path]:
    """Compile the kernels with the sanitizers.

    Args:
        folder: Where the objects go.
        names: The instruction sets: all that there are, or "portable" alone.

    Returns:
        The objects.

    Raises:
        RuntimeError: there is no compiler, or it failed; the message is the compiler's.
    """
    setup = load_setup()
    jobs = [(setup.CSRC / "cpu" / "dispatch.cpp", folder / "dispatch.o", [])]
    for name in names:
        of_set = setup.INSTRUCTION_SETS[name]
        chosen = [f"-DOFA_ISA={name}", *KERNEL_FLAGS, *of_set, *(FAST if of_set else [])]
        jobs += [(source, folder / f"{source.stem}.{name}.o", chosen) for source in setup.KERNELS]
    # the slowest first
    jobs.sort(key=lambda job: job[0].stat().st_size, reverse=True)
    # the switch that makes dispatch.cpp look for more than the portable kernels
    flags = [f for f in setup.FLAGS if f != "-O3" and (names != ["portable"] or f != "-DOFA_X86")]

    def compile_one(job: tuple[Path, Path, list[str]]) -> None:
        source, target, chosen = job
        setup.run([*setup.compiler(), *flags, *chosen, "-c", str(source), "-o", str(target)])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, jobs))
    return [job[1] for job in jobs]


def link_fuzzer(folder: Path, kernels: list[Path]) -> Path:
    """Compile the fuzzer and link it with the kernels' objects; the program."""
    setup = load_setup()
    program, source = folder / "fuzz", str(setup.CSRC / "fuzz.cpp")
    flags = [flag for flag in setup.FLAGS if flag != "-O3"]
    setup.run([*setup.compiler(), *flags, "-O2", *SANITIZERS, source, *map(str, kernels), "-o", str(program)])
    return program


def link_library(folder: Path, kernels: list[Path]) -> Path:
    """Link the kernels' objects as `setup.py` does, without an OpenMP runtime; the library."""
    setup = load_setup()
    library = folder / "_native.so"
    setup.run([*setup.compiler(), "-shared", *SANITIZERS, *map(str, kernels), "-o", str(library)])
    return library


def runtimes() -> str:
    """What a Python has to load before all else so that a library in it can be sanitized.

    Raises:
        RuntimeError: the compiler has no shared runtime of that name.
    """
    cxx, libraries = load_setup().compiler(), []
    for name in ("libasan.so", "libstdc++.so"):
        done = subprocess.run([*cxx, f"-print-file-name={name}"], capture_output=True, text=True)
        libraries.append(done.stdout.strip())
        if not Path(libraries[-1]).is_absolute():
            raise RuntimeError(f"{cxx[0]} has no {name}: set CXX to a GCC")
    return " ".join(libraries)


def run_tests(library: Path, files: list[str]) -> bool:
    """Run the tests of `files` whose names speak of native, with `library` in place of the installed one.

    Args:
        library: Linked with the sanitizers.
        files: Of tests.

    Returns:
        Whether all passed and nothing was found.
    """
    options = "detect_leaks=0"  # Python's own
    environment = {**os.environ, "LD_PRELOAD": runtimes(), "ASAN_OPTIONS": options}
    environment["UBSAN_OPTIONS"] = "print_stacktrace=1"
    command = [sys.executable, "-c", RUN_TESTS, str(library), *files]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
    if done.returncode:
        print(f"FAIL {' '.join(files)}\n{done.stdout}{done.stderr}")
    else:
        print(f"pass {' '.join(files)}: {done.stdout.strip().splitlines()[-1]}", flush=True)
    return done.returncode == 0


def fuzz(program: Path, name: str, seed: int, cases: int) -> bool:
    """Run the cases with one instruction set.

    Args:
        program: The fuzzer.
        name: The instruction set.
        seed: Of the first case; each further case adds 1.
        cases: How many.

    Returns:
        Whether nothing was found. An instruction set that the processor lacks is skipped, and a line says so.
    """
    environment = {**os.environ, "OFA_NATIVE_ISA": name, "UBSAN_OPTIONS": "print_stacktrace=1"}
    done = subprocess.run(
        [program, str(seed), str(cases)], env=environment, capture_output=True, text=True, errors="replace"
    )
    used = done.stdout.partition(":")[0]
    if done.returncode:
        print(f"FAIL {name}, seed {seed}\n{done.stdout}{done.stderr}")
    elif used != name:
        print(f"skip {name}: this processor lacks it")
    else:
        print(f"pass {done.stdout.strip()}, seed {seed}", flush=True)
    return done.returncode == 0


def main(arguments: list[str] | None = None) -> int:
    """Compile, fuzz, print; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.sanitize",
        description="Run the CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer.",
        epilog="example: python -m tools.sanitize --isa avx2 --cases 20000 --seed 7",
    )
    parser.add_argument("--isa", action="append", help="only this instruction set (may be repeated)")
    parser.add_argument(
        "--cases", type=int, default=CASES, help="for each instruction set (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=SEED, help="of the first case (default: %(default)s)")
    parser.add_argument(
        "--python",
        nargs="+",
        metavar="FILE",
        help="only the native tests of these files, with portable kernels",
    )
    options = parser.parse_args(arguments)
    os.chdir(ROOT)
    names = list(load_setup().INSTRUCTION_SETS)
    if unknown := set(options.isa or []) - set(names):
        parser.error(f"unknown instruction set {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            kernels = compile_kernels(folder, ["portable"] if options.python else names)
            passed = []
            if not options.python:
                program = link_fuzzer(folder, kernels)
                passed = [fuzz(program, name, options.seed, options.cases) for name in options.isa or names]
            passed.append(run_tests(link_library(folder, kernels), options.python or PYTHON_TESTS))
        except (RuntimeError, OSError) as error:
            print(f"FAIL to compile: {error}")
            return 1
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
