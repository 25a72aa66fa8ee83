"""Sanitizer gate: fuzz the CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer.

    python -m benchmarks.sanitize                        # exit status 1 on a finding
    python -m benchmarks.sanitize --isa avx2 --cases 20000 --seed 7

Every kernel is compiled once for each instruction set and linked with `csrc/fuzz.cpp`, which calls the C
interface with random types, shapes, strides, absent tensors and misaligned rows. Buffers end with their last
element, so that a read or write of one element too many is a finding; so is an output that is left unwritten
or an input that is changed.
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


def load_setup() -> ModuleType:
    """The repository's `setup.py`, which knows the compiler, its flags and the instruction sets."""
    spec = importlib.util.spec_from_file_location("ofa_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compile_fuzzer(folder: Path) -> Path:
    """Compile the kernels and the fuzzer with the sanitizers.

    Args:
        folder: Where objects and the program go.

    Returns:
        The program.

    Raises:
        RuntimeError: there is no compiler, or it failed; the message is the compiler's.
    """
    setup = load_setup()
    cxx = setup.compiler()
    flags = [flag for flag in setup.FLAGS if flag != "-O3"]
    jobs = [(setup.CSRC / "fuzz.cpp", folder / "fuzz.o", ["-O2"])]
    jobs += [(setup.CSRC / "cpu" / "dispatch.cpp", folder / "dispatch.o", [])]
    for name, of_set in setup.INSTRUCTION_SETS.items():
        chosen = [f"-DOFA_ISA={name}", *KERNEL_FLAGS, *of_set, *(FAST if of_set else [])]
        jobs += [(source, folder / f"{source.stem}.{name}.o", chosen) for source in setup.KERNELS]
    # the slowest first
    jobs.sort(key=lambda job: job[0].stat().st_size, reverse=True)

    def compile_one(job: tuple[Path, Path, list[str]]) -> None:
        source, target, chosen = job
        setup.run([*cxx, *flags, *chosen, "-c", str(source), "-o", str(target)])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, jobs))
    program = folder / "fuzz"
    setup.run([*cxx, *flags, *SANITIZERS, *(str(job[1]) for job in jobs), "-o", str(program)])
    return program


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
        prog="python -m benchmarks.sanitize",
        description="Fuzz the CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer.",
        epilog="example: python -m benchmarks.sanitize --isa avx2 --cases 20000 --seed 7",
    )
    parser.add_argument("--isa", action="append", help="only this instruction set (may be repeated)")
    parser.add_argument(
        "--cases", type=int, default=CASES, help="for each instruction set (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=SEED, help="of the first case (default: %(default)s)")
    options = parser.parse_args(arguments)
    os.chdir(ROOT)
    names = list(load_setup().INSTRUCTION_SETS)
    if unknown := set(options.isa or []) - set(names):
        parser.error(f"unknown instruction set {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    with tempfile.TemporaryDirectory() as folder:
        try:
            program = compile_fuzzer(Path(folder))
        except (RuntimeError, OSError) as error:
            print(f"FAIL to compile: {error}")
            return 1
        passed = [fuzz(program, name, options.seed, options.cases) for name in options.isa or names]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
