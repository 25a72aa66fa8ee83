"""The losses of several jobs, each with its own γ, weights and probes, from one pass over their examples."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

import ofa_kernels
from ofa.ablation import AS_IT_IS
from ofa.config import VOCABULARY, OFAConfig
from ofa.data.words import cross_entropies
from ofa.decoder.quantised import check_derivatives
from ofa.decoder.view import Decoder
from ofa.loss.forms import sharpness_of, step_ratio_of
from ofa.loss.objective import Objective, n_probes_at, probed_layers, told_from
from ofa.passes.fast import StackedPass, stacked_pass
from ofa.passes.layer import Probes
from ofa.passes.packing import Batch
from ofa.passes.row_weights import RowWeights
from ofa_kernels import mix


@dataclass(frozen=True)
class JobExamples:
    """What a pass has of one job: so many examples, one after the other, at a step of it."""

    config: OFAConfig
    step: int
    n_examples: int


def _ablated(jobs: Sequence[JobExamples]) -> bool:
    return any(job.config.ablation != AS_IT_IS for job in jobs)


def _sizes(jobs: Sequence[JobExamples]) -> list[int]:
    return [job.n_examples for job in jobs]


def _cross_entropies(ran: StackedPass, batch: Batch, jobs: Sequence[JobExamples]) -> Tensor:
    """The cross-entropy of each example [B]."""
    if all(job.config.loss_over == VOCABULARY for job in jobs) and not _ablated(jobs):
        return cross_entropies(ran.logits, ran.following, batch["labels"])
    ends, of_jobs = list(accumulate(_sizes(jobs))), []
    for job, end in zip(jobs, ends, strict=True):
        at = slice(end - job.n_examples, end)
        own = {name: batch[name][at] for name in ("labels", "classes") if name in batch}
        following = None if ran.following is None else ran.following[at]
        smoothing = job.config.ablation.label_smoothing
        classes = told_from(own, job.config.loss_over)
        of_jobs.append(cross_entropies(ran.logits[at], following, own["labels"], classes, smoothing))
    return torch.cat(of_jobs)


def _probes(decoder: Decoder, batch: Batch, jobs: Sequence[JobExamples]) -> Probes | None:
    (n_probes,) = {n_probes_at(job.config, job.step) for job in jobs}
    if not n_probes:
        return None
    device = batch["example_ids"].device
    seeds = torch.tensor([mix(job.config.seed, job.step) for job in jobs], dtype=torch.uint64)
    sizes = torch.tensor(_sizes(jobs))
    of_examples = seeds.view(torch.int64).repeat_interleave(sizes).to(device)
    return Probes(probed_layers(decoder), n_probes, of_examples, batch["example_ids"])


def _step_ratios(z: Tensor, jobs: Sequence[JobExamples]) -> Tensor:
    """J of each example [B]; 0 for those of jobs without the term."""
    asked = torch.tensor([job.config.lambda_step != 0 for job in jobs for _ in range(job.n_examples)])
    rows = asked.nonzero()[:, 0].to(z.device)
    _, ratios = ofa_kernels.step_ratio(z if asked.all() else z[:, rows], per_step=True)
    if _ablated(jobs):
        asking = [job for job in jobs if job.config.lambda_step != 0]
        parts = zip(asking, ratios.split(_sizes(asking), 1), strict=True)
        totals = torch.cat([step_ratio_of(job.config.ablation, part) for job, part in parts])
    else:
        totals = ratios.sum(0)
    return totals if asked.all() else totals.new_zeros(len(asked)).index_copy(0, rows, totals)


def _sharpness(products: Tensor, jobs: Sequence[JobExamples]) -> Tensor:
    """H of each example [B]."""
    if not _ablated(jobs):
        return -products.mean((0, 1))
    parts = zip(jobs, products.split(_sizes(jobs), -1), strict=True)
    return torch.cat([sharpness_of(job.config.ablation, part) for job, part in parts])


def job_objectives(
    decoder: Decoder, batch: Batch, weights: RowWeights, jobs: Sequence[JobExamples]
) -> Objective:
    """CE + λ_J J + λ_H H of several jobs, each the mean over its own examples; see `objective`.

    No number of a job depends on another job, and neither does the gradient of a sum over the jobs.

    Args:
        decoder: the view of a model that has a stacked form.
        batch: as in `objective`, with `example_ids`; the examples of the first job, of the second, and so on.
        weights: the γ of every example.
        jobs: whose examples they are; all of them have the same number of probes at their steps.

    Returns:
        Loss and terms, each [jobs]; a term that no job has is None, and for a job without it there is a 0.

    Raises:
        ValueError: shapes don't fit, or a quantised layer drops derivatives.
    """
    check_derivatives(decoder.lm, own_layers=False)
    ran = stacked_pass(decoder, batch, _probes(decoder, batch, jobs), weights)
    sizes = torch.tensor(_sizes(jobs), device=ran.z.device)

    def by_job(of_examples: Tensor) -> Tensor:
        # not by a matrix product, which would spread a NaN over all jobs; unsafe: a GPU is not waited for
        return torch.segment_reduce(of_examples, "mean", lengths=sizes, unsafe=True)

    def column(weights: list[float]) -> Tensor:
        return torch.tensor(weights, dtype=nll.dtype, device=nll.device)

    loss = nll = by_job(_cross_entropies(ran, batch, jobs))
    ratio = sharp = None
    if any(job.config.lambda_step for job in jobs):
        ratio = by_job(_step_ratios(ran.z, jobs))
        loss = loss + column([job.config.lambda_step for job in jobs]) * ratio
    if ran.products is not None:
        sharp = by_job(_sharpness(ran.products, jobs))
        loss = loss + column([job.config.lambda_sharp * job.config.sharpness_every for job in jobs]) * sharp
    return Objective(loss, nll, ratio, sharp)
