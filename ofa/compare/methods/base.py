"""What a method of the comparison is: fit on shots, score label words, leave the model as it was."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Protocol

from torch import nn
from transformers import PreTrainedTokenizerBase

from ofa.data.task import Task
from ofa.decoder.view import Decoder
from ofa.scoring import Scores, score

Track = Callable[[Iterable], Iterable]


@dataclass(frozen=True)
class Setting:
    """One cell of the comparison, before its method is chosen.

    Attributes:
        model: a causal language model of a supported family, unpatched.
        tokenizer: the model's.
        task: template and label words.
        shots: {"text", "label"} each; what there is to learn from.
        protocol: "A", prompts stand alone; "B", the shots precede every test prompt as demonstrations, and
            the other shots every training prompt (see `training_prompts`).
        seed: of everything random.
        max_steps: cap on optimiser steps; None for as many as the method takes.
        progress: show bars.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    task: Task
    shots: Sequence[dict]
    protocol: str = "A"
    seed: int = 0
    max_steps: int | None = None
    progress: bool = True

    @cached_property
    def decoder(self) -> Decoder:
        """The view of the model."""
        return Decoder.of(self.model)

    @property
    def demonstrations(self) -> Sequence[dict]:
        """What precedes a test prompt."""
        return self.shots if self.protocol == "B" else ()

    def scorer(self, model: nn.Module | None = None) -> Callable[[Sequence[str], Track], Scores]:
        """The plain way to score: label words at the last prompt token, after the demonstrations."""
        return partial(
            _score, model or self.model, self.tokenizer, self.task, demonstrations=self.demonstrations
        )


def _score(model, tokenizer, task, texts, track: Track = iter, demonstrations=()) -> Scores:
    return score(model, tokenizer, task, texts, demonstrations, track)


@dataclass(frozen=True)
class Fitted:
    """A method that is ready to score.

    Attributes:
        score: takes texts and a wrapper of the iteration over batches (for a bar), gives `Scores`.
        n_trainable: numbers that were trained.
        n_steps: optimiser steps that were taken.
        notes: what a table should say besides: a layer that was chosen, labels that were used for it.
        measure: takes the test texts, gives what a cell should hold besides its scores.
    """

    score: Callable[[Sequence[str], Track], Scores]
    n_trainable: int = 0
    n_steps: int = 0
    notes: dict = field(default_factory=dict)
    measure: Callable[[Sequence[str]], dict[str, float]] = lambda _: {}


class Method(Protocol):
    """A method of the comparison.

    A method whose settings can be chosen is a frozen dataclass of `name` and `options`, which is a frozen
    dataclass too: its numeric fields, but for those that a `Setting` decides, are what `ofa.compare.variants`
    lets a name like `lora:r=4` change.

    A method that needs more than the model has `missing()`, which says what can't be had here, or None.
    """

    @property
    def name(self) -> str:
        """The name on the command line and in tables."""
        ...

    def fit(self, setting: Setting) -> AbstractContextManager[Fitted]:
        """Fit on the setting's shots; on leaving, the model is what it was, bit for bit."""
        ...
