"""Adapt a model to its shots by its norm weights γ."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ofa.config import DEFAULT_METHOD, METHODS, OFAConfig
from ofa.data.batch import Encoded, encoded
from ofa.data.task import Task
from ofa.decoder.patch import patch_model
from ofa.decoder.view import Decoder, without_autocast
from ofa.loss.objective import Objective, objective
from ofa.passes.packing import Batch
from ofa.train import memory
from ofa.train.captured import Captured, CudaGraphs, why_not_captured
from ofa.train.checkpoint import Checkpoint, digest
from ofa.train.loop import FitResult, train
from ofa.train.step import Passes, Uncaptured


def passes_of(model: nn.Module, examples: Encoded, cfg: OFAConfig) -> Passes:
    """The parts in which the batches of a run on its own are run."""
    decoder, lengths = Decoder.of(model), examples.lengths

    def passes(step: int, rows: list[int]) -> Iterator[tuple[float, Objective]]:
        for part in memory.parts(rows, [lengths[i] for i in rows], memory.tokens_at_once(decoder)):
            yield len(part) / len(rows), objective(model, examples.batch(part, decoder.device), cfg, step)

    return passes


def _captures(decoder: Decoder, cfg: OFAConfig, lengths: Sequence[int]) -> bool:
    """Whether steps are captured in CUDA graphs.

    Raises:
        ValueError: they can't be, and have to.
    """
    if cfg.cuda_graph is False:
        return False
    reason = why_not_captured(decoder, cfg, max(lengths))
    largest = sorted(lengths)[-(cfg.batch_size or len(lengths)) :]
    if reason is None and sum(largest) > memory.tokens_at_once(decoder):
        reason = f"a batch may take more than {memory.ACTIVATION_BYTES / 2**30:g} GiB and be run in parts"
    if reason is not None and cfg.cuda_graph:
        raise ValueError(
            f"cuda_graph=True, but the step can't be captured: {reason}; with cuda_graph=None it is captured "
            "where it can be"
        )
    return reason is None


@without_autocast
def fit(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    shots: Sequence[dict],
    cfg: OFAConfig | None = None,
    progress: bool = True,
    max_steps: int | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> FitResult:
    """Train the norm weights γ on a few labelled examples (OFA; with both weights 0: LN-tuning).

    The model is patched first if it isn't, stays in evaluation mode while it trains, and is adapted in
    place. A step computes logits of the prediction tokens only, gradients of γ only, and nothing on padding.
    A batch whose activations would take more than 4 GiB is run in parts, with the same gradient. Where
    the task has whole words, the loss counts all their tokens. On a GPU steps are captured in CUDA graphs
    where they can be (`cfg.cuda_graph`): the same step, but for the order of sums.

    Args:
        model: a causal language model of a supported family.
        tokenizer: the model's.
        task: template and label words.
        shots: {"text": str, "label": class number} each; their positions are the probes' example ids.
        cfg: objective, optimiser and schedule; None for those of the default method, as in `ofa adapt`.
        progress: show a bar with the loss terms and the time that remains.
        max_steps: stop after so many steps; the learning rate follows the schedule of the whole run.
        checkpoint: a .safetensors file where the run is kept every ten steps; where it is there already, the
            run goes on from it and ends with the same bits as an undisturbed one.

    Returns:
        `.history` (one dict a step: step, epoch, lr, loss, cross_entropy, step_ratio, sharpness; unweighted
        terms, None where not computed), `.seconds` and `.n_truncated`; a warning too says how many shots
        were cut.

    Raises:
        TypeError: a text is no string.
        ValueError: no shots, an unknown label, an empty text, colliding label words, an unsupported model, or
            `cuda_graph=True` where the step can't be captured.
        NonFiniteError: the loss or the gradient is NaN or infinite; γ is put back to the last good step.
        CheckpointError: the checkpoint is damaged, or of a run with other shots, settings or weights.
        KeyboardInterrupt: Ctrl-C; the step was finished, and written to the checkpoint.
    """
    cfg = cfg or METHODS[DEFAULT_METHOD]
    if not shots:
        raise ValueError("fit needs at least one labelled example, got none")
    decoder = Decoder.of(model)
    examples = encoded(tokenizer, task, shots, decoder.max_tokens)
    report, lm = patch_model(model), decoder.lm

    def loss(batch: Batch, config: OFAConfig, step: Tensor) -> Objective:
        return objective(model, batch, config, step)

    was_training = lm.training
    lm.eval()
    try:
        weights = report.train_only(decoder.trained_norms(cfg.trained_depth))
        if _captures(decoder, cfg, examples.lengths):
            host = partial(examples.batch, device=torch.device("cpu"))
            step = Captured(weights, loss, host, cfg, CudaGraphs(decoder.device))
        else:
            step = Uncaptured(weights, passes_of(model, examples, cfg), cfg.weight_decay)
        kept = None
        if checkpoint is not None:
            of_classes = task.target_ids(tokenizer)
            settings = [cfg.settings(), asdict(task), list(shots), of_classes, str(lm.dtype)]
            run = digest(settings, [norm.module.weight for norm in report.norms])
            kept = Checkpoint(Path(checkpoint), run)
        result = train(step, cfg.schedule(max_steps).steps(len(shots)), progress, kept)
    finally:
        report.train_only(decoder.trained_norms(1.0))
        lm.train(was_training)
    result.n_truncated = examples.n_truncated
    return result
