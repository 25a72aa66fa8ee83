"""A job of `fit_many` on its way."""

import math
from dataclasses import dataclass, field, replace
from functools import cached_property

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ofa.ablation import AS_IT_IS, Ablation
from ofa.config import OFAConfig, Steps
from ofa.data.batch import Encoded
from ofa.data.leave_one_out import training_prompts
from ofa.decoder.quantised import check_derivatives
from ofa.decoder.view import Decoder
from ofa.loss.objective import check_terms
from ofa.passes.fast import why_not_stacked
from ofa.train.job import Job, JobResult


def _check_fits(decoder: Decoder, ablation: Ablation) -> None:
    """Raise ValueError if the ablation doesn't fit the model."""
    n_layers = len(decoder.layers)
    if ablation.first_layer >= n_layers:
        raise ValueError(
            f"first_layer must be below the model's {n_layers} layers, got {ablation.first_layer}"
        )
    decoder.with_preconditioner(ablation.p_norm)  # refused here where there is none


def _trained(decoder: Decoder, config: OFAConfig) -> Tensor | None:
    """A course's `trained`."""
    trained = decoder.trained_norms(config.trained_depth, config.ablation.trained_norms)
    return None if trained.all() else trained


@dataclass(eq=False)  # two jobs that are equal are two jobs
class Course:
    """What of a job was done, and what comes next.

    Attributes:
        job: what it was asked for.
        examples: its prompts as token ids.
        steps: all of them.
        shares_passes: whether it can be run in one pass with others.
        trained: [norms] bool, which norms are trained; None for all.
        history: what came of the steps that were taken.
        gammas: [norms, N] on the CPU, once the job has ended.
        error: what ended it early.
        seconds: its share of the time.
    """

    job: Job
    examples: Encoded
    steps: Steps
    shares_passes: bool
    trained: Tensor | None = None
    history: list[dict] = field(default_factory=list)
    gammas: Tensor | None = None
    error: Exception | None = None
    seconds: float = 0.0

    @classmethod
    def of(cls, decoder: Decoder, tokenizer: PreTrainedTokenizerBase, job: Job) -> "Course":
        """The beginning of a job; the model is in evaluation mode.

        Raises:
            TypeError: it is no job, or a text is no string.
            ValueError: the job can't be run with this model.
        """
        if not isinstance(job, Job):
            raise TypeError(f"expected an ofa.Job, got {type(job).__name__}")
        shots, config = list(job.shots), job.config
        if not shots:
            raise ValueError("at least one labelled example is needed, got none")
        stacked = why_not_stacked(decoder) is None
        check_terms(decoder, config)
        if not stacked:
            config.refuse_ablation()
        if config.ablation != AS_IT_IS:
            _check_fits(decoder, config.ablation)
        if not stacked and config.lambda_sharp != 0:
            check_derivatives(decoder.lm, own_layers=config.terms == "formulas")
        schedule = config.schedule(job.max_steps)
        examples, steps = training_prompts(
            tokenizer, job.task, shots, decoder.max_tokens, schedule, job.demonstrations
        )
        decoder.check_attention(max(examples.lengths))
        shares_passes = stacked and config.terms == "formulas"
        return cls(job, examples, steps, shares_passes, _trained(decoder, config))

    @property
    def step(self) -> int:
        """The number of the next step."""
        return len(self.history)

    @property
    def config(self) -> OFAConfig:
        """The job's configuration, with the weights of its next step."""
        config = self.job.config
        if config.ablation.lambda_schedule == "constant":
            return config
        n_steps = config.schedule().n_steps(len(self.job.shots))
        left = (1 + math.cos(math.pi * self.step / n_steps)) / 2
        weights = {name: left * getattr(config, name) for name in ("lambda_step", "lambda_sharp")}
        return replace(config, **weights)

    @property
    def rows(self) -> list[int]:
        """The examples of the next step."""
        return self.steps[self.step][1]

    @property
    def n_tokens(self) -> int:
        """How many tokens the next step has."""
        return self._tokens(self.rows)

    @cached_property
    def most_tokens(self) -> int:
        """How many tokens its largest step has."""
        return max(self._tokens(rows) for _, rows, _ in self.steps)

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return self.steps[self.step][2]

    @property
    def finished(self) -> bool:
        """Whether all steps were taken."""
        return self.step == len(self.steps)

    def _tokens(self, rows: list[int]) -> int:
        lengths = self.examples.lengths
        return sum(lengths[i] for i in rows)

    def took(self, values: dict[str, float | None]) -> None:
        """Note the loss and its terms of a step that was taken."""
        epoch, _, lr = self.steps[self.step]
        self.history.append({"step": self.step, "epoch": epoch, "lr": lr, **values})

    def result(self) -> JobResult:
        """What the job, which has ended, ended with."""
        assert self.gammas is not None
        gammas = [gamma.clone() for gamma in self.gammas]
        return JobResult(gammas, self.history, self.error, self.examples.n_truncated, self.seconds)
