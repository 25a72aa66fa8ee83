"""The registers and shared memory of the builds, from the committed tables of the two compile gates."""

import re
from functools import cache
from pathlib import Path

TOOLS = Path(__file__).parents[2] / "tools"
# what sets apart the builds for rows that have weights or seeds of their own, which are not predicted
PER_ROW = re.compile(r"index|a seed a row")


@cache
def _rows(name: str, first: str) -> list[dict[str, str]]:
    """The rows of the table in tools/NAME whose header begins with these cells."""
    lines = (TOOLS / name).read_text(encoding="utf-8").splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith(first))
    names = [cell.strip() for cell in lines[begin].strip("|").split("|")]
    table = []
    for line in lines[begin + 2 :]:
        if not line.startswith("|"):
            break
        table.append(dict(zip(names, (cell.strip() for cell in line.strip("|").split("|")), strict=True)))
    return table


def of_cuda(kernel: str, dtype: str, architecture: str) -> int:
    """Registers of a CUDA kernel, named with its file, for rows of a C++ type.

    Raises:
        KeyError: tools/cuda.md doesn't have it.
    """
    for row in _rows("cuda.md", "| kernel |"):
        if (row["kernel"], row["rows"]) == (kernel, dtype):
            return int(row[f"registers sm_{architecture}"])
    raise KeyError(f"tools/cuda.md has no {kernel} of {dtype}")


def of_triton(kernel: str, variant: str, architecture: str, dtype: str = "bfloat16") -> tuple[int, int]:
    """(registers, bytes of shared memory) of a Triton kernel, the most of its variants that begin so.

    Raises:
        KeyError: tools/aot.md doesn't have it.
    """
    found = [
        (int(row[f"registers sm_{architecture}"]), int(row["shared bytes"]))
        for row in _rows("aot.md", "| kernel | variant |")
        if row["kernel"] == kernel
        and re.match(re.escape(variant) + r"(,|$)", row["variant"])
        and ("rows in flight" in row["variant"]) == ("rows in flight" in variant)
        and dtype in row["x"]
        and not PER_ROW.search(row["variant"])
    ]
    if not found:
        raise KeyError(f"tools/aot.md has no {kernel} {variant} for {dtype}")
    return max(registers for registers, _ in found), max(shared for _, shared in found)
