"""What does an optimiser step cost, against what a PEFT user runs today and against the authors' objective?

    python -m benchmarks.step_cost --data DIR                 # SST-2 and AG News, both types, about 6 minutes
    python -m benchmarks.step_cost --data DIR --tasks sst2 --dtypes float32 --json FILE --markdown FILE

All contenders take turns in one process, on the same prompts; a step is the loss, its gradient and AdamW's
update. The baseline is LN-tuning by PEFT on transformers' own model with all logits. A table of eight real
prompts, padded as PEFT users do, and one without any padding, where ours has nothing to leave out. Memory is
the peak above the weights, each contender in a process of its own. An epoch is ten shots of the task: the
authors' in float32, one at a time, as published; OFA five at a time.
"""

import argparse
import gc
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import nn

import ofa
from benchmarks.authors_step import authors_loss, frozen_gammas
from benchmarks.harness import machine
from benchmarks.harness.interleave import Pace, interleave
from benchmarks.harness.tables import seconds, to_markdown, to_rich
from ofa.data import datasets as catalog
from ofa.data.batch import pad
from ofa.data.draws import draw_shots
from ofa.models import fast_dtype

ROWS = 8
LONGEST = {"sst2": 44, "agnews": 69}
PEFT, CE, OFA_1, OFA_8, AUTHORS = (
    "LN-tuning by PEFT", "ours, CE only", "OFA, 1 probe", "OFA, 8 probes", "authors' objective",
)  # fmt: skip
CONFIGS = {
    CE: ofa.OFAConfig(lambda_step=0, lambda_sharp=0),
    OFA_1: ofa.OFAConfig(n_probes=1),
    OFA_8: ofa.OFAConfig(n_probes=8),
}
CONTENDERS = (PEFT, CE, OFA_1, OFA_8, AUTHORS)
Batch = dict[str, torch.Tensor]
Step = Callable[[Batch], torch.Tensor]
HEADER = ("", "median", "IQR", "/ PEFT", "/ CE", "/ authors'")


def load(model: str, dtype: torch.dtype) -> nn.Module:
    """A model whose weights are read from the disk already."""
    lm, _ = ofa.models.load(model, dtype=dtype)
    for parameter in lm.parameters():
        parameter.data = parameter.data.clone()
    return lm


def make_loss(name: str, lm: nn.Module) -> tuple[nn.Module, Callable[[Batch], torch.Tensor]]:
    """The model as a contender trains it, which may be wrapped, and its loss; `lm` is the contender's own."""
    lm.eval()
    if name in CONFIGS:
        ofa.patch_model(lm)
    elif name == PEFT:
        from peft import LNTuningConfig, get_peft_model

        names = ["input_layernorm", "post_attention_layernorm", "norm"]
        lm = get_peft_model(lm, LNTuningConfig(task_type="CAUSAL_LM", target_modules=names)).eval()
    else:
        gammas = frozen_gammas(lm)
        for parameter_name, parameter in lm.named_parameters():
            parameter.requires_grad_("norm" in parameter_name)

    def loss(batch: Batch) -> torch.Tensor:
        if name in CONFIGS:
            return ofa.objective(lm, batch, CONFIGS[name]).loss
        if name == AUTHORS:
            return authors_loss(lm, batch, gammas)
        last = batch["attention_mask"].sum(-1) - 1
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        logits = lm(**inputs, use_cache=False).logits[torch.arange(len(last), device=last.device), last]
        return F.cross_entropy(logits.float(), batch["labels"])

    return lm, loss


def trained(lm: nn.Module) -> list[nn.Parameter]:
    """What a contender trains."""
    return [p for p in lm.parameters() if p.requires_grad]


def make_step(name: str, lm: nn.Module) -> Step:
    """A contender's optimiser step, which returns the loss before it."""
    lm, loss = make_loss(name, lm)
    # a learning rate of 0 leaves the model as it is and does all of the work
    optimizer = torch.optim.AdamW(trained(lm), lr=0.0)

    def step(batch: Batch) -> torch.Tensor:
        optimizer.zero_grad()
        value = loss(batch)
        value.backward()
        optimizer.step()
        return value.detach()

    return step


def _encoded(task: str, data: Path, tokenizer) -> list[list[int]]:
    chosen, pool, _ = catalog.load(task, data)
    return [chosen.encode(tokenizer, row["text"], 4096).ids for row in pool]


def batches(task: str, data: Path, tokenizer) -> dict[str, Batch]:
    """Eight prompts of the task by how they are padded, none longer than the task's size."""
    longest, prompts = LONGEST[task], _encoded(task, data, tokenizer)
    fitting = [ids for ids in prompts if len(ids) <= longest]
    real = [max(fitting, key=len), *fitting[: ROWS - 1]]
    joined = [list(chain(*prompts[i::ROWS]))[:longest] for i in range(ROWS)]
    batches_by_title = {}
    for ids in (real, joined):
        batch = pad(ids, torch.device("cpu"))
        batch["labels"] = torch.tensor([row[0] for row in ids])
        padding = 1 - batch["attention_mask"].float().mean()
        size = " x ".join(map(str, batch["input_ids"].shape))
        batches_by_title[f"{task}, {size}, {padding:.0%} padding"] = batch
    return batches_by_title


def time_in_turns(steps: Mapping[str, Step], batch: Batch, rounds: int) -> dict[str, list[float]]:
    """Seconds a step, in turns, after one that is not counted."""
    pace = Pace(budget=0.0, rounds=(rounds, rounds), iterations=1, before=lambda: None, warm=0)
    return interleave({name: partial(step, batch) for name, step in steps.items()}, pace)


def rows_of(times: dict[str, list[float]]) -> list[tuple[str, ...]]:
    """The table's rows."""
    medians = {name: statistics.median(values) for name, values in times.items()}
    rows = []
    for name, values in times.items():
        low, _, high = statistics.quantiles(values, n=4)
        ratios = (f"{medians[name] / medians[other]:.2f}" for other in (PEFT, CE, AUTHORS))
        rows.append((name, seconds(medians[name]), seconds(high - low), *ratios))
    return rows


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def _peak(name: str, model: str, dtype: torch.dtype, batch: Batch, out) -> None:
    """Send the peak resident memory of three steps above what the loaded model takes."""
    step = make_step(name, load(model, dtype))
    gc.collect()
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak of loading
    for _ in range(3):
        step(batch)
    out.put(_status("VmHWM") - before)


def peak_bytes(name: str, model: str, dtype: torch.dtype, batch: Batch) -> int:
    """Peak memory of a step above the weights, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    process = context.Process(target=_peak, args=(name, model, dtype, batch, out))
    process.start()
    peak = out.get()
    process.join()
    return peak


def epochs(task: str, data: Path, model: str) -> dict[str, float]:
    """Median seconds of an epoch of ten shots: the authors' as published, OFA in the fast type."""
    _, tokenizer = ofa.models.load(model)
    chosen, pool, _ = catalog.load(task, data)
    shots, _ = draw_shots(pool, 5, 0, chosen.label_words)
    labels = chosen.label_ids(tokenizer)
    ids = [chosen.encode(tokenizer, shot["text"], 4096).ids for shot in shots]
    medians = {}
    for name, dtype, size in (
        (AUTHORS, torch.float32, 1),
        (OFA_1, torch.float32, 5),
        (OFA_1, fast_dtype(), 5),
    ):
        step, times = make_step(name, load(model, dtype)), []
        parts = []
        for start in range(0, len(ids), size):
            part = pad(ids[start : start + size], torch.device("cpu"))
            part["labels"] = torch.tensor([labels[s["label"]] for s in shots[start : start + size]])
            parts.append(part)
        for _ in range(4):
            begin = time.perf_counter()
            for part in parts:
                step(part)
            times.append(time.perf_counter() - begin)
        type_name = str(dtype).removeprefix("torch.")
        medians[f"{name}, {type_name}, {size} at a time"] = statistics.median(times[1:])
    return medians


def main(argv: list[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step_cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="holds sst2/train.jsonl and others"
    )
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--tasks", default="sst2,agnews", metavar="NAME,…")
    parser.add_argument("--dtypes", metavar="TYPE,…", help="default: float32, and bfloat16 where it is fast")
    parser.add_argument("--rounds", type=int, default=7, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    options = parser.parse_args(argv)

    names = options.dtypes.split(",") if options.dtypes else None
    dtypes = [getattr(torch, name) for name in names or ()] or list(
        dict.fromkeys((torch.float32, fast_dtype()))
    )
    about = machine.describe()
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(machine.line(about), highlight=False)
    _, tokenizer = ofa.models.load(options.model)
    tables, record = [], {"machine": about, "model": options.model, "steps": {}, "memory": {}, "epochs": {}}

    def show(title: str, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
        tables.append((title, header, rows))
        console.print(to_rich(title, header, rows))

    sized = {}
    for task in options.tasks.split(","):
        sized |= batches(task, options.data, tokenizer)
    for dtype in dtypes:
        type_name = str(dtype).removeprefix("torch.")
        steps = {name: make_step(name, load(options.model, dtype)) for name in CONTENDERS}
        for title, batch in sized.items():
            with console.status(f"{title}, {type_name}"):
                times = time_in_turns(steps, batch, options.rounds)
            record["steps"][f"{title}, {type_name}"] = times
            show(f"step, {title}, {type_name}", HEADER, rows_of(times))
        del steps
        gc.collect()
    title, batch = list(sized.items())[1]
    for dtype in dtypes:
        type_name = str(dtype).removeprefix("torch.")
        peaks = {name: peak_bytes(name, options.model, dtype, batch) for name in CONTENDERS}
        record["memory"][type_name] = peaks
        rows = [
            (n, f"{p / 2**20:.0f} MiB", f"{p / peaks[CE]:.2f}", f"{p / peaks[AUTHORS]:.2f}")
            for n, p in peaks.items()
        ]
        show(f"peak memory above the weights, {title}, {type_name}", ("", "peak", "/ CE", "/ authors'"), rows)
    task = options.tasks.split(",")[0]
    record["epochs"] = of_epochs = epochs(task, options.data, options.model)
    slowest = max(of_epochs.values())
    rows = [(name, seconds(value), f"{slowest / value:.1f}") for name, value in of_epochs.items()]
    show(f"epoch of ten shots, {task}", ("", "median", "times faster"), rows)
    if options.json:
        options.json.write_text(json.dumps(record, indent=1), encoding="utf-8")
    if options.markdown:
        lines = [machine.line(about), ""]
        for table in tables:
            lines += to_markdown(*table)
        options.markdown.write_text("\n".join(lines), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
