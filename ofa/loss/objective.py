"""The loss CE + λ_J J + λ_H H and its terms."""

from dataclasses import dataclass
from typing import NamedTuple, cast

from torch import Tensor, nn

import ofa_kernels
from ofa.config import VOCABULARY, OFAConfig
from ofa.data.words import cross_entropy
from ofa.decoder.quantised import check_derivatives
from ofa.decoder.view import Decoder, without_autocast
from ofa.loss.paper_code import paper_code_terms
from ofa.loss.sharpness import layer_sharpness
from ofa.passes.fast import StackedPass, stacked_pass, why_not_stacked
from ofa.passes.layer import Probes
from ofa.passes.own_layers import TokenStates, token_states
from ofa.passes.packing import Batch
from ofa_kernels import mix


class Term(NamedTuple):
    """How a term of the loss is shown: its symbol in a progress bar, its name with the unit on an axis."""

    symbol: str
    label: str


TERMS = {
    "cross_entropy": Term("CE", "cross-entropy, nats"),
    "step_ratio": Term("J", "step ratio J"),
    "sharpness": Term("H", "sharpness H"),
}


@dataclass(frozen=True)
class Objective:
    """The loss and its terms, unweighted; a term that was not computed is None."""

    loss: Tensor
    cross_entropy: Tensor
    step_ratio: Tensor | None = None
    sharpness: Tensor | None = None

    def terms(self) -> dict[str, Tensor | None]:
        """The terms by their names in `TERMS`."""
        return {name: getattr(self, name) for name in TERMS}


def check_terms(decoder: Decoder, cfg: OFAConfig) -> None:
    """Refuse terms that the model is too small for.

    Raises:
        ValueError: it has one layer, and sharpness begins at the second.
    """
    if len(decoder.layers) < 2 and (cfg.lambda_sharp != 0 or cfg.terms == "paper_code"):
        raise ValueError("the sharpness term needs a model of at least two layers; set lambda_sharp=0")


def n_probes_at(cfg: OFAConfig, step: int | Tensor) -> int:
    """Probes a layer and example at a step; 0 where it does without the sharpness term."""
    due = cfg.sharpness_every == 1 or step % cfg.sharpness_every == 0
    return cfg.n_probes if cfg.lambda_sharp != 0 and due else 0


def told_from(batch: Batch, loss_over: str) -> Tensor | None:
    """The batch's `classes`, if the cross-entropy is over these alone; None for the vocabulary.

    Raises:
        ValueError: the batch has none.
    """
    if loss_over == VOCABULARY:
        return None
    if "classes" not in batch:
        raise ValueError(
            "loss_over='labels' needs the tokens of the label words: a batch with `classes` [B, C], as "
            "ofa.features and ofa.collate make it; or set loss_over='vocabulary'"
        )
    return batch["classes"] if batch["classes"].shape[1] else None


def probed_layers(decoder: Decoder) -> range:
    """The layers of H: all but the embedding's, which is noise (and left out of J too)."""
    return range(1, len(decoder.layers))


@without_autocast
def objective(model: nn.Module, batch: Batch, cfg: OFAConfig, step: int | Tensor = 0) -> Objective:
    """CE + λ_J J + λ_H H at the prediction tokens (OFA, sections 1 and 2).

    Autocast is off inside: the model's own type decides. Load it in bfloat16 to compute in bfloat16. Call
    `backward` outside of autocast, as PyTorch asks.

    Args:
        model: a causal language model of a supported family, patched.
        batch: `input_ids`, `attention_mask` [B, T], padded on either side; `labels` [B], the token ids to
            predict, or [B, L], the token ids of whole words, each word followed by -100; then `input_ids`
            ends in the word's tokens but the last, and the prediction token is the one before them. Optional
            `example_ids` [B], which select the probes (default 0 to B-1), `classes` [B, C], the tokens of
            all label words, filled up with -100, which the loss is over if `cfg.loss_over` says so (NaN where
            the label is none of them; C = 0 where a word has several tokens), and `packing` (see
            `ofa.packed`).
        cfg: weights and probes.
        step: the training step; its probes come from the seed mix(cfg.seed, step). In a CUDA graph, an
            int64 tensor of one element on the model's device, filled before each replay; then every step
            has the sharpness term.

    Returns:
        Scalars in float32 (float64 for a float64 model): the loss, the mean over examples of the
        cross-entropy in nats (summed over a word's tokens), J, and H as the mean over examples and layers
        1 to T-1.

    Raises:
        ValueError: shapes don't fit, the family is not supported, a quantised layer drops derivatives, a
            tensor is the step of terms that depend on its value, the loss is over `classes` that are not
            there, or `cfg` has an ablation.
    """
    if isinstance(step, Tensor) and (cfg.terms == "paper_code" or cfg.sharpness_every != 1):
        raise ValueError(
            f"step is a tensor, whose value would have to be waited for, with terms={cfg.terms!r} and "
            f"sharpness_every={cfg.sharpness_every}; pass an int, or use 'formulas' and 1"
        )
    cfg.refuse_ablation()
    decoder = Decoder.of(model)
    check_terms(decoder, cfg)
    check_derivatives(decoder.lm, own_layers=False)
    if cfg.terms == "paper_code":
        seed = cast(int, mix(cfg.seed, step))  # of two integers
        nll, ratio, sharp = paper_code_terms(decoder, batch, seed)
        loss = nll + cfg.lambda_step * ratio + cfg.lambda_sharp * sharp
        return Objective(loss, nll, ratio, sharp)
    probes, n_probes = None, n_probes_at(cfg, step)
    if n_probes:
        probes = Probes(probed_layers(decoder), n_probes, mix(cfg.seed, step), batch.get("example_ids"))
    ran, sharp = _pass(decoder, batch, probes)
    loss = nll = cross_entropy(ran.logits, ran.following, batch["labels"], told_from(batch, cfg.loss_over))
    ratio = None
    if cfg.lambda_step != 0:
        ratio = cast(Tensor, ofa_kernels.step_ratio(ran.z))  # a pair only if asked for each step's
        loss = loss + cfg.lambda_step * ratio
    if sharp is not None:
        loss = loss + cfg.lambda_sharp * cfg.sharpness_every * sharp
    return Objective(loss, nll, ratio, sharp)


def _pass(
    decoder: Decoder, batch: Batch, probes: Probes | None
) -> tuple[StackedPass | TokenStates, Tensor | None]:
    """States and logits, and the mean H or None, in one pass where the family's form is written."""
    if why_not_stacked(decoder) is None:
        ran = stacked_pass(decoder, batch, probes)
        return ran, None if ran.products is None else -ran.products.mean()
    states = token_states(decoder, batch, record=probes is not None)
    return states, None if probes is None else layer_sharpness(decoder, states, probes).value.mean()
