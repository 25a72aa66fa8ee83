"""The objective of the OFA authors' code, written anew to be timed, apart from `ofa.loss.paper_code`."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-3
LAMBDA_STEP = 1e-2
LAMBDA_SHARP = 1e-3


def _layers(model: nn.Module) -> list[nn.Module]:
    return list(model.get_submodule("model.layers").children())


def frozen_gammas(model: nn.Module) -> list[Tensor]:
    """γ0: the pretrained post-attention weights, one a layer; they stay P throughout training."""
    gammas = (layer.get_parameter("post_attention_layernorm.weight") for layer in _layers(model))
    return [gamma.detach().clone() for gamma in gammas]


def _shifted(shift: Tensor, _: nn.Module, args: tuple) -> tuple:
    return args[0] + shift.to(args[0].dtype), *args[1:]


def _noisy_states(model: nn.Module, inputs: dict[str, Tensor], shifts: list[Tensor]) -> tuple[Tensor, ...]:
    """Hidden states of a second full pass, every layer's input shifted at every token."""
    handles = [
        layer.register_forward_pre_hook(partial(_shifted, shift))
        for layer, shift in zip(_layers(model), shifts, strict=True)
    ]
    try:
        return model.get_submodule("model")(**inputs, output_hidden_states=True).hidden_states
    finally:
        for handle in handles:
            handle.remove()


def authors_loss(model: nn.Module, batch: dict[str, Tensor], gammas: list[Tensor]) -> Tensor:
    """CE + 1e-2 J + 1e-3 mean H.

    J is of squared norms, from t = 2, with the last state after the final norm; H of noise in all layers at
    once, under a softplus, with no σ and the residual's identity left in.
    """
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    rows = torch.arange(len(batch["labels"]), device=batch["labels"].device)
    last = batch["attention_mask"].sum(-1) - 1
    out = model(**inputs, output_hidden_states=True)
    loss = F.cross_entropy(out.logits[rows, last].float(), batch["labels"])

    states = [h[rows, last].float() for h in out.hidden_states]  # T+1 of [B, D]
    for t in range(2, len(states) - 1):
        moved, came = F.mse_loss(states[t], states[t + 1]), F.mse_loss(states[t], states[t - 1])
        loss = loss + LAMBDA_STEP * moved / came

    noises = [EPS * torch.randn_like(h, dtype=torch.float32) for h in out.hidden_states[:-1]]
    shifts = [gamma * noise for gamma, noise in zip(gammas, noises, strict=True)]
    noisy = [h[rows, last].float() for h in _noisy_states(model, inputs, shifts)]
    sharp = 0.0
    for i in range(1, len(states) - 1):
        difference = (noisy[i + 1] - noisy[i]) - (states[i + 1] - states[i])
        sharp = sharp + F.softplus(-(noises[i][rows, last] @ difference.T) / EPS).mean()
    return loss + LAMBDA_SHARP * sharp / (len(states) - 2)
