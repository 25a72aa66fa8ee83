"""`ofa demo`: five tweets per class against 500, four methods, three seeds."""

import json
import resource
import statistics
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import torch
from rich.console import Console
from rich.table import Table
from sklearn.base import clone

from ofa import models
from ofa.classifier import FewShotClassifier
from ofa.config import DEFAULT_METHOD, METHODS
from ofa.data.draws import draw_shots
from ofa.data.tweets import TASK, load_tweets, split_tweets
from ofa.decoder.view import Decoder
from ofa.scoring import Scores

SHOTS = 5
SEEDS = (0, 1, 2)
ZERO_SHOT, ICL = "zero-shot", "icl"
# the default, whose adapter is kept, comes last
CONFIGS = {name: METHODS[name] for name in sorted(METHODS, key=lambda name: name == DEFAULT_METHOD)}
EXAMPLES = (
    "The update fixed every bug I had reported. Brilliant work!",
    "Two hours in the queue and then they closed the counter.",
    "Well, that could have gone worse :)",
)


def peak_memory_mib() -> float:
    """The process's peak resident memory, or the GPU's peak allocation where there is one, in MiB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def _cell(method: str, seed: int, scores: Scores, labels: list[int], **numbers) -> dict:
    return {
        "task": TASK.name,
        "method": method,
        "protocol": "B" if method == ICL else "A",
        "seed": seed,
        "shots": 0 if method == ZERO_SHOT else SHOTS,
        "accuracy": scores.accuracy(labels),
        "n_test": len(labels),
        "n_truncated": scores.n_truncated,
        **numbers,
    }


def _timed(call, *args):
    begin = time.perf_counter()
    value = call(*args)
    return value, time.perf_counter() - begin


def run_demo(out: Path, model: str = models.SMOLLM2) -> None:
    """Run everything, print the tables, and leave an adapter and `results.jsonl` in `out`."""
    console = Console()
    begin = time.perf_counter()
    test, pool = split_tweets(load_tweets())
    texts, labels = [row["text"] for row in test], [row["label"] for row in test]
    base = FewShotClassifier(model, TASK.label_words, TASK.template)
    lm = Decoder.of(base.model_).lm
    source, dtype = models.source_of(lm), lm.dtype
    console.print(f"model: {source.name} ({source.origin}), {str(dtype).removeprefix('torch.')}")
    console.print(
        f"{SHOTS} tweets per class to learn from, {len(test)} others to test on; "
        f"ready after {time.perf_counter() - begin:.0f} s"
    )
    scores, seconds = _timed(base.label_scores, texts, (), ZERO_SHOT)
    cells = [_cell(ZERO_SHOT, seed, scores, labels, seconds_fit=0, seconds_eval=seconds) for seed in SEEDS]
    for seed in SEEDS:
        shots, _ = draw_shots(pool, SHOTS, seed, TASK.label_words)
        scores, seconds = _timed(base.label_scores, texts, shots, f"seed {seed}: {ICL}")
        cells.append(_cell(ICL, seed, scores, labels, seconds_fit=0, seconds_eval=seconds))
        for method, config in CONFIGS.items():
            classifier = cast(FewShotClassifier, clone(base)).set_params(config=replace(config, seed=seed))
            classifier.fit([s["text"] for s in shots], [TASK.label_words[s["label"]] for s in shots])
            scores, seconds = _timed(classifier.label_scores, texts, (), f"seed {seed}: {method}")
            fitted = {"seconds_fit": classifier.result_.seconds, "seconds_eval": seconds}
            cells.append(_cell(method, seed, scores, labels, **fitted))
            if method == DEFAULT_METHOD and seed == SEEDS[0]:
                classifier.save(out)
                examples = classifier.label_scores(EXAMPLES, (), "examples").log_probs.exp()
    record = {"model": source.name, "model_source": asdict(source), "dtype": str(dtype)}
    with (out / "results.jsonl").open("w") as file:
        file.writelines(json.dumps({**cell, **record}) + "\n" for cell in cells)
    console.print(_accuracy_table(cells))
    size = sum(path.stat().st_size for path in out.glob("adapter_*")) / 1024
    console.print(
        f"peak memory {peak_memory_mib():,.0f} MiB, adapter {size:.0f} KiB, "
        f"{time.perf_counter() - begin:.0f} s in all"
    )
    console.print(_example_table(examples))
    console.print(f"adapter: {out}, every number: {out / 'results.jsonl'}")


def _accuracy_table(cells: list[dict]) -> Table:
    table = Table(title=f"accuracy on the same {cells[0]['n_test']} tweets, as measured")
    for name in ("method", *(f"seed {seed}" for seed in SEEDS), "mean ± std", "fit s", "eval s"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for method in dict.fromkeys(cell["method"] for cell in cells):
        rows = [cell for cell in cells if cell["method"] == method]
        accuracies = [row["accuracy"] for row in rows]
        spread = f"{statistics.mean(accuracies):.3f} ± {statistics.stdev(accuracies):.3f}"
        means = (statistics.mean(row[name] for row in rows) for name in ("seconds_fit", "seconds_eval"))
        table.add_row(method, *(f"{a:.3f}" for a in accuracies), spread, *(f"{m:.1f}" for m in means))
    return table


def _example_table(probabilities: torch.Tensor) -> Table:
    table = Table(title=f"three predictions ({DEFAULT_METHOD}, seed {SEEDS[0]})")
    table.add_column("text")
    for word in TASK.label_words:
        table.add_column(word, justify="right")
    for text, row in zip(EXAMPLES, probabilities.tolist(), strict=True):
        table.add_row(text, *(f"{p:.3f}" for p in row))
    return table
