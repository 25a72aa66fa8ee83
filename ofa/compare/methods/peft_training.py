"""What the baselines of PEFT share: a frozen model, cross-entropy on the shots, adapters that come off."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from peft import PeftConfig, get_peft_model
from torch import nn

from ofa.compare.methods.base import Fitted, Setting
from ofa.config import VOCABULARY, Schedule, check_loss_over
from ofa.data.leave_one_out import training_prompts
from ofa.data.words import cross_entropy
from ofa.loss.objective import Objective, told_from
from ofa.passes.own_layers import token_states
from ofa.train import memory
from ofa.train.loop import train
from ofa.train.step import Uncaptured


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """PEFT initialises from the global generator of the CPU: seed it, and put it back on leaving."""
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would reseed the GPUs too
        torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter of the model trains inside; on leaving, each has its flag back."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


@dataclass(frozen=True)
class TrainingOptions(Schedule):
    """How to train, with what the cross-entropy is over, as in `OFAConfig`.

    Raises:
        ValueError: `loss_over` is neither "vocabulary" nor "labels", or as `Schedule`.
    """

    loss_over: str = VOCABULARY

    def __post_init__(self):
        super().__post_init__()
        check_loss_over(self.loss_over)


def train_on_shots(setting: Setting, weights: Sequence[nn.Parameter], options: TrainingOptions) -> int:
    """Minimise the shots' cross-entropy, on the words' tokens that the task scores.

    A batch that `memory.tokens_at_once` does not allow is run in parts, with the same gradient.

    Args:
        setting: its model already computes with the weights; its seed and `max_steps` replace the ones in
            the options, and its protocol says whether the other shots precede a prompt.
        weights: what is trained, in place.
        options: optimiser, epochs, and what the loss is over.

    Returns:
        Steps taken.

    Raises:
        ValueError: no shots, an unknown label, an empty text, colliding label words, demonstrations that
            leave no room for a text, or an unsupported model.
        NonFiniteError: the loss or the gradient is NaN or infinite.
    """
    decoder, shots = setting.decoder, setting.shots
    if not shots:
        raise ValueError("training needs at least one labelled example, got none")
    schedule = replace(options, seed=setting.seed, max_steps=setting.max_steps)
    examples, steps = training_prompts(
        setting.tokenizer, setting.task, shots, decoder.max_tokens, schedule, bool(setting.demonstrations)
    )

    def passes(_: int, rows: list[int]) -> Iterator[tuple[float, Objective]]:
        lengths = [examples.lengths[i] for i in rows]
        for part in memory.parts(rows, lengths, memory.tokens_at_once(decoder)):
            batch = examples.batch(part, decoder.device)
            states = token_states(decoder, batch, record=False)
            classes = told_from(batch, options.loss_over)
            loss = cross_entropy(states.logits, states.following, batch["labels"], classes)
            yield len(part) / len(rows), Objective(loss, loss)

    lm, was_training = decoder.lm, decoder.lm.training
    lm.eval()
    try:
        step = Uncaptured(weights, passes, schedule.weight_decay)
        return len(train(step, steps, setting.progress).history)
    finally:
        lm.train(was_training)


@contextmanager
def adapter(setting: Setting, config: PeftConfig) -> Iterator[list[nn.Parameter]]:
    """An untrained adapter that PEFT puts into the model's linear layers, and takes off on leaving.

    Args:
        setting: the model, and the seed of the adapter's weights.
        config: of the adapter; PEFT holds an adapter's weights in float32 also in a 16-bit model.

    Yields:
        The adapter's weights, which alone train.

    Raises:
        ValueError: an unsupported model.
    """
    setting.decoder  # noqa: B018 - refuses another family while nothing is changed
    with frozen(setting.model):
        with seeded(setting.seed), warnings.catch_warnings():
            # PEFT asks transformers for an attribute by its old name
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            adapted = get_peft_model(setting.model, config)
        try:
            yield [parameter for parameter in adapted.parameters() if parameter.requires_grad]
        finally:
            adapted.unload()


def fitted(setting: Setting, weights: Sequence[nn.Parameter], options: TrainingOptions) -> Fitted:
    """Train weights that the model computes with, as `train_on_shots`; then it is ready to score."""
    n_steps = train_on_shots(setting, weights, options)
    return Fitted(setting.scorer(), sum(weight.numel() for weight in weights), n_steps)


@contextmanager
def fit_adapter(setting: Setting, config: PeftConfig, options: TrainingOptions) -> Iterator[Fitted]:
    """Train an adapter of PEFT; on leaving it is gone.

    Args:
        setting: model and shots.
        config: of the adapter.
        options: how to train.

    Raises:
        ValueError, NonFiniteError: as `train_on_shots`.
    """
    with adapter(setting, config) as weights:
        yield fitted(setting, weights, options)
