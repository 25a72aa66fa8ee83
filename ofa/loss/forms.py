"""The terms of one job's examples, read as its `Ablation` has them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ofa.ablation import Ablation
from ofa.data.words import cross_entropies


def cross_entropies_of(
    ablation: Ablation, logits: Tensor, following: Tensor | None, labels: Tensor, classes: Sequence[int]
) -> Tensor:
    """[B], as `cross_entropies`.

    Args:
        ablation: over what, and how smooth.
        logits: [B, V], of the first tokens.
        following: [B, L - 1, V], of the others; None where labels have one.
        labels: [B] or [B, L].
        classes: the tokens of the label words, where each has one.
    """
    if ablation.loss_over == "labels":
        tokens = torch.tensor(classes, device=labels.device)
        logits = logits[:, tokens]
        labels = (labels[:, None] == tokens).to(torch.int64).argmax(1)
    return cross_entropies(logits, following, labels, ablation.label_smoothing)


def step_ratio_of(ablation: Ablation, ratios: Tensor) -> Tensor:
    """J [B] of the ratios [T - 1, B] at t = 1..T-1."""
    ratios = ratios[ablation.first_layer - 1 :]
    return (ratios.log() if ablation.ratio_form == "log" else ratios).sum(0)


def sharpness_of(ablation: Ablation, products: Tensor) -> Tensor:
    """H [B] of the products νᵀ J_f P ν [T - 1, n_probes, B] of the layers 1 to T-1."""
    traces = -products[ablation.first_layer - 1 :].mean(1)
    if ablation.trace_form == "positive":
        traces = traces.relu()
    if ablation.trace_form == "relative":
        traces = traces / traces.detach().abs().mean(1, keepdim=True)
    return traces.mean(0)
