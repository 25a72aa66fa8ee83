"""Kernels compiled ahead, on a machine without a card, for the one that has it: packed, unpacked, checked.

    pytest tests/ofa_kernels -p benchmarks.gpu.launches --launches build/launches.jsonl
    python -m benchmarks.gpu.cache build/launches.jsonl            # writes gpu-cache.tar.xz

Everything that the tests, the headline shapes and the sweep launch is compiled by Triton's own just-in-time
path with a stand-in for its driver, so that the card's process finds it under the same key. The key holds
hashes of Triton's files: only the same wheel, for the same Python, finds anything.
"""

import argparse
import importlib
import io
import json
import os
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

# the interpreter replaces @triton.jit at import, after which nothing can be compiled
if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)

import torch
from rich.console import Console
from rich.progress import track

ROOT = Path(__file__).parents[2]
ARCHIVE = ROOT / "gpu-cache.tar.xz"
MANIFEST = "manifest.json"
ARCHITECTURE = 90
# what a cache has to hold for the driver; the intermediate stages are for reading
KEPT = (".json", ".cubin")


def triton_key() -> str:
    """What Triton's cache depends on besides a kernel and its arguments: Triton itself."""
    try:
        from triton.runtime.cache import triton_key as key
    except ImportError:
        # where older Tritons have it; types are checked against the newest
        from triton.compiler.compiler import triton_key as key  # pyright: ignore[reportAttributeAccessIssue]
    return key()


def _folder() -> Path:
    from triton import knobs

    return Path(knobs.cache.dir)


def unpack(archive: Path = ARCHIVE, folder: Path | None = None) -> str:
    """Put the archive's kernels where Triton looks for them, and say in words what became of it."""
    if not archive.exists():
        return "none packed (make gpu-cache packs them)"
    try:
        key, folder = triton_key(), folder or _folder()
    except ImportError:
        return "not used: Triton is not installed"
    with tarfile.open(archive) as packed:
        manifest = packed.extractfile(MANIFEST)
        if manifest is None:
            return f"not used: its {MANIFEST} is not a file"
        about = json.load(manifest)
        if about["key"] != key:
            return f"not used: packed with another Triton ({about['triton']} for Python {about['python']})"
        packed.extractall(folder, filter="data")
    return f"{about['builds']} kernels unpacked, packed with this Triton"


def pack(folder: Path, archive: Path, builds: int) -> None:
    """Write the cache in `folder` as an archive."""
    import triton

    about = {"key": triton_key(), "triton": triton.__version__, "builds": builds}
    about["python"] = ".".join(map(str, sys.version_info[:2]))
    content = json.dumps(about).encode()
    with tarfile.open(archive, "w:xz", preset=9) as packed:
        entry = tarfile.TarInfo(MANIFEST)
        entry.size = len(content)
        packed.addfile(entry, io.BytesIO(content))
        # kernel by kernel, so that what is alike stands together
        for path in sorted(folder.rglob("*"), key=lambda path: (path.suffix, path.name)):
            if path.suffix in KEPT:
                packed.add(path, str(path.relative_to(folder)))


class _Driver:
    """What Triton asks a driver before it launches."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", ARCHITECTURE, 32)


def _argument(value: object) -> object:
    import triton.language as tl

    if not isinstance(value, dict):
        return value
    if "type" in value:
        return tl.dtype(value["type"])
    elements = torch.empty(17, dtype=getattr(torch, value["tensor"]))
    return elements[:16] if value["aligned"] else elements[1:]


def _begin(folder: str) -> None:
    from triton import knobs
    from triton.runtime import driver

    knobs.cache.dir = folder
    knobs.compilation.store_binary_only = True
    # a driver's base class is abstract, and asks for much that compiling doesn't need
    driver.set_active(_Driver())  # pyright: ignore[reportArgumentType]


def compile_line(line: str) -> bool:
    """Compile one recorded launch; whether it was in the cache."""
    from triton import knobs

    launch, hits = json.loads(line), []
    knobs.compilation.listener = lambda *, cache_hit, **_: hits.append(cache_hit)
    kernel = getattr(importlib.import_module(launch["module"]), launch["kernel"])
    options = {name: _argument(value) for name, value in launch["options"].items()}
    kernel.run(*map(_argument, launch["args"]), grid=(1, 1, 1), warmup=True, **options)
    return all(hits)


def _compile_all(lines: Iterable[str], folder: str, title: str) -> int:
    """How many of the launches were not in the cache."""
    lines = list(lines)
    with ProcessPoolExecutor(os.cpu_count(), initializer=_begin, initargs=(folder,)) as pool:
        hits = pool.map(compile_line, lines, chunksize=8)
        shown = track(hits, title, total=len(lines), console=Console(stderr=True))
        return sum(not hit for hit in shown)


def benchmark_launches() -> dict[str, None]:
    """The builds of the headline shapes and of the sweep."""
    from benchmarks.gpu import headline, sweep
    from benchmarks.gpu.launches import line_of
    from tools.aot_cases import intercept

    calls = (*headline.launches(), *sweep.launches())
    return dict.fromkeys(line_of(*launched) for call in calls for launched in intercept(call))


def main(argv: list[str] | None = None) -> int:
    """Compile, pack, unpack again, and see that everything is found."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.cache",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("launches", type=Path, nargs="*", help="what pytest's --launches wrote")
    parser.add_argument("--out", type=Path, default=ARCHIVE, metavar="FILE")
    options = parser.parse_args(argv)
    lines = dict.fromkeys(
        line for path in options.launches for line in path.read_text(encoding="utf-8").splitlines()
    )
    lines |= benchmark_launches()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as again:
        _compile_all(lines, folder, "compiling")
        pack(Path(folder), options.out, len(lines))
        said = unpack(options.out, Path(again))
        missing = _compile_all(lines, again, "checking")
    size = options.out.stat().st_size / 1e6
    print(f"{options.out}: {len(lines)} launches, {size:.1f} MB; {said}; {missing} not found again")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
