"""What a case's results should be, and how far others are from it.

All rows of small inputs are computed in float64. Of large ones some are, spread evenly; their sums over
rows have float32 terms, far more exact than the float32 sums they judge, and are added up in float64.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from benchmarks.harness.inputs import Inputs

CHUNKS = {"cpu": 2**19, "cuda": 2**24}  # elements of a temporary: a CPU's stay in its cache
CHECKED = {"cpu": 2**21, "cuda": 2**24}  # elements of a result that are compared


class Rows:
    """The inputs' tensors in another type, cut to some of the rows."""

    def __init__(self, inputs: Inputs, rows: slice | Tensor, to: torch.dtype):
        self._inputs, self._rows, self._to = inputs, rows, to
        self.dtype, self.all_rows = inputs.dtype, inputs.rows

    def __getattr__(self, name: str) -> Tensor:
        t = getattr(self._inputs, name).detach()
        return (t if name in ("gamma", "weight_dot") else t[..., self._rows, :]).to(self._to)


Truth = Callable[[Rows], tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]


@dataclass(frozen=True)
class Expected:
    """The inputs' true results.

    Attributes:
        by_row: [..., len(rows), N] each.
        sums: over all rows.
        rows: [checked]: which rows `by_row` are of.
    """

    by_row: tuple[Tensor, ...]
    sums: tuple[Tensor, ...]
    rows: Tensor


def _slices(inputs: Inputs) -> list[slice]:
    step = max(1, CHUNKS[inputs.device] // (inputs.columns * inputs.k))
    return [slice(start, start + step) for start in range(0, inputs.rows, step)]


def expected(inputs: Inputs, truth: Truth) -> Expected:
    """The true results of the inputs.

    Args:
        inputs: what to evaluate at.
        truth: gives (results [..., rows, N], sums over rows) of some rows' tensors.
    """
    n = min(inputs.rows, max(2, CHECKED[inputs.device] // (inputs.columns * inputs.k)))
    rows = torch.linspace(0, inputs.rows - 1, n, dtype=torch.float64, device=inputs.device).long()
    by_row, sums = truth(Rows(inputs, rows, torch.float64))
    if sums and n < inputs.rows:
        parts = (truth(Rows(inputs, some, torch.float32))[1] for some in _slices(inputs))
        sums = tuple(reduce(torch.add, (t.double() for t in pieces)) for pieces in zip(*parts, strict=True))
    return Expected(by_row, sums, rows)


def as_results(value) -> tuple[Tensor, ...]:
    """What a call returned as a tuple; a list holds one tuple a tangent, to be stacked."""
    if isinstance(value, list):
        return tuple(torch.stack(part) for part in zip(*value, strict=True))
    return (value,) if isinstance(value, Tensor) else tuple(value)


def _worst_row(value: Tensor, true: Tensor) -> float:
    """The largest ‖value - true‖ / ‖true‖ of a row; NaN counts as infinite."""
    if value.shape != true.shape:
        raise ValueError(f"a result has shape {tuple(value.shape)}, the truth {tuple(true.shape)}")
    # one number a row may cancel to nearly nothing: those are compared all together
    columns = true.shape[-1] if true.dim() and true.shape[-1] > 1 else true.numel()
    value, true = value.double().reshape(-1, columns), true.reshape(-1, columns)
    errors = (value - true).norm(dim=-1) / (true.norm(dim=-1) + 1e-30)
    return errors.nan_to_num(nan=float("inf")).max().item()


def rounding_errors(
    got: Sequence[Tensor], true: Expected, inputs: Inputs, cancellation: float = 1.0
) -> float:
    """How wrong the worst row of any result is, in units of what rounding explains.

    A row's error is ‖got - true‖ / ‖true‖. Explained are four roundings to x's type and float32 sums; a wrong
    term shows as tens of per cent.

    Args:
        got: what a contender returned: results by row, then sums.
        true: what it should be.
        inputs: what it was computed from.
        cancellation: how many times larger the terms of a sum are than the sum.

    Raises:
        ValueError: a result has another shape than it should.
    """
    sums = ((inputs.rows + inputs.columns) ** 0.5 + 8) * torch.finfo(torch.float32).eps
    tolerance = 4 * (torch.finfo(inputs.dtype).eps + cancellation * sums)
    by_row, summed = got[: len(true.by_row)], got[len(true.by_row) :]
    worst = 0.0
    for value, part in zip(by_row, true.by_row, strict=True):
        if value.shape[-2] != inputs.rows:
            raise ValueError(f"a result has shape {tuple(value.shape)}, but there are {inputs.rows} rows")
        if not value.detach().isfinite().all():
            return float("inf")
        worst = max(worst, _worst_row(value.detach()[..., true.rows, :], part))
    for value, part in zip(summed, true.sums, strict=True):
        worst = max(worst, _worst_row(value.detach(), part))
    return worst / tolerance
