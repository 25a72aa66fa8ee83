"""Adapt a model to its shots: AdamW on γ with warm-up and cosine, watched by a progress bar."""

import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, get_cosine_schedule_with_warmup

from ofa.fewshot.tasks import Task, count_truncated
from ofa.objective import Objective, OFAConfig, objective
from ofa.patch import causal_lm, patch_model
from ofa.scoring import max_tokens, pad

WARMUP_SHARE = 0.05


class NonFiniteError(FloatingPointError):
    """A loss term or the gradient became NaN or infinite; γ is that of the last good step."""


@dataclass
class FitResult:
    """What `fit` did.

    Attributes:
        history: one dict a step: step, epoch, lr, loss, cross_entropy, step_ratio, sharpness (unweighted
            terms; None where not computed).
        seconds: wall-clock time of the training loop.
        n_truncated: shots that were cut to fit the context.
    """

    history: list[dict] = field(default_factory=list)
    seconds: float = 0.0
    n_truncated: int = 0


def progress_bar(visible: bool = True) -> Progress:
    """A bar on standard error with free text and the time that remains."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[info]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not visible,
    )


def _batches(n: int, cfg: OFAConfig) -> Iterator[tuple[int, list[int]]]:
    """(epoch, indices) of every step, freshly shuffled each epoch."""
    generator = random.Random(cfg.seed)
    for epoch in range(cfg.epochs):
        order = list(range(n))
        generator.shuffle(order)
        for start in range(0, n, cfg.batch_size):
            yield epoch, order[start : start + cfg.batch_size]


def _describe(row: dict) -> str:
    names = {"loss": "loss", "cross_entropy": "CE", "step_ratio": "J", "sharpness": "H"}
    return "  ".join(f"{short} {row[name]:.4g}" for name, short in names.items() if row[name] is not None)


def _check_finite(step: int, terms: Objective, gradients: Sequence[Tensor]) -> None:
    largest = torch.stack([gradient.abs().max() for gradient in gradients]).max()
    # the single terms first, so that the culprit is named and not the sum
    for name, value in (*reversed(vars(terms).items()), ("gradient", largest)):
        if value is not None and not torch.isfinite(value):
            raise NonFiniteError(
                f"step {step}: the term {name} is {value.item()}; γ was put back to the last good step. "
                "Lower lr or the term's weight, or use float32"
            )


def fit(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    shots: Sequence[dict],
    cfg: OFAConfig | None = None,
    progress: bool = True,
) -> FitResult:
    """Train the norm weights γ on a few labelled examples (OFA; with both weights 0: LN-tuning).

    The model is patched first if it isn't, stays in evaluation mode while it trains, and is adapted in
    place. A step computes no logits but the prediction tokens' and no gradient but γ's.

    Args:
        model: a causal language model of a supported family.
        tokenizer: the model's.
        task: template and label words.
        shots: {"text": str, "label": class number} each; their positions are the probes' example ids.
        cfg: objective, optimiser and schedule.
        progress: show a bar with the loss terms and the time that remains.

    Returns:
        `.history`, `.seconds` and `.n_truncated`; a warning too says how many shots were cut.

    Raises:
        ValueError: no shots, an unknown label, an empty text, colliding label words, or an unsupported model.
        NonFiniteError: the loss or the gradient is NaN or infinite; γ is that of the last good step.
    """
    cfg = cfg or OFAConfig()
    if not shots:
        raise ValueError("fit needs at least one labelled example, got none")
    task.check_labels(shots)
    label_ids = task.label_ids(tokenizer)
    prompts = [task.encode(tokenizer, shot["text"], max_tokens(model)) for shot in shots]
    report = patch_model(model)
    weights = [norm.module.weight for norm in report.norms]
    lm = causal_lm(model)
    device = lm.lm_head.weight.device
    optimizer = torch.optim.AdamW(weights, lr=cfg.lr, weight_decay=cfg.weight_decay)
    n_steps = cfg.epochs * math.ceil(len(shots) / cfg.batch_size)
    schedule = get_cosine_schedule_with_warmup(optimizer, int(WARMUP_SHARE * n_steps), n_steps)
    result = FitResult(n_truncated=count_truncated(prompts))
    good = [weight.detach().clone() for weight in weights]
    was_training = lm.training
    lm.eval()
    begin = time.perf_counter()
    try:
        with progress_bar(progress) as bar:
            line = bar.add_task("adapting", total=n_steps, info="")
            for step, (epoch, rows) in enumerate(_batches(len(shots), cfg)):
                batch = pad([prompts[i].ids for i in rows], device)
                batch["labels"] = torch.tensor([label_ids[shots[i]["label"]] for i in rows], device=device)
                batch["example_ids"] = torch.tensor(rows, device=device)
                terms = objective(model, batch, cfg, step)
                gradients = torch.autograd.grad(terms.loss, weights)
                _check_finite(step, terms, gradients)
                for saved, weight, gradient in zip(good, weights, gradients, strict=True):
                    saved.copy_(weight.detach())
                    weight.grad = gradient
                lr = optimizer.param_groups[0]["lr"]
                optimizer.step()
                schedule.step()
                values = {name: None if t is None else t.item() for name, t in vars(terms).items()}
                result.history.append({"step": step, "epoch": epoch, "lr": lr, **values})
                bar.update(line, advance=1, info=_describe(result.history[-1]))
    except NonFiniteError:
        with torch.no_grad():
            for saved, weight in zip(good, weights, strict=True):
                weight.copy_(saved)
        raise
    finally:
        optimizer.zero_grad()
        lm.train(was_training)
    result.seconds = time.perf_counter() - begin
    return result
