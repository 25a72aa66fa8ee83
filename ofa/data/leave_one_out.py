"""Training prompts that look like test prompts: each shot after the other shots."""

import random
from collections.abc import Sequence
from itertools import chain
from typing import cast

from transformers import PreTrainedTokenizerBase

from ofa.config import Schedule, Steps
from ofa.data.batch import Encoded, encoded
from ofa.data.inputs import as_texts
from ofa.data.task import Task
from ofa_kernels import mix


def order_of(n_shots: int, seed: int, epoch: int) -> list[int]:
    """The order of the shots as demonstrations in an epoch, which seed and epoch alone decide."""
    order = list(range(n_shots))
    random.Random(cast(int, mix(seed, epoch))).shuffle(order)
    return order


def leave_one_out(task: Task, shots: Sequence[dict], seed: int, epoch: int) -> list[str]:
    """What precedes the prompt of each shot in an epoch: all other shots, in the order of the epoch."""
    order = order_of(len(shots), seed, epoch)
    return [task.demonstrations([shots[j] for j in order if j != i]) for i in range(len(shots))]


def training_prompts(
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    shots: Sequence[dict],
    max_tokens: int,
    schedule: Schedule,
    demonstrations: bool,
) -> tuple[Encoded, Steps]:
    """What is trained on, and in which order.

    Args:
        tokenizer: the model's.
        task: template and label words.
        shots: {"text", "label"} each, one at least.
        max_tokens: the context's length; longer texts lose their beginning, with a warning.
        schedule: its seed shuffles the demonstrations too.
        demonstrations: the other shots precede each prompt, as all shots precede a prompt that is tested. The
            prompt of shot i in epoch e is then the example e * len(shots) + i.

    Returns:
        The examples, and the steps over them. Where a text was cut in some epochs only, `n_truncated` is that
        of the epoch in which the most were.

    Raises:
        TypeError: a text is no string.
        ValueError: an unknown label, an empty text, colliding label words, or demonstrations that leave no
            room for a text.
    """
    steps = schedule.steps(len(shots))
    if not demonstrations:
        return encoded(tokenizer, task, shots, max_tokens), steps
    task.check_labels(shots)
    as_texts(shot["text"] for shot in shots)
    n_epochs = 1 + max((epoch for epoch, _, _ in steps), default=0)
    before = (leave_one_out(task, shots, schedule.seed, epoch) for epoch in range(n_epochs))
    by_epoch = [encoded(tokenizer, task, shots, max_tokens, texts) for texts in before]
    examples = Encoded(
        list(chain.from_iterable(examples.prompts for examples in by_epoch)),
        list(chain.from_iterable(examples.words for examples in by_epoch)),
        max(examples.n_truncated for examples in by_epoch),
        by_epoch[0].classes,
    )
    return examples, [(epoch, [epoch * len(shots) + i for i in rows], lr) for epoch, rows, lr in steps]
