"""What does bfloat16 do to the sharpness and to what is learned?

    python -m benchmarks.precision --data DIR
    python -m benchmarks.precision --data DIR --task agnews --json precision.json --markdown precision.md

The same probes in both types: H of every layer by exact directional derivatives and by finite differences, as
relative L2 over layers against exact derivatives in float32. Then OFA is trained in both types on the same
shots, and the two γ are compared on the same test items by McNemar's exact test.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from rich.console import Console
from scipy.stats import binomtest

import ofa
from benchmarks.harness import machine
from benchmarks.harness.tables import to_markdown, to_rich
from ofa.data import datasets as catalog
from ofa.data.batch import pad
from ofa.data.draws import draw_shots
from ofa.decoder.patch import patch_model
from ofa.scoring import score

FLOAT, SHORT = torch.float32, torch.bfloat16
N_PROBES = 8
FD_EPS = (1e-1, 1e-2, 1e-3)


def layer_sharpness(model: str, ids: list[list[int]]) -> dict[str, torch.Tensor]:
    """Mean H over the examples [layers], by type and method."""
    batch, sharpness = pad(ids, torch.device("cpu")), {}
    for dtype in (FLOAT, SHORT):
        lm, _ = ofa.models.load(model, dtype=dtype)
        patch_model(lm)
        name = str(dtype).removeprefix("torch.")
        with torch.no_grad():
            sharpness[f"{name}, exact"] = ofa.sharpness(lm, batch, N_PROBES).value.mean(1).float()
            for eps in FD_EPS:
                measured = ofa.sharpness(lm, batch, N_PROBES, method="fd", fd_eps=eps)
                sharpness[f"{name}, differences with ε = {eps:g}"] = measured.value.mean(1).float()
    return sharpness


def mcnemar(first: torch.Tensor, second: torch.Tensor) -> tuple[int, int, float]:
    """(only the first right, only the second right, two-sided exact p) of two [n] bool.

    McNemar 1947 with the binomial distribution of the discordant pairs.
    """
    a, b = int((first & ~second).sum()), int((~first & second).sum())
    return a, b, float(binomtest(a, a + b).pvalue) if a + b else 1.0


def trained(model: str, data: Path, task: str, seed: int) -> dict[str, torch.Tensor]:
    """[n] bool, which test items are right after OFA in each type."""
    chosen, pool, test = catalog.load(task, data)
    shots, _ = draw_shots(pool, catalog.find(task, data).shots, seed, chosen.label_words)
    labels, right = torch.tensor([row["label"] for row in test]), {}
    for dtype in (FLOAT, SHORT):
        lm, tokenizer = ofa.models.load(model, dtype=dtype)
        ofa.fit(lm, tokenizer, chosen, shots, ofa.OFAConfig(seed=seed))
        scores = score(lm, tokenizer, chosen, [row["text"] for row in test])
        right[str(dtype).removeprefix("torch.")] = scores.predictions == labels
    return right


def main(argv: list[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.precision",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="holds sst2/train.jsonl and others"
    )
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    options = parser.parse_args(argv)

    console = Console(width=None if sys.stdout.isatty() else 110)
    about = machine.describe()
    console.print(machine.line(about), highlight=False)
    chosen, pool, _ = catalog.load(options.task, options.data)
    _, tokenizer = ofa.models.load(options.model)
    ids = [chosen.encode(tokenizer, row["text"], 4096).ids for row in pool[:8]]
    measured = layer_sharpness(options.model, ids)
    truth = measured["float32, exact"]
    rows = []
    for name, value in measured.items():
        parts = ((value - truth)[1:], (value - truth)[1:-5], (value - truth)[-5:])
        wholes = (truth[1:], truth[1:-5], truth[-5:])
        errors = (part.norm() / whole.norm() for part, whole in zip(parts, wholes, strict=True))
        rows.append((name, *(f"{100 * error:.2g} %" for error in errors)))
    header = ("", "layers 1 to T-1", "all but the last five", "the last five")
    title = (
        f"H against exact derivatives in float32: relative L2 over layers, {options.task}, {N_PROBES} probes"
    )
    console.print(to_rich(title, header, rows))

    right = trained(options.model, options.data, options.task, options.seed)
    float_only, short_only, p = mcnemar(right["float32"], right["bfloat16"])
    accuracies = {name: value.double().mean().item() for name, value in right.items()}
    line = (
        f"OFA, seed {options.seed}, {len(right['float32'])} items: accuracy "
        + ", ".join(f"{value:.3f} in {name}" for name, value in accuracies.items())
        + f"; right only in float32 {float_only}, only in bfloat16 {short_only}, McNemar's p = {p:.2f}"
    )
    console.print(line, highlight=False)
    if options.json:
        record = {
            "machine": about,
            "task": options.task,
            "sharpness": {name: value.tolist() for name, value in measured.items()},
            "accuracy": accuracies,
            "mcnemar": {"float32_only": float_only, "bfloat16_only": short_only, "p": p},
        }
        options.json.write_text(json.dumps(record, indent=1), encoding="utf-8")
    if options.markdown:
        lines = [machine.line(about), "", *to_markdown(title, header, rows), line, ""]
        options.markdown.write_text("\n".join(lines), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
