"""An optimiser step of a random bfloat16 model of an 8B Llama's shape: 8 prompts of 44 tokens, no padding.

Wall time with the device waited for, the time of the step's kernels, and the peak memory above the weights,
of LN-tuning as a PEFT user runs it, ours with cross-entropy only, OFA with 1 and 8 probes, and the authors'
objective. Ours are captured in a CUDA graph besides, the optimiser's update included, and replayed with
another step number each time, which selects the probes.
"""

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import ofa
from benchmarks.gpu.card import Card
from benchmarks.gpu.section import Rows, Table, Task
from benchmarks.harness.inputs import DRAW_SEED
from benchmarks.harness.measure import first_line
from benchmarks.harness.tables import seconds
from benchmarks.step_cost import AUTHORS, CE, CONFIGS, OFA_1, OFA_8, PEFT, make_loss, make_step, trained
from ofa.passes.packing import packed

LLAMA_8B: dict[str, Any] = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
TINY: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
PROMPTS, TOKENS = (8, 44), (2, 5)
ORDER = (CE, OFA_1, PEFT, OFA_8, AUTHORS)  # what matters most first
WARM, ROUNDS = 2, 5


def model_of(card: Card) -> nn.Module:
    """A fresh random model on the device."""
    torch.manual_seed(DRAW_SEED)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(card.device):
            return LlamaForCausalLM(LlamaConfig(**(TINY if card.rehearsal else LLAMA_8B)))
    finally:
        torch.set_default_dtype(before)


def batch_of(card: Card) -> dict[str, torch.Tensor]:
    """Random prompts."""
    shape, words = (TOKENS, TINY["vocab_size"]) if card.rehearsal else (PROMPTS, LLAMA_8B["vocab_size"])
    ids = torch.randint(words, shape, device=card.device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, 0].clone()}


def walls(card: Card, call: Callable[[], object]) -> list[float]:
    """Seconds of some calls after a few that aren't counted, each waited for."""
    times = []
    warm, rounds = (0, 1) if card.rehearsal else (WARM, ROUNDS)
    for number in range(warm + rounds):
        card.synchronize()
        begin = time.perf_counter()
        call()
        card.synchronize()
        if number >= warm:
            times.append(time.perf_counter() - begin)
    return times


def kernel_seconds(card: Card, call: Callable[[], object]) -> float:
    """The sum of the times of the kernels that one call launches, by PyTorch's profiler."""
    activity = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[activity.CPU if card.rehearsal else activity.CUDA]) as profile:
        call()
        card.synchronize()
    return sum(event.self_device_time_total for event in profile.key_averages()) / 1e6


class Captured:
    """A training step of ours in a CUDA graph: loss, gradient and AdamW's update."""

    def __init__(self, card: Card, name: str, lm: nn.Module, batch: dict[str, torch.Tensor]):
        self.step = torch.zeros((), dtype=torch.int64, device=card.device)
        # how the prompts are packed depends on their lengths, which a graph can't look at
        prompts = packed(dict(batch))
        weights = trained(lm)
        optimizer = torch.optim.AdamW(weights, lr=0.0, capturable=not card.rehearsal)
        self.loss = torch.zeros((), device=card.device)

        def train() -> None:
            loss = ofa.objective(lm, prompts, CONFIGS[name], self.step).loss
            for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                weight.grad = gradient
            optimizer.step()
            self.loss.copy_(loss.detach())

        for _ in range(
            1 if card.rehearsal else 3
        ):  # what is made once, such as the optimiser's state, is made before the capture
            train()
        self._replay = card.graph(train)

    def replay(self) -> None:
        """The next step."""
        self.step += 1
        self._replay()


def eager_row(card: Card, name: str, batch: dict[str, torch.Tensor]) -> dict:
    """Wall time, kernel time and memory of a contender."""
    lm = model_of(card)
    card.synchronize()
    weights = card.allocated()
    step = make_step(name, lm)
    card.reset_peak()
    times = walls(card, lambda: step(batch))
    row = {"kind": "step", "name": name, "how": "eager", "seconds": times, "note": ""}
    row["peak"] = card.peak() - weights
    try:
        row["kernels"] = kernel_seconds(card, lambda: step(batch))
    except Exception as error:  # the profiler's library may be missing; the wall time stands without it
        row["note"] = f"no kernel time: {first_line(error)}"
    return row


def graph_row(card: Card, name: str, batch: dict[str, torch.Tensor]) -> dict:
    """The same step by graph replay, and whether a replay's loss is that of an eager step of its number."""
    lm, _ = make_loss(name, model_of(card))
    captured = Captured(card, name, lm, batch)
    times = walls(card, captured.replay)
    replayed, number = captured.loss.item(), int(captured.step.item())
    eager = ofa.objective(lm, batch, CONFIGS[name], number).loss.item()
    other = ofa.objective(lm, batch, CONFIGS[name], number + 1).loss.item()
    # the same kernels on the same tensors; only sums whose order depends on the moment may differ
    right = abs(replayed - eager) <= 1e-3 * abs(eager)
    note = "" if right else f"the replay's loss is {replayed}, an eager step's {eager}"
    distance = None if eager == other else abs(replayed - eager) / abs(other - eager)
    return {
        "kind": "step",
        "name": name,
        "how": "graph",
        "seconds": times,
        "loss": replayed,
        "eager_loss": eager,
        "of_other_probes": distance,
        "note": note,
    }


def _row(card: Card, how: str, name: str, batch: dict[str, torch.Tensor]) -> dict:
    try:
        return (graph_row if how == "graph" else eager_row)(card, name, batch)
    except Exception as error:  # one that fails must not hide the others
        return {"kind": "step", "name": name, "how": how, "seconds": [], "note": first_line(error)}


def rows(card: Card, task: Task) -> Rows:
    """Every contender eagerly, then ours in a graph; a fresh model each."""
    with card.on_stream():
        batch = batch_of(card)
        for how, names in (("eager", ORDER), ("graph", (CE, OFA_1, OFA_8))):
            for name in names:
                yield _row(card, how, name, batch)
                gc.collect()
                card.empty_cache()


def _medians(found: Sequence[dict]) -> dict[tuple[str, str], float]:
    timed = [row for row in found if row["kind"] == "step" and row["seconds"]]
    return {(row["name"], row["how"]): statistics.median(row["seconds"]) for row in timed}


def tables(found: Sequence[dict]) -> list[Table]:
    """A row a contender."""
    medians, cells = _medians(found), []
    plain = medians.get((PEFT, "eager"))
    for row in found:
        if row["kind"] != "step":
            continue
        median = medians.get((row["name"], row["how"]))
        cells.append(
            (
                row["name"] + (", in a CUDA graph" if row["how"] == "graph" else ""),
                seconds(median) if median else "",
                seconds(row["kernels"]) if row.get("kernels") else "",
                f"{row['peak'] / 2**20:,.0f} MiB" if row.get("peak") else "",
                f"{median / plain:.2f}" if median and plain else "",
                row["note"],
            )
        )
    header = ("step", "wall", "kernels", "peak above weights", "/ PEFT", "")
    return [("A step of 8 × 44 tokens, 8B-shaped Llama, bfloat16", header, cells)] if cells else []


def finding(found: Sequence[dict]) -> str:
    """OFA's step against the plain one."""
    medians = _medians(found)
    parts = [
        f"{name} {seconds(medians[name, 'eager'])}"
        for name in (PEFT, CE, OFA_1)
        if (name, "eager") in medians
    ]
    graph = medians.get((OFA_1, "graph"))
    return ", ".join(parts if graph is None else [*parts, f"in a graph {seconds(graph)}"])
