"""What do many adapters cost in one pass, against one after the other?

    python -m benchmarks.many_adapters --data DIR                     # everything, about 15 minutes
    python -m benchmarks.many_adapters --data DIR --parts kernels,bank --dtypes float32
    python -m benchmarks.many_adapters --data DIR --json FILE --markdown FILE

The contenders of a table take turns in one process. Three parts:

    kernels   `rms_norm` with its gradients, a weight for each row against one for all
    training  16 jobs on SST-2, 5 shots per class, 5 a step: `ofa.fit_many` against 16 calls of `ofa.fit`
    bank      64 texts of SST-2: of 64 adapters, of one, and with one adapter after the other in the model
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from rich.console import Console

import ofa
import ofa_kernels
from benchmarks.harness import machine
from benchmarks.harness.inputs import DRAW_SEED
from benchmarks.harness.interleave import Pace, interleave
from benchmarks.harness.tables import seconds, to_markdown, to_rich
from ofa.data import datasets as catalog
from ofa.data.draws import draw_shots
from ofa.decoder.patch import set_gammas
from ofa.models import fast_dtype
from ofa.scoring import score

Calls = Mapping[str, Callable[[], object]]
SHAPES, WEIGHTS, ONE_WEIGHT = ((64, 576), (2560, 576), (4096, 2048)), 64, "one weight"
JOBS, STEPS, TEXTS, ADAPTERS = 16, 2, 64, 1000
CONFIGS = {
    "LN-tuning": ofa.OFAConfig(lambda_step=0, lambda_sharp=0),
    "OFA": ofa.OFAConfig(),
}
HEADER = ("", "median", "IQR", "/ first, of the same round")


def norms(shape: tuple[int, int], dtype: torch.dtype, device: str = "cpu") -> Calls:
    """A norm and its gradients, by which weight a row has."""
    generator = torch.Generator().manual_seed(DRAW_SEED)
    x, dy = (torch.randn(shape, generator=generator).to(device, dtype) for _ in range(2))
    x.requires_grad_()
    weights = torch.rand(WEIGHTS, shape[1], generator=generator).add(0.5).to(device).requires_grad_()
    one, single = (weights.detach()[at].clone().requires_grad_() for at in (0, slice(1)))
    random = torch.randint(WEIGHTS, shape[:1], generator=generator).to(device)

    def both(weight: torch.Tensor, index: torch.Tensor | None) -> object:
        y = ofa_kernels.rms_norm(x, weight, weight_index=index)
        return torch.autograd.grad(y, (x, weight), dy)

    return {
        ONE_WEIGHT: partial(both, one, None),
        "A = 1": partial(both, single, torch.zeros_like(random)),
        f"A = {WEIGHTS}, sorted": partial(both, weights, random.sort()[0]),
        f"A = {WEIGHTS}, random": partial(both, weights, random),
    }


def of_sst2(data: Path) -> SimpleNamespace:
    """SST-2's task, the shots of as many draws as there are jobs, and texts to answer."""
    task, pool, test = catalog.load("sst2", data)
    shots = [draw_shots(pool, 5, seed, task.label_words)[0] for seed in range(JOBS)]
    return SimpleNamespace(task=task, shots=shots, texts=[row["text"] for row in test[:TEXTS]])


def training(model, tokenizer, sst2: SimpleNamespace, config: ofa.OFAConfig, n_jobs: int = JOBS) -> Calls:
    """The first steps of all jobs, one after the other and together."""
    jobs = [ofa.Job(sst2.task, shots, config, max_steps=STEPS) for shots in sst2.shots[:n_jobs]]

    def in_turn() -> None:
        for job in jobs:
            set_gammas(model)
            ofa.fit(model, tokenizer, job.task, job.shots, job.config, progress=False, max_steps=STEPS)

    def together() -> None:
        set_gammas(model)
        results = ofa.fit_many(model, tokenizer, jobs, progress=False)
        assert all(result.error is None for result in results)

    return {f"{n_jobs} calls of fit": in_turn, "fit_many": together}


def filled(model, tokenizer, task: ofa.Task, n_adapters: int) -> tuple[ofa.AdapterBank, list]:
    """A bank of adapters with γ of their own, and these γ."""
    bank, generator = ofa.AdapterBank(model, tokenizer), torch.Generator().manual_seed(DRAW_SEED)
    own = [norm.module.weight.detach() for norm in ofa.patch_model(model).norms]
    gammas = []
    for number in range(n_adapters):
        gammas.append([g * (1 + 0.01 * torch.randn(g.shape, generator=generator)) for g in own])
        bank.add(f"adapter {number}", gammas[-1], task)
    return bank, gammas


def answers(model, tokenizer, sst2: SimpleNamespace) -> Calls:
    """64 texts, by whose they are."""
    bank, gammas = filled(model, tokenizer, sst2.task, TEXTS)

    def swapping() -> None:
        for text, own in zip(sst2.texts, gammas, strict=True):
            set_gammas(model, own)
            score(model, tokenizer, sst2.task, [text])

    return {
        f"{TEXTS} adapters": partial(bank.predict, sst2.texts, bank.names),
        "one adapter": partial(bank.predict, sst2.texts, bank.names[0]),
        "one adapter, without the bank": partial(score, model, tokenizer, sst2.task, sst2.texts),
        "one after the other": swapping,
    }


def timed(calls: Calls, rounds: int) -> dict[str, list[float]]:
    """Seconds a call, in turns, after one that is not counted."""
    for call in calls.values():
        call()
    return interleave(calls, Pace(budget=1.0, rounds=(rounds, max(rounds, 101))))


def rows_of(times: Mapping[str, list[float]]) -> list[tuple[str, ...]]:
    """The table's rows."""
    first, rows = next(iter(times.values())), []
    for name, values in times.items():
        low, median, high = statistics.quantiles(values, n=4)
        ratio = statistics.median(own / other for own, other in zip(values, first, strict=True))
        rows.append((name, seconds(median), seconds(high - low), f"{ratio:.3f}"))
    return rows


def main(argv: list[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.many_adapters",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="holds sst2/train.jsonl and test.jsonl")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--parts", default="kernels,training,bank", metavar="NAME,…")
    parser.add_argument("--dtypes", metavar="TYPE,…", help="default: float32, and bfloat16 where it is fast")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="turns of each, at least 2")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    parts = options.parts.split(",")
    if options.data is None and parts != ["kernels"]:
        parser.error("--data is needed for all parts but kernels")

    names = options.dtypes.split(",") if options.dtypes else None
    both = torch.float32, fast_dtype()
    dtypes = [getattr(torch, name) for name in names] if names else list(dict.fromkeys(both))
    about = machine.describe()
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(machine.line(about), highlight=False)
    tables, record = [], {"machine": about, "model": options.model, "times": {}}

    def measure(title: str, calls: Calls) -> None:
        with console.status(title):
            record["times"][title] = timed(calls, options.rounds)
        tables.append((title, HEADER, rows_of(record["times"][title])))
        console.print(to_rich(*tables[-1]))

    for dtype in dtypes:
        type_name = str(dtype).removeprefix("torch.")
        if "kernels" in parts:
            for shape in SHAPES:
                title = f"rms_norm and its gradients, {shape[0]} x {shape[1]}, {type_name}"
                measure(title, norms(shape, dtype))
        if options.data is None:
            continue
        model, tokenizer = ofa.models.load(options.model, dtype=dtype)
        ofa.patch_model(model)
        sst2 = of_sst2(options.data)
        if "training" in parts:
            for name, config in CONFIGS.items():
                calls = training(model, tokenizer, sst2, config)
                measure(f"{STEPS} steps of {JOBS} jobs, {name}, {type_name}", calls)
        if "bank" in parts:
            measure(f"{TEXTS} texts, {type_name}", answers(model, tokenizer, sst2))
            bank, _ = filled(model, tokenizer, sst2.task, ADAPTERS)
            record["bytes"] = bank.nbytes
            console.print(f"{len(bank):,} adapters take {bank.nbytes / 1e6:.1f} MB")
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
