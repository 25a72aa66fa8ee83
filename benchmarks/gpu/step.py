"""An optimiser step of a random bfloat16 model of an 8B Llama's shape: 8 prompts of 44 tokens, no padding.

Wall time with the device waited for, the time of the step's kernels, and the peak memory above the weights,
of LN-tuning as a PEFT user runs it, ours with cross-entropy only, OFA with 1 and 8 probes, and the authors'
objective. Ours are captured in a CUDA graph besides, as `ofa.fit` does it: a step packs its prompts on the
host, copies them, replays loss, gradient and update with its own number, which selects the probes, and reads
the loss.
"""

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
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
from ofa.train.captured import PLACES, ROWS, Captured

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


class CardGraphs:
    """A card's graphs, as a captured step asks for them."""

    def __init__(self, card: Card):
        self.card = card

    def run(self, work: Callable[[], None]) -> None:
        """Do the work: everything runs on the stream of the captures."""
        work()

    def capture(self, work: Callable[[], None]) -> Callable[[], object]:
        """Record the work; the call that does it."""
        return self.card.graph(work)


def captured_step(
    card: Card, name: str, lm: nn.Module, batch: dict[str, torch.Tensor]
) -> Callable[[int], float]:
    """A step of `ofa.fit` in a CUDA graph, captured: takes the step's number and gives its loss."""
    host = {key: value.cpu() for key, value in batch.items()}
    rows = list(range(len(host["labels"])))
    host["example_ids"] = torch.tensor(rows)
    step = Captured(trained(lm), partial(ofa.objective, lm), lambda _: host, CONFIGS[name], CardGraphs(card))
    step.begin()

    def take(number: int) -> float:
        # a learning rate of 0 leaves the model as it is and does all of the work
        loss = step.take(number, rows, lr=0.0)["loss"]
        assert loss is not None  # every step has one
        return loss

    take(0)
    take(1)  # the second is captured
    return take


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
    take, numbers, losses = captured_step(card, name, lm, batch), count(2), {}

    def replay() -> None:
        number = next(numbers)
        losses[number] = take(number)

    times = walls(card, replay)
    number, replayed = losses.popitem()
    rounded = {**batch, "packing": packed(batch)["packing"].rounded(ROWS, PLACES)}
    eager, other = (ofa.objective(lm, rounded, CONFIGS[name], n).loss.item() for n in (number, number + 1))
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
