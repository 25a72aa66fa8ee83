"""What the compile gate compiles: the launches that every launcher makes, on tensors without memory."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

import torch
from triton.runtime.jit import JITFunction

from ofa_kernels.triton import launch, plan

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
COLUMNS = {
    BF16: (576, 2048, 4096, 4104, 8192, 16384, 32768, 65536, 577, 4097, 65535),
    F32: (576, 2048, 4096, 4100, 4104, 8192, 16384, 16388, 32768, 65536, 577, 4097, 65535),
    F16: (4096, 65536),
    F64: (576, 580, 65536, 577),
}
ROWS = 1000  # more than there are programs to share them
PROBES = 8
WEIGHTS = 64


@dataclass(frozen=True)
class Case:
    """What the launchers are called with.

    Args:
        dtype: the type of the rows.
        columns: their length.
        skipped: the columns of a wider tensor that come before those of every row.
        pipeline: rows in flight of the kernel that can have several, which is then the only one; None for the
            plan's choice.
        float64_is_fast: what is said of the card.
        indexed: whether rows have weights, and seeds, of their own; all have the one otherwise.
    """

    dtype: torch.dtype
    columns: int
    skipped: int = 0
    pipeline: int | None = None
    float64_is_fast: bool = True
    indexed: bool = False

    def __str__(self) -> str:
        return f"{self.columns} of {self.columns + self.skipped}" if self.skipped else str(self.columns)

    def rows(self, *sizes: int) -> torch.Tensor:
        """A tensor without memory whose last size is the row length."""
        wide = torch.empty(*sizes, self.skipped + self.columns, dtype=self.dtype, device="meta")
        return wide[..., self.skipped :]


CASES = [Case(dtype, n) for dtype, lengths in COLUMNS.items() for n in lengths]
CASES += [Case(BF16, 4096, 8), Case(F32, 4096, 4), Case(BF16, 4096, 1), Case(F32, 8192, 2)]
CASES += [Case(BF16, n, pipeline=rows) for n, rows in ((4096, 1), (4096, 2), (8192, 1), (65536, 1))]
CASES += [Case(F32, 4096, pipeline=1)]
CASES += [Case(BF16, n, float64_is_fast=False) for n in (4096, 65536, 4097)]
CASES += [Case(F32, 4096, float64_is_fast=False)]
INDEXED = ((BF16, (4096, 65536, 4097)), (F32, (576, 4096, 8192, 65536)), (F64, (576,)))
CASES += [Case(dtype, n, indexed=True) for dtype, lengths in INDEXED for n in lengths]


def cases_of(columns: list[int]) -> list[Case]:
    """Rows of these lengths of every type, and with an index those of float32."""
    cases = [Case(dtype, n) for dtype in COLUMNS for n in columns]
    return cases + [Case(F32, n, indexed=True) for n in columns]


def calls(case: Case) -> list[Callable[[], object]]:
    """Every launcher for one case; tensors of the device "meta" have sizes and no memory."""
    dtype, columns = case.dtype, case.columns
    x, w = case.rows(ROWS), torch.empty(columns, device="meta")
    ids, layers = torch.arange(ROWS, device="meta"), torch.arange(1, device="meta")
    p = case.rows(PROBES, ROWS)
    lengths = x.new_empty(PROBES, ROWS, dtype=F64 if dtype == F64 else F32)
    eps, offset, layer = 1e-6, 0.0, 1  # Triton makes a 1 a constant where it may: it must not here
    rstd = x.new_empty(ROWS, dtype=F64 if dtype == F64 else F32)
    backward: list[Callable[[], object]] = [
        lambda r=r, ds=ds, dw=dw: launch.rms_norm_backward(x, w, x, ds, eps, offset, True, dw, r)
        for r, ds, dw in (
            (None, x, True),
            (rstd, x, True),
            (rstd, None, True),
            (rstd, None, False),
        )
    ]
    if case.pipeline is not None:
        return backward
    launchers = [
        *backward,
        lambda: launch.rms_norm_forward(x, w, eps, offset, "hf"),
        lambda: launch.rms_norm_forward(x, w, eps, offset, "hf", rstd),
        lambda: launch.add_rms_norm_forward(x, x, w, eps, offset, "fp32", rstd),
        lambda: launch.step_lengths(p),
        lambda: launch.step_lengths_backward(p, lengths[1:], lengths[1:]),
    ]
    for seed in (1, torch.empty((), dtype=torch.int64, device="meta")):
        launchers += [
            lambda s=seed: launch.rademacher(columns, ids, PROBES, layers, s, dtype),
            lambda s=seed: launch.preconditioned_probes(x, w, eps, offset, s, PROBES, ids, layer),
            lambda s=seed: launch.preconditioned_probes_backward(x, w, p, eps, offset, s, ids, layer),
            lambda s=seed: launch.probe_dot(p, s, ids, layer),
            lambda s=seed: launch.probe_scale(lengths, columns, s, ids, layer, dtype),
        ]
    for k in (1, 16):
        t, v = case.rows(k, ROWS), w.new_empty(k, columns)
        launchers += [
            lambda t=t, v=v: launch.rms_norm_jvp(x, w, t, v, eps, offset),
            lambda t=t, v=v: launch.rms_norm_backward_tangent(x, w, x, t, v, t, eps, offset, True),
            lambda t=t, v=v: launch.rms_norm_backward_tangent(x, w, x, t, None, t, eps, offset, False),
            lambda t=t, v=v: launch.rms_norm_jvp_backward(x, w, t, t, v, eps, offset, True, True),
            lambda t=t, v=v: launch.rms_norm_jvp_backward(x, w, t, t, None, eps, offset, True, False),
        ]
    return launchers


def indexed_calls(case: Case) -> list[Callable[[], object]]:
    """Every launcher that takes a weight or a seed for each row."""
    acc = F64 if case.dtype == F64 else F32
    x, w, t = case.rows(ROWS), torch.empty(WEIGHTS, case.columns, device="meta"), case.rows(PROBES, ROWS)
    v = w.new_empty(PROBES, *w.shape)
    index, ids = (torch.empty(ROWS, dtype=torch.int64, device="meta") for _ in range(2))
    seeds, lengths = torch.empty_like(index), x.new_empty(PROBES, ROWS, dtype=acc)
    rstd, eps, offset, layer = x.new_empty(ROWS, dtype=acc), 1e-6, 0.0, 1
    return [
        lambda: launch.rms_norm_forward(x, w, eps, offset, "hf", None, index),
        lambda: launch.add_rms_norm_forward(x, x, w, eps, offset, "fp32", rstd, index),
        lambda: launch.rms_norm_backward(x, w, x, None, eps, offset, True, True, None, index),
        lambda: launch.rms_norm_backward(x, w, x, x, eps, offset, True, True, rstd, index),
        lambda: launch.rms_norm_backward(x, w, x, None, eps, offset, True, True, rstd, index),
        lambda: launch.rms_norm_backward(x, w, x, None, eps, offset, True, False, rstd, index),
        lambda: launch.rms_norm_jvp(x, w, t, v, eps, offset, index),
        lambda: launch.rms_norm_backward_tangent(x, w, x, t, v, t, eps, offset, True, index),
        lambda: launch.rms_norm_backward_tangent(x, w, x, t, None, t, eps, offset, False, index),
        lambda: launch.rms_norm_jvp_backward(x, w, t, t, v, eps, offset, True, True, index),
        lambda: launch.rms_norm_jvp_backward(x, w, t, t, None, eps, offset, True, False, index),
        lambda: launch.preconditioned_probes(x, w, eps, offset, seeds, PROBES, ids, layer, index),
        lambda: launch.preconditioned_probes_backward(x, w, t, eps, offset, seeds, ids, layer, index),
        lambda: launch.probe_dot(t, seeds, ids, layer),
        lambda: launch.probe_scale(lengths, case.columns, seeds, ids, layer, case.dtype),
    ]


def intercept(call: Callable[[], object]) -> list[tuple[JITFunction, tuple, dict]]:
    """The kernels that `call` launches, each with its arguments and options; nothing is launched."""
    launched = []

    def record(kernel, *args, grid, warmup, **options):
        launched.append((kernel, args, options))

    with mock.patch.object(JITFunction, "run", record):
        call()
    return launched


def launches(case: Case) -> list[tuple[JITFunction, tuple, dict]]:
    """What all launchers launch for a case."""

    def choose(*args, plan=plan.plan):
        chosen = plan(*args)
        return chosen if case.pipeline is None else dataclasses.replace(chosen, pipeline=case.pipeline)

    def float64_is_fast(device):
        return case.float64_is_fast

    with mock.patch.multiple(plan, plan=choose, float64_is_fast=float64_is_fast):
        some = indexed_calls(case) if case.indexed else calls(case)
        return [launched for call in some for launched in intercept(call)]
