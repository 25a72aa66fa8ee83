"""Adapt one model to many tasks at once."""

import os
from collections.abc import Sequence
from dataclasses import asdict
from itertools import count
from pathlib import Path

from torch import nn
from transformers import PreTrainedTokenizerBase

from ofa.decoder.patch import borrowed
from ofa.decoder.view import Decoder, without_autocast
from ofa.progress import progress_bar
from ofa.train.checkpoint import Checkpoint, deferred_interrupt, digest
from ofa.train.course import Course
from ofa.train.job import Job, JobResult
from ofa.train.lockstep import Lockstep
from ofa.train.loop import stopped


@without_autocast
def fit_many(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    jobs: Sequence[Job],
    progress: bool = True,
    checkpoint: str | os.PathLike | None = None,
) -> list[JobResult]:
    """Train a set of γ for every job, each as `fit` would, with one copy of the model and in shared passes.

    Every job begins with the γ that the model has now. The jobs are trained in lockstep: one pass runs the
    batches of all of them, each example with its job's γ, probes and weights, as far as these fit the memory
    that `fit` allows the activations of a batch (4 GiB). Finished jobs leave and waiting ones join, in their
    order, while the largest batches of the jobs at work fit it together. In exact arithmetic a job's numbers
    do not depend on the other jobs; rounding differs, since sums are taken in another order.

    Jobs with the terms of the authors' code, and all jobs of a model that has no stacked form, are run one
    after the other within each step. Steps are not captured in CUDA graphs, whatever a job's `cuda_graph`.

    Args:
        model: a causal language model of a supported family, patched or not; given back as it was, also after
            an error or Ctrl-C: its classes, the bits of γ, `requires_grad`, and whether it trains. Nobody
            else may use it meanwhile.
        tokenizer: the model's.
        jobs: what to train.
        progress: show a bar with all jobs' steps, how many jobs are done, and the mean and the worst loss.
        checkpoint: a .safetensors file where the whole set is kept every ten steps; where it is there
            already, the set goes on from it and ends with the same bits as an undisturbed one.

    Returns:
        A `JobResult` for each job, in order. A job whose loss or gradient becomes NaN or infinite ends alone:
        its `error` is a `NonFiniteError`, and its γ are those before the last good step. Other errors of a
        job's step (a step ratio that divides by zero) end it in the same way.

    Raises:
        TypeError: something else than a job, or a text that is no string; the job's number is named.
        ValueError: a job that `fit` would refuse (its number is named), or an unsupported model.
        CheckpointError: the checkpoint is damaged, or of other jobs or weights.
        KeyboardInterrupt: Ctrl-C; the step was finished, and written to the checkpoint.
    """
    decoder = Decoder.of(model)
    with borrowed(model) as report:
        courses = [_course(decoder, tokenizer, number, job) for number, job in enumerate(jobs)]
        weights = [norm.module.weight for norm in report.norms]
        kept = None
        if checkpoint is not None:
            run = digest([*(_settings(tokenizer, job) for job in jobs), str(decoder.lm.dtype)], weights)
            kept = Checkpoint(Path(checkpoint), run)
        _train(Lockstep(model, weights, courses), progress, kept)
    return [course.result() for course in courses]


def _course(decoder: Decoder, tokenizer: PreTrainedTokenizerBase, number: int, job: Job) -> Course:
    try:
        return Course.of(decoder, tokenizer, job)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"job {number}: {error}") from error


def _settings(tokenizer: PreTrainedTokenizerBase, job: Job) -> list:
    """What a job's numbers depend on."""
    of_classes = job.task.target_ids(tokenizer)
    chosen = job.config.settings(), asdict(job.task), list(job.shots), job.max_steps, job.demonstrations
    return [*chosen, of_classes]


def _train(lockstep: Lockstep, progress: bool, checkpoint: Checkpoint | None) -> None:
    """Train all jobs to their ends."""
    if checkpoint:
        lockstep.load(checkpoint)
    with progress_bar(progress) as bar, deferred_interrupt() as interrupted:
        taken, total = lockstep.n_taken, lockstep.n_steps
        if taken and progress:
            bar.console.print(f"going on after {taken} of {total} steps", highlight=False)
        line = bar.add_task("adapting", total=total, completed=taken, info=lockstep.describe())
        for number in count(1):
            if lockstep.finished:
                break
            lockstep.advance()
            taken, total = lockstep.n_taken, lockstep.n_steps
            bar.update(line, total=total, completed=taken, info=lockstep.describe())
            last = interrupted.is_set() or lockstep.finished
            if checkpoint and (last or number % checkpoint.every == 0):
                lockstep.save(checkpoint)
            if interrupted.is_set():
                raise KeyboardInterrupt(stopped(taken, total, checkpoint))
