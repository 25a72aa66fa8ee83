"""How to adapt: the weights of the loss's terms, the probes, and how to descend."""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TypeAlias

from ofa.ablation import AS_IT_IS, Ablation

DEFAULT_MODEL = "smollm2-135m-instruct"
WARMUP_SHARE = 0.05
FORMS = ("formulas", "paper_code")  # of the terms
VOCABULARY, LABELS = "vocabulary", "labels"  # what a cross-entropy may be over

# (epoch, indices of the examples, learning rate) of every step of a run
Steps: TypeAlias = list[tuple[int, list[int], float]]


def check_loss_over(loss_over: str) -> None:
    """Raise ValueError unless it is something that the cross-entropy may be over."""
    if loss_over not in (VOCABULARY, LABELS):
        raise ValueError(f"loss_over must be one of {(VOCABULARY, LABELS)}, got {loss_over!r}")


def check_count(name: str, value: int) -> None:
    """Raise ValueError unless the value is an integer of at least 1."""
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value}")


@dataclass(frozen=True)
class Schedule:
    """How to descend.

    Attributes:
        lr: AdamW's peak learning rate; 5 % linear warm-up, then a cosine to 0.
        weight_decay: AdamW's weight decay.
        epochs: passes over the examples.
        batch_size: examples a step; None for all of them.
        seed: of the examples' order.
        max_steps: stop after so many steps; the learning rate follows the schedule of the whole run.
        cosine_from_start: the cosine counts the warm-up too, as the OFA authors' code has it.

    Raises:
        ValueError: `epochs` or `batch_size` is no integer of at least 1, `lr` is not positive, `weight_decay`
            is negative, or one of these two is not finite.
    """

    lr: float
    weight_decay: float
    epochs: int
    batch_size: int | None
    seed: int = 0
    max_steps: int | None = None
    cosine_from_start: bool = False

    def __post_init__(self):
        check_count("epochs", self.epochs)
        if self.batch_size is not None:
            check_count("batch_size", self.batch_size)
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be positive and finite, got {self.lr}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be finite and not negative, got {self.weight_decay}")

    def batches(self, n_examples: int) -> Iterator[tuple[int, list[int]]]:
        """(epoch, indices) of every step, freshly shuffled each epoch."""
        generator, size = random.Random(self.seed), self.batch_size or n_examples
        for epoch in range(self.epochs):
            order = list(range(n_examples))
            generator.shuffle(order)
            for start in range(0, n_examples, size):
                yield epoch, order[start : start + size]

    def n_steps(self, n_examples: int) -> int:
        """Steps of the whole run, whatever `max_steps`."""
        return self.epochs * math.ceil(n_examples / (self.batch_size or n_examples))

    def factor(self, n_examples: int) -> Callable[[int], float]:
        """The learning rate of a step, as a share of `lr`."""
        n_steps = self.n_steps(n_examples)
        warmup = int(WARMUP_SHARE * n_steps)
        skipped = 0 if self.cosine_from_start else warmup

        def at(step: int) -> float:
            if step < warmup:
                return step / warmup
            return (1 + math.cos(math.pi * (step - skipped) / max(1, n_steps - skipped))) / 2

        return at

    def steps(self, n_examples: int) -> Steps:
        """Every step up to `max_steps`."""
        factor = self.factor(n_examples)
        taken = enumerate(islice(self.batches(n_examples), self.max_steps))
        return [(epoch, rows, self.lr * factor(step)) for step, (epoch, rows) in taken]


@dataclass(frozen=True)
class OFAConfig:
    """How to adapt; both weights 0 is plain LN-tuning, which does none of the extra work.

    Attributes:
        lambda_step: λ_J, weight of the step ratio J.
        lambda_sharp: λ_H, weight of the sharpness H (mean over examples and layers 1 to T-1).
        n_probes: Hutchinson probes a layer and example.
        sharpness_every: compute H every k-th step only, weighted k times.
        lr: AdamW's peak learning rate; 5 % linear warm-up, then a cosine to 0.
        weight_decay: AdamW's weight decay.
        epochs: passes over the shots.
        batch_size: examples a step; None for all shots.
        seed: of the order of the shots and of the probes.
        terms: `"formulas"` for the terms of the paper, `"paper_code"` for what the authors' public code
            computes (see `paper_code`).
        cuda_graph: whether `ofa.fit` captures its steps in CUDA graphs: None where they can be, True also
            or an error says why not, False never. It changes a run's speed, and its numbers by rounding only.
        ablation: other readings of the objective, which `ofa.fit_many` can train with.
        loss_over: what the cross-entropy is over: the `"vocabulary"`, or the `"labels"`: the tokens of the
            label words alone, which are what is scored. Where a word has several tokens, it is over the
            vocabulary in any case, as the scores of whole words are.
        trained_depth: the share of the layers, counted from the last, whose norms are trained; at least one
            layer. The final norm always is.
    """

    lambda_step: float = 1e-2
    lambda_sharp: float = 1e-3
    n_probes: int = 1
    sharpness_every: int = 1
    lr: float = 1e-3
    weight_decay: float = 1e-3
    epochs: int = 30
    batch_size: int | None = 5
    seed: int = 0
    terms: str = "formulas"
    cuda_graph: bool | None = None
    ablation: Ablation = AS_IT_IS
    loss_over: str = VOCABULARY
    trained_depth: float = 1.0

    @classmethod
    def paper_code(cls, seed: int = 0) -> "OFAConfig":
        """The authors' public research code: their terms, weights and schedule, one example a step.

        Use it in float32, as they do. It does not compute the paper's formulas; `ofa.loss.paper_code` says
        where it differs.
        """
        return cls(epochs=60, batch_size=1, seed=seed, terms="paper_code")

    def schedule(self, max_steps: int | None = None) -> Schedule:
        """Optimiser and order of the shots, cut after `max_steps`."""
        as_published = self.terms == "paper_code"
        settings = self.lr, self.weight_decay, self.epochs, self.batch_size, self.seed
        return Schedule(*settings, max_steps=max_steps, cosine_from_start=as_published)

    def settings(self) -> dict:
        """The fields that a run's numbers depend on: not `cuda_graph`, and `ablation` where there is one."""
        left_out = {"cuda_graph", *({"ablation"} if self.ablation == AS_IT_IS else ())}
        return {name: value for name, value in asdict(self).items() if name not in left_out}

    def refuse_ablation(self) -> None:
        """Raise ValueError if the objective is to be read otherwise than the method has it."""
        if self.ablation != AS_IT_IS:
            raise ValueError(
                "only ofa.fit_many trains with an ablation, and of it models that have a stacked form with "
                f"terms='formulas'; got {self.ablation}"
            )

    def __post_init__(self):
        if not (self.cuda_graph is None or isinstance(self.cuda_graph, bool)):
            raise ValueError(f"cuda_graph must be None, True or False, got {self.cuda_graph!r}")
        if self.terms not in FORMS:
            raise ValueError(f"terms must be one of {FORMS}, got {self.terms!r}")
        if not isinstance(self.ablation, Ablation):
            raise ValueError(f"ablation must be an ofa.ablation.Ablation, got {self.ablation!r}")
        check_loss_over(self.loss_over)
        if not 0 < self.trained_depth <= 1:
            raise ValueError(f"trained_depth must be above 0 and at most 1, got {self.trained_depth}")
        if self.terms == "paper_code":
            self.refuse_ablation()
            if self.loss_over != VOCABULARY:
                raise ValueError(
                    f"the loss of the authors' code is over the vocabulary, got {self.loss_over!r}"
                )
        for name in ("n_probes", "sharpness_every"):
            check_count(name, getattr(self, name))
            if self.terms == "paper_code" and getattr(self, name) != 1:
                raise ValueError(
                    f"the authors' code has one probe at every step, so {name} must be 1 with "
                    f"terms='paper_code', got {getattr(self, name)}"
                )
        for name in ("lambda_step", "lambda_sharp"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be finite, got {getattr(self, name)}")
        self.schedule()  # which refuses what can't be trained with


LN_TUNING, OFA = "ln-tuning", "ofa"
# the settings that each method of adapting has unless it is told otherwise
METHODS = {LN_TUNING: OFAConfig(lambda_step=0, lambda_sharp=0), OFA: OFAConfig()}
DEFAULT_METHOD = OFA
