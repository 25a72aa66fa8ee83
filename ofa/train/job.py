"""A training job of `fit_many`, and what comes of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ofa.config import OFAConfig, check_count
from ofa.data.task import Task


@dataclass(frozen=True)
class Job:
    """What `fit` would be told.

    Attributes:
        task: template and label words.
        shots: {"text": str, "label": class number} each; their positions are the probes' example ids.
        config: objective, optimiser and schedule; `cuda_graph` plays no part.
        max_steps: stop after so many steps; the learning rate follows the schedule of the whole run.
        demonstrations: before each shot's prompt stand the other shots with their label words, in an order
            that `config.seed` shuffles anew each epoch: to train for prompts behind demonstrations. `fit` has
            no such option. The example id of shot i of n in epoch e is then e · n + i.

    Raises:
        TypeError: the task or the config is something else.
        ValueError: `max_steps` is no integer of at least 1.
    """

    task: Task
    shots: Sequence[dict]
    config: OFAConfig = field(default_factory=OFAConfig)
    max_steps: int | None = None
    demonstrations: bool = False

    def __post_init__(self):
        for name, wanted in (("task", Task), ("config", OFAConfig)):
            if not isinstance(getattr(self, name), wanted):
                got = type(getattr(self, name)).__name__
                raise TypeError(f"a job's {name} must be an ofa.{wanted.__name__}, got {got}")
        if self.max_steps is not None:
            check_count("max_steps", self.max_steps)


@dataclass(frozen=True)
class JobResult:
    """What a job ended with.

    Attributes:
        gammas: on the CPU, in the order of `patch_model(model).norms`; after an error those from before the
            last good step, as `fit` leaves them.
        history: as `FitResult.history`.
        error: what ended the job early: a `NonFiniteError`, or a ValueError of one of its steps; or None.
        n_truncated: examples that were cut to fit the context.
        seconds: the job's share, by its tokens, of the wall-clock time of the training loop.
    """

    gammas: list[Tensor]
    history: list[dict]
    error: Exception | None
    n_truncated: int
    seconds: float
