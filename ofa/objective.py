"""The loss CE + λ_J J + λ_H H and its configuration."""

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

import ofa_kernels
from ofa.sharpness import layer_sharpness
from ofa.states import token_states
from ofa_kernels.probes import mix
from ofa_kernels.reference import accumulation_dtype


@dataclass(frozen=True)
class OFAConfig:
    """How to adapt; both weights 0 is plain LN-tuning, which does none of the extra work.

    Attributes:
        lambda_step: λ_J, weight of the step ratio J.
        lambda_sharp: λ_H, weight of the sharpness H (mean over examples and layers 1 to T-1).
        n_probes: Hutchinson probes a layer and example.
        sharpness_every: compute H every k-th step only, weighted k times.
        lr: AdamW's peak learning rate; 5 % linear warm-up, then a cosine to 0.
        weight_decay: AdamW's.
        epochs: passes over the shots.
        batch_size: examples a step.
        seed: of the order of the shots and of the probes.
    """

    lambda_step: float = 1e-2
    lambda_sharp: float = 1e-3
    n_probes: int = 1
    sharpness_every: int = 1
    lr: float = 1e-3
    weight_decay: float = 1e-3
    epochs: int = 30
    batch_size: int = 5
    seed: int = 0

    def __post_init__(self):
        for name in ("n_probes", "sharpness_every", "epochs", "batch_size"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(
                    f"OFAConfig: {name} must be an integer of at least 1, got {getattr(self, name)}"
                )
        for name in ("lambda_step", "lambda_sharp", "lr", "weight_decay"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"OFAConfig: {name} must be finite, got {getattr(self, name)}")
        if self.lr <= 0 or self.weight_decay < 0:
            raise ValueError(
                f"OFAConfig: lr must be positive and weight_decay not negative, got {self.lr} and "
                f"{self.weight_decay}"
            )


@dataclass(frozen=True)
class Objective:
    """The loss and its terms, unweighted; a term that was not computed is None."""

    loss: Tensor
    cross_entropy: Tensor
    step_ratio: Tensor | None
    sharpness: Tensor | None


def objective(model: nn.Module, batch: dict[str, Tensor], cfg: OFAConfig, step: int = 0) -> Objective:
    """CE + λ_J J + λ_H H at the prediction tokens (OFA, sections 1 and 2).

    Args:
        model: a causal language model of a supported family, patched.
        batch: `input_ids`, `attention_mask` [B, T], padded on either side; `labels` [B], the token ids to
            predict; optional `example_ids` [B], which select the probes (default 0 to B-1).
        cfg: weights and probes.
        step: the training step; its probes are those of the seed mix(cfg.seed, step).

    Returns:
        Scalars in float32 (float64 for a float64 model): the loss, the mean cross-entropy over the
        vocabulary in nats, J, and H as the mean over examples and layers 1 to T-1.

    Raises:
        ValueError: shapes don't fit, or the family is not supported.
    """
    with_sharpness = cfg.lambda_sharp != 0 and step % cfg.sharpness_every == 0
    states = token_states(model, batch, record=with_sharpness)
    logits = states.logits.to(accumulation_dtype(states.logits))
    loss = cross_entropy = F.cross_entropy(logits, batch["labels"])
    ratio = sharp = None
    if cfg.lambda_step != 0:
        ratio = ofa_kernels.step_ratio(states.z)
        loss = loss + cfg.lambda_step * ratio
    if with_sharpness:
        if len(states.keys) < 2:
            raise ValueError("the sharpness term needs a model of at least two layers; set lambda_sharp=0")
        layers = range(1, len(states.keys))  # the embedding's layer is noise (and left out of J too)
        sharp = layer_sharpness(
            model, states, layers, cfg.n_probes, mix(cfg.seed, step), batch.get("example_ids")
        ).value.mean()
        loss = loss + cfg.lambda_sharp * cfg.sharpness_every * sharp
    return Objective(loss, cross_entropy, ratio, sharp)
