"""The predictions as tables: the share of a copy's rate, and what limits it."""

from collections.abc import Callable
from functools import partial
from types import ModuleType

import torch

from benchmarks.gpu.headline import SHAPES, K
from benchmarks.harness.tables import seconds
from benchmarks.harness.traffic import OPERATORS
from benchmarks.prediction import cuda, triton
from benchmarks.prediction.cards import CARDS, Card
from benchmarks.prediction.model import Launch, copy_time, total

KERNELS: dict[str, ModuleType] = {"Triton": triton, "CUDA": cuda}
Launches = Callable[[Card, int, int], list[Launch] | None]
LETTERS = {"memory": "m", "cache": "c", "instructions": "i", "float64": "d", "latency": "l", "launches": "s"}


def operators(kernels: ModuleType) -> dict[str, Launches]:
    """What each operator of the tables launches, by its name in `benchmarks.harness.traffic`."""
    return {
        "forward": kernels.forward,
        "backward": kernels.backward,
        "JVP": kernels.jvp,
        "tangent-backward with dẏ": partial(kernels.tangents, k=K),
    }


def _moved(operator: str, rows: int, columns: int) -> int:
    """The bytes that it can't avoid moving."""
    return OPERATORS[operator].bytes(
        rows, columns, torch.bfloat16, K if operator.startswith("tangent") else 1
    )


def share(
    operator: str, kernels: ModuleType, card: Card, shape: tuple[int, int]
) -> tuple[float, dict[str, float]] | None:
    """The share of a copy's rate, and seconds by what they are spent on; None for rows that are not taken."""
    launches = operators(kernels)[operator](card, *shape)
    if launches is None:
        return None
    spent = total(launches, card)
    return copy_time(card, _moved(operator, *shape)) / sum(spent.values()), spent


def _cell(found: tuple[float, dict[str, float]] | None) -> str:
    if found is None:
        return "–"
    part, spent = found
    return f"{100 * part:.0f} {LETTERS[next(iter(spent))]}"


def predictions() -> list[str]:
    """Markdown: a table for each card, with the seven shapes of `benchmarks.gpu`."""
    lines = []
    for card in CARDS:
        names = [
            f"{operator.partition(' with')[0]}, {name}" for operator in operators(cuda) for name in KERNELS
        ]
        lines += [f"**{card.name}**", "", "| rows × columns | " + " | ".join(names) + " |"]
        lines.append("|---" + "|---:" * len(names) + "|")
        for shape in SHAPES:
            cells = [
                _cell(share(operator, of, card, shape))
                for operator in operators(cuda)
                for of in KERNELS.values()
            ]
            lines.append("| {} × {} | ".format(*shape) + " | ".join(cells) + " |")
        lines.append("")
    return lines


def reasons(shape: tuple[int, int]) -> list[tuple[str, ...]]:
    """A row for each card, operator and kind of kernels: where the time goes at one shape."""
    table = []
    for card in CARDS:
        for operator in operators(cuda):
            for name, of in KERNELS.items():
                found = share(operator, of, card, shape)
                if found:
                    spent = ", ".join(f"{what} {seconds(time)}" for what, time in found[1].items() if time)
                    table.append((card.name, operator, name, f"{100 * found[0]:.0f} %", spent))
    return table
