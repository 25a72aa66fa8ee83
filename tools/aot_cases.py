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
    """

    dtype: torch.dtype
    columns: int
    skipped: int = 0
    pipeline: int | None = None
    float64_is_fast: bool = True

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
        return [launched for call in calls(case) for launched in intercept(call)]
