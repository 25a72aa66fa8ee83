"""What tuning does layer by layer: linear probes, sharpness and step ratio (OFA, probe analysis)."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.metrics import log_loss
from torch import nn
from transformers import PreTrainedTokenizerBase

import ofa_kernels
from ofa.config import OFAConfig
from ofa.data.batch import pad
from ofa.data.task import Task
from ofa.decoder.patch import patch_model
from ofa.decoder.view import Decoder
from ofa.loss.sharpness import sharpness
from ofa.passes.own_layers import token_states
from ofa.progress import Track
from ofa.report import Section
from ofa.scoring import ROWS_PER_BATCH
from ofa.state_classifier import state_classifier
from ofa.train.fit import fit


@dataclass(frozen=True)
class Items:
    """What is learnt from and measured on.

    Attributes:
        task: template and label words.
        shots: {"text", "label"}, to train and to fit the linear probes on.
        test: {"text", "label"}, to measure on.
    """

    task: Task
    shots: Sequence[dict]
    test: Sequence[dict]


@dataclass(frozen=True)
class Measuring:
    """How the sharpness is measured.

    Attributes:
        n_probes: Hutchinson probes a layer and item.
        seed: of the probes.
        track: wraps the iteration over batches.
    """

    n_probes: int = 8
    seed: int = 0
    track: Track = iter


def variants(config: OFAConfig) -> dict[str, OFAConfig | None]:
    """The lines of the plots: the raw model, and what is trained with which terms."""
    return {
        "raw": None,
        "CE": replace(config, lambda_step=0, lambda_sharp=0),
        "CE + J": replace(config, lambda_sharp=0),
        "CE + H": replace(config, lambda_step=0),
        "OFA": config,
    }


@dataclass(frozen=True)
class LayerCurves:
    """One line of each plot.

    Attributes:
        accuracy: of a logistic regression on Z_t, t = 0..T: fitted on the shots, tested on the test items.
        log_loss: its log-loss in nats.
        sharpness: mean H_t over the test items, t = 0..T-1.
        sharpness_stderr: standard error of that mean over items, the probes' noise included.
        step_ratio: mean over the test items of ‖Z_t - Z_{t+1}‖ / ‖Z_t - Z_{t-1}‖, t = 1..T-1.
    """

    accuracy: list[float]
    log_loss: list[float]
    sharpness: list[float]
    sharpness_stderr: list[float]
    step_ratio: list[float]


def linear_probe(
    train: np.ndarray, labels: Sequence[int], test: np.ndarray, test_labels: Sequence[int]
) -> tuple[float, float]:
    """(accuracy, log-loss) of a logistic regression on standardised states, [n, D] each."""
    classifier = state_classifier().fit(train, labels)
    accuracy = float(classifier.score(test, test_labels))
    return accuracy, float(log_loss(test_labels, classifier.predict_proba(test), labels=classifier.classes_))


@torch.no_grad()
def layer_curves(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    items: Items,
    measuring: Measuring = Measuring(),
) -> LayerCurves:
    """Measure a model as it is.

    Args:
        model: a causal language model of a supported family.
        tokenizer: the model's.
        items: the linear probes are fitted on its shots; prompts carry no labels.
        measuring: probes, and a bar.
    """
    decoder = Decoder.of(model)
    device = decoder.device

    def batches(rows: Sequence[dict]) -> list[dict]:
        prompts = [items.task.encode(tokenizer, row["text"], decoder.max_tokens).ids for row in rows]
        padded = []
        for start in range(0, len(prompts), ROWS_PER_BATCH):
            batch = pad(prompts[start : start + ROWS_PER_BATCH], device)
            batch["example_ids"] = torch.arange(len(batch["input_ids"]), device=device) + start
            padded.append(batch)
        return padded

    def states(rows: Sequence[dict]) -> torch.Tensor:
        z = [token_states(decoder, batch, record=False).z for batch in measuring.track(batches(rows))]
        return torch.cat(z, dim=1).float().cpu()  # [T+1, n, D]

    train, tested = states(items.shots), states(items.test)
    labels, test_labels = ([row["label"] for row in rows] for rows in (items.shots, items.test))
    probed = [
        linear_probe(a.numpy(), labels, b.numpy(), test_labels) for a, b in zip(train, tested, strict=True)
    ]
    measured = measuring.track(batches(items.test))
    n_probes, seed = measuring.n_probes, measuring.seed
    h = torch.cat([sharpness(model, batch, n_probes, seed).value for batch in measured], dim=1)
    h = h.double().cpu()  # [T, n]
    _, ratios = ofa_kernels.step_ratio(tested, per_step=True)
    return LayerCurves(
        accuracy=[accuracy for accuracy, _ in probed],
        log_loss=[loss for _, loss in probed],
        sharpness=h.mean(1).tolist(),
        sharpness_stderr=(h.std(1) / h.shape[1] ** 0.5).tolist(),
        step_ratio=ratios.mean(1).tolist(),
    )


def analyse(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    items: Items,
    config: OFAConfig | None = None,
    measuring: Measuring = Measuring(),
    progress: bool = True,
) -> dict[str, LayerCurves]:
    """The curves of the raw model and of each variant trained from it; the model is given back as it was.

    Args:
        model: a causal language model of a supported family, unpatched.
        tokenizer: the model's.
        items: what to learn from and measure on.
        config: OFA's settings; the variants leave terms out of it.
        measuring: probes, and a bar.
        progress: show a bar while training.
    """
    curves = {}
    for name, settings in variants(config or OFAConfig()).items():
        report = patch_model(model)
        try:
            if settings is not None:
                fit(model, tokenizer, items.task, items.shots, settings, progress)
            curves[name] = layer_curves(model, tokenizer, items, measuring)
        finally:
            report.undo()
    return curves


def summary(curves: dict[str, LayerCurves], title: str) -> Section:
    """One line a variant."""
    rows = []
    for name, c in curves.items():
        best = int(np.argmax(c.accuracy))
        # as in the objective: without the embedding's layer, which is noise
        h, error = np.mean(c.sharpness[1:]), np.linalg.norm(c.sharpness_stderr[1:]) / len(c.sharpness[1:])
        rows.append(
            (
                name,
                f"{c.accuracy[best]:.3f} (Z_{best})",
                f"{c.accuracy[-1]:.3f}",
                f"{min(c.log_loss):.3f}",
                f"{h:.3f} ± {error:.3f}",
                f"{sum(c.step_ratio):.2f}",
            )
        )
    header = ("", "best probe accuracy", "of Z_T", "best log-loss", "mean H, t = 1..T-1", "J")
    return Section(title, header, rows)


def plot(curves: dict[str, LayerCurves], title: str, path: Path) -> None:
    """The four plots of the paper's analysis, one line a variant.

    Args:
        curves: from `analyse`.
        title: above the plots.
        path: a .png or .svg file.
    """
    figure = Figure(figsize=(12, 8), layout="constrained")
    axes = figure.subplots(2, 2)
    names = ("accuracy", "log-loss, nats", "sharpness H", "step ratio")
    for axis, name in zip(axes.flat, names, strict=True):
        axis.set_xlabel("layer t")
        axis.set_ylabel(name)
    (accuracy, loss), (sharp, ratio) = axes
    for name, c in curves.items():
        accuracy.plot(c.accuracy, label=name)
        loss.plot(c.log_loss, label=name)
        t, h, error = (
            np.arange(len(c.sharpness))[1:],
            np.array(c.sharpness[1:]),
            np.array(c.sharpness_stderr[1:]),
        )
        (line,) = sharp.plot(t, h, label=name)
        sharp.fill_between(t, h - 2 * error, h + 2 * error, alpha=0.2, color=line.get_color())
        ratio.plot(np.arange(1, len(c.step_ratio) + 1), c.step_ratio, label=name)
    sharp.set_title("band: two standard errors; the embedding's layer is left out", fontsize=9)
    loss.set_yscale("log")
    accuracy.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


def write(curves: dict[str, LayerCurves], title: str, folder: Path) -> list[Path]:
    """`probe.json` (every number), `probe.md` (the table) and `probe.png` (the plots)."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"probe.{suffix}" for suffix in ("json", "md", "png")]
    record = {"title": title, "curves": {name: asdict(c) for name, c in curves.items()}}
    paths[0].write_text(json.dumps(record, indent=1), encoding="utf-8")
    paths[1].write_text(summary(curves, title).markdown(), encoding="utf-8")
    plot(curves, title, paths[2])
    return paths
