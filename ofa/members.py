"""Several trainings of one classifier, with seeds of their own: one γ, or one prediction, of all."""

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ofa.config import OFAConfig
from ofa.loss.objective import TERMS
from ofa.scoring import Scores
from ofa.train.fit_many import fit_many
from ofa.train.job import Job
from ofa.train.loop import FitResult

GAMMA, PROBABILITIES = "gamma", "probabilities"
COMBINATIONS = (GAMMA, PROBABILITIES)


@dataclass(frozen=True)
class Members:
    """Trainings that differ in their seed.

    Attributes:
        gammas: the γ of each, a tensor a norm.
        result: the means over the trainings at every step, and the seconds of all.
    """

    gammas: list[list[Tensor]]
    result: FitResult

    @property
    def mean_gamma(self) -> list[Tensor]:
        """The mean γ over the trainings, a tensor a norm."""
        return mean_gamma(self.gammas)


def mean_gamma(gammas: Iterable[Sequence[Tensor]]) -> list[Tensor]:
    """The mean over trainings of their γ, a tensor a norm."""
    return [torch.stack(of_norm).mean(0) for of_norm in zip(*gammas, strict=True)]


def member_configs(config: OFAConfig, n_members: int) -> list[OFAConfig]:
    """A configuration with its own seed, the seed after it, and so on."""
    return [replace(config, seed=config.seed + i) for i in range(n_members)]


def train_members(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    job: Job,
    n_members: int,
    progress: bool = True,
    checkpoint: str | os.PathLike | None = None,
) -> Members:
    """Train with the job's seed, the seed after it, and so on, all in one set (`ofa.fit_many`).

    Args:
        model: a causal language model of a supported family; every training starts from the γ that it has,
            and it is given back as it was.
        tokenizer: the model's.
        job: what to train.
        n_members: how many trainings.
        progress: show a bar.
        checkpoint: where the set is kept.

    Raises:
        ValueError: what `ofa.fit_many` refuses.
        NonFiniteError: a training's loss became NaN or infinite.
    """
    begin = time.perf_counter()
    jobs = [replace(job, config=config) for config in member_configs(job.config, n_members)]
    results = fit_many(model, tokenizer, jobs, progress, checkpoint)
    for result in results:
        if result.error is not None:
            raise result.error
    history = [_mean(rows) for rows in zip(*(result.history for result in results), strict=True)]
    seconds = time.perf_counter() - begin
    gammas = [result.gammas for result in results]
    return Members(gammas, FitResult(history, seconds, results[0].n_truncated))


def _mean(rows: Sequence[dict]) -> dict:
    """One step of all trainings, which agree in all but the loss and its terms."""
    means = {}
    for name in ("loss", *TERMS):
        values = [row[name] for row in rows]
        means[name] = None if None in values else sum(values) / len(values)
    return {**rows[0], **means}


def mean_scores(scores: Sequence[Scores]) -> Scores:
    """The means of probabilities [texts, classes] that several γ give to the same texts."""
    stacked = torch.stack([given.log_probs for given in scores])
    log_probs = stacked.logsumexp(0) - torch.tensor(len(scores)).log()
    return Scores(log_probs, scores[0].n_truncated)
