"""A linear probe: logistic regression on a layer's output at the last prompt token."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from torch import Tensor

from ofa.compare.methods.base import Fitted, Setting, Track
from ofa.compare.methods.regression import class_labels, log_probs, n_weights
from ofa.data.batch import pad
from ofa.data.inputs import as_texts
from ofa.data.task import Prompt, count_truncated
from ofa.passes.own_layers import token_states
from ofa.scoring import Scores, batches, shared_beginning
from ofa.state_classifier import state_classifier

FOLDS = 5


@torch.no_grad()
def states(setting: Setting, prompts: Sequence[Prompt], layers: slice, track: Track = iter) -> Tensor:
    """[layers, prompts, D] in float64, the outputs of some layers at the last tokens of prompts.

    Raises:
        FloatingPointError: one is NaN or infinite.
    """
    decoder, ids = setting.decoder, [prompt.ids for prompt in prompts]
    shared, seen = shared_beginning(decoder, ids)
    found, order = [], []
    for rows in track(batches([len(i) - shared for i in ids], shared)):
        batch = pad([ids[i][shared:] for i in rows], decoder.device)
        z = token_states(decoder, batch, record=False, prefix=seen).z[1:]
        found.append(z[layers].double().cpu())
        order += rows
    result = torch.cat(found, dim=1)[:, np.argsort(order)]
    if not torch.isfinite(result).all():
        raise FloatingPointError("the model's states are NaN or infinite; load it in float32 or bfloat16")
    return result


def rounds(labels: Sequence[int]) -> list[list[int]]:
    """Indices in rounds: the r-th round has the r-th example of each class that has so many."""
    n_seen: Counter[int] = Counter()
    found: list[list[int]] = []
    for i, label in enumerate(labels):
        if n_seen[label] == len(found):
            found.append([])
        found[n_seen[label]].append(i)
        n_seen[label] += 1
    return found


def choose_layer(z: Tensor, labels: Sequence[int], seed: int) -> tuple[int, int]:
    """The layer, counted from 0, whose probe has the lowest log-loss on shots that it has not seen.

    Args:
        z: [layers, shots, D].
        labels: of the shots.
        seed: of the folds: five, or as many as the rarest class has shots.

    Returns:
        (layer, how many labels it was chosen by). With one shot of a class there are no folds; then it is the
        layer at three quarters of the depth, by none.
    """
    n_folds = min(FOLDS, *Counter(labels).values())
    if n_folds == 1:
        return math.ceil(3 * len(z) / 4) - 1, 0
    folds = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
    losses = [
        log_loss(labels, cross_val_predict(state_classifier(), x, labels, cv=folds, method="predict_proba"))
        for x in z.numpy()
    ]
    return int(np.argmin(losses)), len(labels)


class LinearProbe:
    """Logistic regression on standardised states at the last prompt token (Alain and Bengio 2016).

    Cross-validation on the shots chooses the layer. The embedding's layer is no candidate: there the last
    token of the template is the same for all texts.

    In protocol B a test prompt's state follows all shots, so the probe learns from states that follow shots
    too. A shot can't precede itself, and one class must not be rarer before it than the others, or the probe
    would read the label off what is missing: the shots are read in rounds of one of each class, after the
    shots of all other rounds. With one shot of each class there is one round, which is read alone.
    """

    name = "linear-probe"

    @contextmanager
    def fit(self, setting: Setting) -> Iterator[Fitted]:
        """Choose the layer and fit its probe; the model is only read.

        Raises:
            ValueError: an unknown label, a class without a shot, or shots that don't fit the context.
            FloatingPointError: the model's states are NaN or infinite.
        """
        labels = class_labels(setting)
        z = _shot_states(setting, labels)
        layer, n_labels = choose_layer(z, labels, setting.seed)
        probe = state_classifier().fit(z[layer].numpy(), labels)

        def scored(texts: Sequence[str], track: Track = iter) -> Scores:
            prompts = _prompts(setting, as_texts(texts), setting.demonstrations)
            n_truncated = count_truncated(prompts)
            (x,) = states(setting, prompts, slice(layer, layer + 1), track)
            return Scores(log_probs(probe, x.numpy()), n_truncated)

        yield Fitted(scored, n_weights(probe[-1]), notes={"layer": layer, "labels_for_layer": n_labels})


def _prompts(setting: Setting, texts: Sequence[str], demonstrations: Sequence[dict]) -> list[Prompt]:
    task, limit = setting.task, setting.decoder.max_tokens
    before = task.demonstrations(demonstrations)
    return [task.encode(setting.tokenizer, text, limit, before) for text in texts]


def _shot_states(setting: Setting, labels: Sequence[int]) -> Tensor:
    """[layers, shots, D]; what precedes a shot in protocol B is said in `LinearProbe`."""
    shots, demonstrated = setting.shots, setting.demonstrations
    found, order = [], []
    for held_out in rounds(labels) if demonstrated else [range(len(shots))]:
        before = [shot for i, shot in enumerate(demonstrated) if i not in held_out]
        prompts = _prompts(setting, [shots[i]["text"] for i in held_out], before)
        found.append(states(setting, prompts, slice(None)))
        order += held_out
    return torch.cat(found, dim=1)[:, np.argsort(order)]
