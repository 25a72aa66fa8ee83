"""The terms of one job's examples, read as its `Ablation` has them."""

from torch import Tensor

from ofa.ablation import Ablation


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
