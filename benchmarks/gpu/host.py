"""What a call costs the host, which is what few-shot batches wait for: eagerly, and inside a CUDA graph.

The shape is so small that the device is done before the host has launched the next call. "eager" is the
host's time a call when one follows the other; "in a graph" that of the device when a graph of twenty calls is
replayed, which leaves the host out.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.autograd import Function

import ofa_kernels as ok
from benchmarks.gpu.card import Card
from benchmarks.gpu.section import Rows, Table, Task
from benchmarks.harness import contenders
from benchmarks.harness.contenders import EAGER, EPS, FUNCTIONAL, LIGER, NORMS
from benchmarks.harness.inputs import SEED, Inputs
from benchmarks.harness.interleave import host_clock, interleave
from benchmarks.harness.measure import first_line
from ofa_kernels.dispatch import kernels_for

SHAPE, REHEARSED = (64, 4096), (2, 128)
COMPARED = (EAGER, FUNCTIONAL, LIGER)
CALLS = 20  # of a graph
PROBES = 8


class _Empty(Function):
    """What autograd costs by itself."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, dy):
        return dy


def _backward(outputs: Tensor, inputs: tuple[Tensor, ...]) -> Callable[[], object]:
    cotangent = torch.ones_like(outputs)
    return lambda: torch.autograd.grad(outputs, inputs, cotangent, retain_graph=True)


def _launcher(x: Tensor, w: Tensor) -> Callable[[], object]:
    kernels = kernels_for(x)
    if kernels is None:
        raise contenders.UnavailableError("the backend has no kernels")
    return lambda: kernels.rms_norm_forward(x, w, EPS, 0.0, "hf")


def _norm(label: str, inputs: Inputs) -> Callable[[], object]:
    norm, x = NORMS[label](inputs.gamma, inputs.dtype).norm, inputs.x.detach()
    return lambda: norm(x)


def makers(inputs: Inputs) -> dict[str, Callable[[], Callable[[], object]]]:
    """What makes each call, by its name: the operators, other norms, and what anything of PyTorch costs."""
    x, w, x_dot = inputs.x, inputs.gamma.clone().requires_grad_(), inputs.x_dot
    plain, fixed, tangents = x.detach(), w.detach(), x_dot.detach()
    states = torch.stack([inputs.dy, plain, inputs.residual.detach()])
    return {
        "rms_norm": lambda: lambda: ok.rms_norm(plain, fixed, EPS),
        "rms_norm, recorded": lambda: lambda: ok.rms_norm(x, w, EPS),
        "its backward": lambda: _backward(ok.rms_norm(x, w, EPS), (x, w)),
        "add_rms_norm, recorded": lambda: lambda: ok.add_rms_norm(x, plain, w, EPS),
        "rms_norm_jvp": lambda: lambda: ok.rms_norm_jvp(plain, fixed, tangents, EPS),
        "its backward, x_dot's included": lambda: _backward(ok.rms_norm_jvp(x, w, x_dot, EPS), (x, w, x_dot)),
        "preconditioned_probes": lambda: lambda: ok.preconditioned_probes(plain, fixed, EPS, SEED, PROBES),
        "probe_dot": lambda: lambda: ok.probe_dot(tangents, SEED),
        "step_ratio": lambda: lambda: ok.step_ratio(states),
        "rms_norm_forward, the launcher alone": lambda: _launcher(plain, fixed),
        "torch.empty_like": lambda: lambda: torch.empty_like(plain),
        "an empty Function": lambda: lambda: _Empty.apply(x),
        **{label: partial(_norm, label, inputs) for label in COMPARED},
    }


def _row(card: Card, name: str, make: Callable[[], Callable[[], object]]) -> dict:
    replayed, count = card.pace(0.2, (5, 101), 200), 2 if card.rehearsal else CALLS
    eager = replace(replayed, clock=host_clock(card.synchronize))
    row: dict[str, object] = {"kind": "call", "name": name, "note": ""}
    try:
        call = make()
        call()
        row["eager"] = statistics.median(interleave({name: call}, eager)[name])
        replay = card.graph(lambda: [call() for _ in range(count)])
        row["in_graph"] = statistics.median(interleave({name: replay}, replayed)[name]) / count
    except contenders.UnavailableError as reason:
        row["note"] = str(reason)
    except Exception as error:  # one that can't be captured must not hide the others
        row["note"] = first_line(error)
    return row


def rows(card: Card, task: Task) -> Rows:
    """A row a call."""
    with card.on_stream():
        inputs = Inputs(*(REHEARSED if card.rehearsal else SHAPE), torch.bfloat16, PROBES, card.device)
        for name, make in makers(inputs).items():
            yield _row(card, name, make)


def tables(found: Sequence[dict]) -> list[Table]:
    """Microseconds a call."""
    cells = [
        (
            row["name"],
            *(f"{row[how] * 1e6:.1f}" if how in row else "" for how in ("eager", "in_graph")),
            row["note"],
        )
        for row in found
        if row["kind"] == "call"
    ]
    return [("Microseconds a call", ("", "eager", "in a graph", ""), cells)] if cells else []


def finding(found: Sequence[dict]) -> str:
    """The norm's forward and backward."""
    chosen = [
        row
        for row in found
        if row["kind"] == "call" and row["name"] in ("rms_norm, recorded", "its backward")
    ]
    return "; ".join(f"{row['name']} {row['eager'] * 1e6:.0f} µs" for row in chosen if "eager" in row)
