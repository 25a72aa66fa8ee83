"""Builds the kernels of `csrc` for the CPU where a C++ compiler is there, and for CUDA where nvcc is too.

A missing or failing compiler leaves a working install: its message goes to `ofa_kernels/_native.log` or
`ofa_kernels/_cuda.log`, which `ofa info` names, because pip hides what a build prints. OFA_CUDA=0 in the
environment leaves the CUDA kernels out. All metadata is in pyproject.toml.
"""

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

NATIVE, CUDA = "ofa_kernels._native", "ofa_kernels._cuda"
CSRC = Path("csrc")
KERNELS = sorted(path for path in (CSRC / "cpu").glob("*.cpp") if path.stem != "dispatch")
# no -ffast-math: the kernels promise where they round; gcc 12 warns of its own intrinsics' headers
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]
FLAGS += ["-fvisibility=hidden", f"-I{CSRC / 'include'}", f"-I{CSRC / 'cpu'}"]
INSTRUCTION_SETS = {"portable": []}
if platform.machine() in ("x86_64", "AMD64"):
    FLAGS.append("-DOFA_X86")
    INSTRUCTION_SETS["avx2"] = ["-mavx2", "-mfma", "-mf16c"]
    INSTRUCTION_SETS["avx512"] = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c"]
    INSTRUCTION_SETS["avx512"].append("-mprefer-vector-width=512")


def compiler() -> list[str]:
    """The C++ compiler's command: $CXX, or the first of the usual names that is on PATH."""
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    found = next((name for name in ("g++", "clang++", "c++") if shutil.which(name)), None)
    if found is None:
        raise RuntimeError("no C++ compiler: none of $CXX, g++, clang++ and c++ is there")
    return [found]


def run(command: list[str]) -> None:
    """Run one compiler command; its message is the error's."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"$ {shlex.join(command)}\n{done.stdout}{done.stderr}")


def load_build_cuda() -> ModuleType:
    """`ofa_kernels.build_cuda`, without the package around it: an isolated build has no PyTorch."""
    spec = importlib.util.spec_from_file_location("build_cuda", Path("ofa_kernels") / "build_cuda.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


class BuildKernels(build_ext):
    """Two libraries that are loaded by their paths, each whole or not at all.

    For the CPU every kernel is compiled once for each instruction set, and linked without an OpenMP runtime:
    torch's is used.
    """

    def finalize_options(self) -> None:
        """The parent clears `inplace` while it builds, to copy afterwards; here it decides where to build."""
        super().finalize_options()
        self.beside_sources = self.inplace

    def get_ext_filename(self, name: str) -> str:
        """The library is loaded by its path, so that one build serves every Python."""
        return str(Path(*name.split("."))) + ".so"

    def build_extension(self, ext: Extension) -> None:
        """Compile and link; on failure leave the reason instead of the library."""
        library = Path(self.get_ext_fullpath(ext.name))
        if ext.name == CUDA:
            self._build_cuda(library)
        else:
            self._build_native(library)

    def _build_cuda(self, library: Path) -> None:
        if os.environ.get("OFA_CUDA") == "0":
            library.unlink(missing_ok=True)
            library.with_suffix(".log").unlink(missing_ok=True)
            return
        build_cuda = load_build_cuda()
        try:
            build_cuda.build(library, root=Path())
        except build_cuda.NoCompilerError:
            pass  # most machines have none, and `ofa info` says what to do then
        except build_cuda.BuildError as error:
            self.warn(f"the CUDA kernels were not built; Triton's take their place. {error}")

    def _build_native(self, library: Path) -> None:
        log = library.with_suffix(".log")
        library.parent.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)
        library.unlink(missing_ok=True)
        try:
            self._compile(library)
        except (RuntimeError, OSError) as error:
            log.write_text(f"{error}\n", encoding="utf-8")
            self.warn(f"the CPU kernels were not built; PyTorch takes their place. See {log}")

    def copy_extensions_to_source(self) -> None:
        """Nothing to copy: an editable build writes beside the sources at once."""

    def get_ext_fullpath(self, name: str) -> str:
        """In the source tree for an editable install, else where a wheel is gathered."""
        root = Path() if self.editable_mode or self.beside_sources else Path(self.build_lib)
        return str(root / self.get_ext_filename(name))

    def _compile(self, library: Path) -> None:
        cxx, objects = compiler(), Path(self.build_temp)
        objects.mkdir(parents=True, exist_ok=True)
        jobs = [(CSRC / "cpu" / "dispatch.cpp", objects / "dispatch.o", [])]
        jobs += [
            (source, objects / f"{source.stem}.{name}.o", [f"-DOFA_ISA={name}", *flags])
            for source in KERNELS
            for name, flags in INSTRUCTION_SETS.items()
        ]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(
                pool.map(lambda job: run([*cxx, *FLAGS, *job[2], "-c", str(job[0]), "-o", str(job[1])]), jobs)
            )
        # written whole or not at all
        unfinished = library.with_suffix(".part")
        run([*cxx, "-shared", "-s", *(str(job[1]) for job in jobs), "-o", str(unfinished)])
        unfinished.replace(library)


# imported, it only says how the kernels are compiled
if __name__ == "__main__":
    setup(
        ext_modules=[Extension(name, sources=[], optional=True) for name in (NATIVE, CUDA)],
        cmdclass={"build_ext": BuildKernels},
    )
