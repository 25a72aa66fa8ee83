"""Task vectors: a layer's output after demonstrations replaces its output for a zero-shot prompt."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ofa.compare.methods.base import Fitted, Setting
from ofa.data.batch import pad
from ofa.passes.own_layers import ActivationPatch, token_states
from ofa.progress import progress_bar
from ofa.scoring import score

FOLDS = 5


@torch.no_grad()
def task_vectors(setting: Setting, demonstrations: Sequence[dict], query: str) -> Tensor:
    """[layers, D], the output of every layer at the last token of demonstrations and unlabelled query.

    Raises:
        ValueError: the demonstrations don't fit the context.
    """
    decoder, task = setting.decoder, setting.task
    before = task.demonstrations(demonstrations)
    prompt = task.encode(setting.tokenizer, query, decoder.max_tokens, before)
    batch = pad([prompt.ids], decoder.device)
    return token_states(decoder, batch, record=False).z[1:, 0]


def choose_layer(setting: Setting, shots: Sequence[dict], query: str) -> int:
    """The layer, counted from 0, whose vector does best on shots that it has not seen.

    In each of five folds the vectors come from the other folds. Most right predictions win, then the highest
    log-probability of the labels.
    """
    n_layers = len(setting.decoder.layers)
    n_right, log_prob = [0] * n_layers, [0.0] * n_layers
    with progress_bar(setting.progress) as bar:
        line = bar.add_task("choosing a layer", total=min(FOLDS, len(shots)), info="")
        for fold in range(min(FOLDS, len(shots))):
            held_out = shots[fold::FOLDS]
            texts, labels = [s["text"] for s in held_out], torch.tensor([s["label"] for s in held_out])
            shown = [shot for i, shot in enumerate(shots) if i % FOLDS != fold]
            for layer, vector in enumerate(task_vectors(setting, shown, query)):
                scores = _score(setting, texts, patch=ActivationPatch(layer, vector))
                n_right[layer] += int((scores.predictions == labels).sum())
                log_prob[layer] += scores.log_probs.gather(1, labels[:, None]).sum().item()
            bar.advance(line)
    return max(range(n_layers), key=lambda layer: (n_right[layer], log_prob[layer]))


def _score(setting: Setting, texts: Sequence[str], *context, **options):
    return score(setting.model, setting.tokenizer, setting.task, texts, *context, **options)


class TaskVector:
    """The demonstrations' effect as one vector, put in place of a layer's output at the last prompt token.

    Hendel et al. 2023, "In-Context Learning Creates Task Vectors". One shot, drawn by the seed, is the
    unlabelled query of the vector; the others are its demonstrations and, fold by fold, choose the layer.
    """

    name = "task-vector"

    @contextmanager
    def fit(self, setting: Setting) -> Iterator[Fitted]:
        """Choose the layer and compute its vector; nothing is trained.

        Raises:
            ValueError: fewer than three shots, an unknown label, or shots that don't fit the context.
        """
        shots = list(setting.shots)
        if len(shots) < 3:
            raise ValueError(
                f"a task vector needs at least three labelled examples (a query, one to show and one to hold "
                f"out), got {len(shots)}"
            )
        setting.task.check_labels(shots)
        query = shots.pop(random.Random(setting.seed).randrange(len(shots)))["text"]
        layer = choose_layer(setting, shots, query)
        patch = ActivationPatch(layer, task_vectors(setting, shots, query)[layer])

        def scored(texts, track=iter):
            return _score(setting, texts, setting.demonstrations, track, patch=patch)

        yield Fitted(scored, notes={"layer": layer, "labels_for_layer": len(shots)})
