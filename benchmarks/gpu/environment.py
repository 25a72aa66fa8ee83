"""What the card is, what software runs on it, and the ceiling: how fast it copies."""

import importlib.metadata
import statistics
import sys
from collections.abc import Sequence

import torch

from benchmarks.gpu import cache
from benchmarks.gpu.card import Card
from benchmarks.gpu.headline import copy
from benchmarks.gpu.section import Rows, Table, Task
from benchmarks.harness import machine
from benchmarks.harness.interleave import interleave

PACKAGES = ("triton", "transformers", "peft", "liger_kernel", "numpy")
SIZES = tuple(2**20 * 2**i for i in range(12))  # bytes of the tensor that is copied: 1 MiB to 2 GiB
REHEARSED = (2**10, 2**12)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def describe(card: Card) -> dict:
    """The machine, its software, and what became of the kernels that were compiled ahead."""
    about = machine.describe("cpu" if card.rehearsal else card.device)
    return {
        "kind": "machine",
        **about,
        "card": card.name,
        "card_memory": card.memory,
        "cuda": torch.version.cuda or "none",
        "multiprocessors": card.multiprocessors,
        "l2": card.l2,
        "packages": {name: _version(name) for name in PACKAGES},
        "executable": sys.executable,
        "cache": cache.unpack(),
    }


def copy_rate(card: Card, size: int) -> dict:
    """Bytes a second, read and written, of a copy of so many bytes between tensors that no cache holds."""
    sets = card.rotations(2 * size)
    replay = card.graph(copy(card, 2 * size, sets))
    times = interleave({"copy": replay}, card.pace(0.1, (5, 51), 100))["copy"]
    median = statistics.median(times) / sets
    return {"kind": "copy", "bytes": size, "seconds": median, "gb_per_s": 2 * size / median / 1e9}


def rows(card: Card, task: Task) -> Rows:
    """The machine, then a row for each size of the copy."""
    with card.on_stream():
        yield describe(card)
        for size in REHEARSED if card.rehearsal else SIZES:
            if 4 * size < card.free_memory():
                yield copy_rate(card, size)


def tables(found: Sequence[dict]) -> list[Table]:
    """The packages, and the copies."""
    lists: list[Table] = []
    for row in found:
        if row["kind"] == "machine":
            cells = [*row["packages"].items(), ("compiled-ahead kernels", row["cache"])]
            lists.append(("Software", ("", ""), [tuple(cell) for cell in cells]))
    copies = [row for row in found if row["kind"] == "copy"]
    cells = [
        (f"{row['bytes'] / 2**20:,.0f} MiB", f"{row['seconds'] * 1e6:,.1f} µs", f"{row['gb_per_s']:,.0f}")
        for row in copies
    ]
    if cells:
        lists.append(("Copy, bytes read and written", ("tensor", "median", "GB/s"), cells))
    return lists


def finding(found: Sequence[dict]) -> str:
    """The fastest copy, and the cache."""
    rates = [row["gb_per_s"] for row in found if row["kind"] == "copy"]
    caches = [row["cache"] for row in found if row["kind"] == "machine"]
    return "; ".join([*(f"copies at {max(rates):,.0f} GB/s" for _ in rates[:1]), *caches])
