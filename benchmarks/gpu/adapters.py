"""Many adapters in one pass: norms with a weight for each row, jobs in lockstep, texts of many adapters.

The model is that of the section `step`. A step of J jobs has 5 prompts of 44 tokens of each; if launches are
what a step waits for, 16 jobs take little more than one, until memory or arithmetic is the limit
(docs/gpu.md has what was predicted). Answers are 64 prompts, of one adapter and of 64.
"""

import gc
import statistics
import threading
from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

import ofa
from benchmarks.gpu.card import Card
from benchmarks.gpu.section import Rows, Table, Task
from benchmarks.gpu.step import LLAMA_8B, TINY, model_of, walls
from benchmarks.harness.inputs import DRAW_SEED
from benchmarks.harness.measure import first_line
from benchmarks.harness.tables import seconds
from benchmarks.many_adapters import ONE_WEIGHT, norms
from benchmarks.step_cost import CE, CONFIGS, OFA_1
from ofa.data.batch import Encoded
from ofa.mixed_scoring import Adapter, mixed_log_probs
from ofa.train import memory
from ofa.train.course import Course
from ofa.train.lockstep import Lockstep

SHAPES, CALLS = ((4096, 4096), (16384, 4096)), 20
JOBS, EXAMPLES, TOKENS, TEXTS = (1, 4, 16), 5, 44, 64
REHEARSED = {"shapes": ((6, 64),), "jobs": (1, 2), "tokens": 4, "texts": 3}


def lockstep_of(lm: nn.Module, config: ofa.OFAConfig, n_jobs: int, n_tokens: int, n_words: int) -> Lockstep:
    """Jobs of random prompts with steps enough for all that is timed; their learning rate is 0."""
    generator = torch.Generator().manual_seed(DRAW_SEED)
    rows = list(range(EXAMPLES))
    job = ofa.Job(ofa.Task("random", "{text}", ["a", "b"]), [{"text": "a", "label": 0}] * EXAMPLES, config)
    courses = []
    for _ in range(n_jobs):
        prompts = torch.randint(n_words, (EXAMPLES, n_tokens), generator=generator).tolist()
        examples = Encoded(prompts, [[1]] * EXAMPLES, 0)
        courses.append(Course(job, examples, [(0, rows, 0.0)] * 100, shares_passes=True))
    return Lockstep(lm, [norm.module.weight for norm in ofa.patch_model(lm).norms], courses)


def _norm_rows(card: Card) -> Rows:
    for shape in REHEARSED["shapes"] if card.rehearsal else SHAPES:
        for name, call in norms(shape, torch.bfloat16, card.device).items():
            row = {"kind": "norm", "name": name, "shape": list(shape), "seconds": [], "note": ""}
            try:
                call()
                iterations, rounds = (1, 1) if card.rehearsal else (CALLS, 5)
                row["seconds"] = [card.clock(call, iterations) for _ in range(rounds)]
            except Exception as error:  # one that fails must not hide the others
                row["note"] = first_line(error)
            yield row


def _step_rows(card: Card, lm: nn.Module, n_words: int) -> Rows:
    jobs, n_tokens = (REHEARSED["jobs"], REHEARSED["tokens"]) if card.rehearsal else (JOBS, TOKENS)
    memory.ACTIVATION_BYTES = card.free_memory() // 2  # so that all jobs are at work; the process ends here
    for name in (CE, OFA_1):
        for n_jobs in jobs:
            row = {"kind": "step", "name": name, "jobs": n_jobs, "seconds": [], "note": ""}
            try:
                lockstep = lockstep_of(lm, CONFIGS[name], n_jobs, n_tokens, n_words)
                before = card.allocated()
                card.reset_peak()
                row["seconds"] = walls(card, lockstep.advance)
                assert len(lockstep.active) == n_jobs
                row["peak"] = card.peak() - before
            except Exception as error:
                row["note"] = first_line(error)
            yield row
            gc.collect()
            card.empty_cache()


def _answer_rows(card: Card, lm: nn.Module, n_words: int) -> Rows:
    n_texts, n_tokens = (REHEARSED["texts"], REHEARSED["tokens"]) if card.rehearsal else (TEXTS, TOKENS)
    generator = torch.Generator().manual_seed(DRAW_SEED)
    prompts = torch.randint(n_words, (n_texts, n_tokens), generator=generator).tolist()
    own = torch.stack([norm.module.weight.detach() for norm in ofa.patch_model(lm).norms])
    for n_adapters in (1, n_texts):
        adapters = [Adapter(own.clone(), [[1], [2]]) for _ in range(n_adapters)]
        of_texts = [adapters[i % n_adapters] for i in range(n_texts)]
        row = {"kind": "answers", "adapters": n_adapters, "texts": n_texts, "seconds": [], "note": ""}
        try:
            answer = partial(mixed_log_probs, lm, prompts, of_texts, threading.Lock())
            row["seconds"] = walls(card, answer)
        except Exception as error:
            row["note"] = first_line(error)
        yield row


def rows(card: Card, task: Task) -> Rows:
    """Norms, then steps of more and more jobs, then answers."""
    with card.on_stream():
        yield from _norm_rows(card)
        lm, n_words = model_of(card).eval(), (TINY if card.rehearsal else LLAMA_8B)["vocab_size"]
        ofa.patch_model(lm)
        yield from _step_rows(card, lm, n_words)
        yield from _answer_rows(card, lm, n_words)


def _median(row: dict) -> float | None:
    return statistics.median(row["seconds"]) if row["seconds"] else None


def _norm_table(found: Sequence[dict]) -> list[Table]:
    first = {str(row["shape"]): _median(row) for row in found if row["name"] == ONE_WEIGHT}
    cells = []
    for row in found:
        own, other = _median(row), first.get(str(row["shape"]))
        ratio = f"{own / other:.2f}" if own and other else ""
        cells.append(
            (" × ".join(map(str, row["shape"])), row["name"], seconds(own) if own else "", ratio, row["note"])
        )
    header = ("rows × columns", "", "median", "/ one weight", "")
    return [("rms_norm and its gradients, a weight for each row, bfloat16", header, cells)] if cells else []


def _step_table(found: Sequence[dict]) -> list[Table]:
    cells = []
    for row in found:
        own = _median(row)
        cells.append(
            (
                row["name"],
                str(row["jobs"]),
                seconds(own) if own else "",
                f"{row['jobs'] / own:.1f}" if own else "",
                f"{row['peak'] / 2**20:,.0f} MiB" if row.get("peak") else "",
                row["note"],
            )
        )
    header = ("step", "jobs", "wall", "jobs' steps a second", "peak", "")
    title = f"Steps of jobs in lockstep, {EXAMPLES} × {TOKENS} tokens each, 8B-shaped Llama, bfloat16"
    return [(title, header, cells)] if cells else []


def _answer_table(found: Sequence[dict]) -> list[Table]:
    cells = []
    for row in found:
        own = _median(row)
        each = f"{row['texts'] / own:.0f}" if own else ""
        cells.append((str(row["adapters"]), seconds(own) if own else "", each, row["note"]))
    return [("Answers", ("adapters", "wall", "texts a second", ""), cells)] if cells else []


def tables(found: Sequence[dict]) -> list[Table]:
    """One for each part."""
    kinds = {kind: [row for row in found if row["kind"] == kind] for kind in ("norm", "step", "answers")}
    return _norm_table(kinds["norm"]) + _step_table(kinds["step"]) + _answer_table(kinds["answers"])


def finding(found: Sequence[dict]) -> str:
    """How much more work a second the largest set of jobs does than one job."""
    parts = []
    for name in (CE, OFA_1):
        rates = {
            row["jobs"]: row["jobs"] / own
            for row in found
            if row["kind"] == "step" and row["name"] == name and (own := _median(row))
        }
        if len(rates) > 1:
            least, most = min(rates), max(rates)
            parts.append(f"{name}: {most} jobs {rates[most] / rates[least]:.1f} times the rate of {least}")
    return "; ".join(parts) or "no two numbers of jobs were timed"
