"""What a call costs the host, which is what few-shot batches wait for: eagerly, and inside a CUDA graph.

The shape is so small that the device is done before the host has launched the next call. "eager" is the
host's time a call when one follows the other; "in a graph" that of the device when a graph of twenty calls is
replayed, which leaves the host out.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from types import ModuleType

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
PROBES, LAYER = 8, 3
ROWS_AN_EXAMPLE = 8  # of packed rows, of which the first is probed


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


def _launchers(x: Tensor) -> ModuleType:
    kernels = kernels_for(x)
    if kernels is None:
        raise contenders.UnavailableError("the backend has no kernels")
    return kernels


def _forward_launcher(x: Tensor, w: Tensor) -> Callable[[], object]:
    kernels = _launchers(x)
    return lambda: kernels.rms_norm_forward(x, w, EPS, 0.0, "hf")


def _backward_launcher(x: Tensor, w: Tensor, dy: Tensor) -> Callable[[], object]:
    kernels = _launchers(x)
    return lambda: kernels.rms_norm_backward(x, w, dy, None, EPS, 0.0, True, True)


def _layer(x: Tensor, w: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """What a layer of the stacked pass calls (`ofa.passes.layer`), whose first rows are probed."""
    own = x[: len(ids)]
    direction = ok.preconditioned_probes(own, w, EPS, SEED, PROBES, example_ids=ids, layer=LAYER)
    direction = ok.rms_norm_jvp(own, w, direction, EPS)
    y, s = ok.add_rms_norm(ok.rms_norm(x, w, EPS), x, w, EPS)
    direction = ok.rms_norm_jvp(s[: len(ids)], w, direction, EPS)
    return y, ok.probe_dot(direction, SEED, ids, LAYER)


def _there_and_back(x: Tensor, w: Tensor, ids: Tensor) -> Callable[[], object]:
    cotangents = [torch.ones_like(t) for t in _layer(x, w, ids)]
    return lambda: torch.autograd.grad(_layer(x, w, ids), (x, w), cotangents)


def _norm(label: str, inputs: Inputs) -> Callable[[], object]:
    norm, x = NORMS[label](inputs.gamma, inputs.dtype).norm, inputs.x.detach()
    return lambda: norm(x)


def makers(inputs: Inputs) -> dict[str, Callable[[], Callable[[], object]]]:
    """What makes each call, by its name: the operators, other norms, and what anything of PyTorch costs."""
    x, w, x_dot = inputs.x, inputs.gamma.clone().requires_grad_(), inputs.x_dot
    plain, fixed, tangents = x.detach(), w.detach(), x_dot.detach()
    states = torch.stack([inputs.dy, plain, inputs.residual.detach()])
    ids = torch.arange(max(1, len(x) // ROWS_AN_EXAMPLE), device=x.device)
    return {
        "rms_norm": lambda: lambda: ok.rms_norm(plain, fixed, EPS),
        "rms_norm, recorded": lambda: lambda: ok.rms_norm(x, w, EPS),
        "its backward": lambda: _backward(ok.rms_norm(x, w, EPS), (x, w)),
        "add_rms_norm, recorded": lambda: lambda: ok.add_rms_norm(x, plain, w, EPS),
        "rms_norm_jvp": lambda: lambda: ok.rms_norm_jvp(plain, fixed, tangents, EPS),
        "rms_norm_jvp, recorded": lambda: lambda: ok.rms_norm_jvp(x, w, x_dot, EPS),
        "its backward, x_dot's included": lambda: _backward(ok.rms_norm_jvp(x, w, x_dot, EPS), (x, w, x_dot)),
        "preconditioned_probes": lambda: lambda: ok.preconditioned_probes(plain, fixed, EPS, SEED, PROBES),
        "preconditioned_probes, recorded": lambda: lambda: ok.preconditioned_probes(x, w, EPS, SEED, PROBES),
        "probe_dot": lambda: lambda: ok.probe_dot(tangents, SEED),
        "probe_dot, recorded": lambda: lambda: ok.probe_dot(x_dot, SEED),
        "step_ratio": lambda: lambda: ok.step_ratio(states),
        "a layer's six calls, recorded": lambda: lambda: _layer(x, w, ids),
        "these and their backward": lambda: _there_and_back(x, w, ids),
        "rms_norm_forward, the launcher alone": lambda: _forward_launcher(plain, fixed),
        "rms_norm_backward, the launcher alone": lambda: _backward_launcher(plain, fixed, inputs.dy),
        "torch.empty_like": lambda: lambda: torch.empty_like(plain),
        "an empty Function": lambda: lambda: _Empty.apply(x),
        "an empty Function's backward": lambda: _backward(_Empty.apply(x), (x,)),
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
