"""A few-shot text classifier: model, template, label words and adapter in one."""

import os
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import torch
from rich.progress import Progress
from torch import nn
from transformers import PreTrainedTokenizerBase

from ofa import models
from ofa.adapter import OFA_CONFIG, load_adapter, read_config, save_adapter
from ofa.fewshot.tasks import Task
from ofa.objective import OFAConfig
from ofa.scoring import Scores, score
from ofa.trainer import fit
from ofa.training import FitResult, progress_bar


class FewShotClassifier:
    r"""Classify texts with a language model adapted on a few labelled ones.

    Args:
        model: a name, folder or hub id for `ofa.models.load`, or a loaded model (then give its tokenizer).
        label_words: one word per class; their first tokens must differ.
        template: holds `{text}` once, for example `"Review: {text}\nSentiment:"`.
        config: how to adapt.
        tokenizer: of a model given as an object.
        dtype: for `ofa.models.load`; None is the fastest type of this machine.
        progress: show progress bars.

    Attributes:
        task: template and label words.
        classes_: what `predict` returns: the label words, or 0, 1, … if `fit` was given numbers.
        result_: the `FitResult` of the last `fit`.

    Raises:
        ValueError: the template has no `{text}`, or label words collide.
        SourceError: the model can't be reached.
    """

    def __init__(
        self,
        model: str | nn.Module = models.SMOLLM2,
        label_words: Sequence[str] = ("negative", "positive"),
        template: str = "Text: {text}\nSentiment:",
        config: OFAConfig | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        dtype: torch.dtype | None = None,
        progress: bool = True,
    ):
        self.task = Task("few-shot", template, label_words)
        if isinstance(model, str):
            self.model, self.tokenizer = models.load(model, dtype)
        elif tokenizer is None or dtype is not None:
            raise ValueError("a model given as an object needs its tokenizer, and keeps its own dtype")
        else:
            self.model, self.tokenizer = model, tokenizer
        self.task.label_ids(self.tokenizer)
        self.config = config or OFAConfig()
        self.progress = progress
        self.classes_: Sequence = self.task.label_words
        self.result_: FitResult | None = None

    def fit(
        self,
        texts: Sequence[str],
        labels: Sequence[int | str],
        checkpoint: str | os.PathLike | None = None,
    ) -> "FewShotClassifier":
        """Adapt the model's γ to texts and their labels (label words or class numbers); returns itself.

        A second call goes on from the γ of the first. With a checkpoint, a run that was stopped goes on where
        it was; see `ofa.fit`.

        Raises:
            ValueError: lengths differ, a label is unknown, or a text is empty.
            NonFiniteError: the loss became NaN or infinite.
        """
        if len(texts) != len(labels):
            raise ValueError(
                f"texts and labels must have the same length, got {len(texts)} and {len(labels)}"
            )
        by_word = all(isinstance(label, str) for label in labels)
        classes = self.task.label_words if by_word else tuple(range(len(self.task.label_words)))
        unknown = [label for label in labels if label not in classes]
        if unknown:
            raise ValueError(f"unknown label {unknown[0]!r}; known are {', '.join(map(repr, classes))}")
        shots = [{"text": t, "label": classes.index(y)} for t, y in zip(texts, labels, strict=True)]
        self.result_ = fit(
            self.model, self.tokenizer, self.task, shots, self.config, self.progress, checkpoint=checkpoint
        )
        self.classes_ = classes
        return self

    def score(self, texts: Sequence[str], shots: Sequence[dict] = (), name: str = "scoring") -> Scores:
        """Label-word scores, optionally with demonstrations in context; see `ofa.scoring.score`."""
        with progress_bar(self.progress) as bar:
            return score(self.model, self.tokenizer, self.task, texts, shots, tracker(bar, name))

    def predict_proba(self, texts: Sequence[str]) -> np.ndarray:
        """[texts, classes] probabilities over the label words, in the order of `classes_`."""
        return self.score(texts).log_probs.exp().numpy()

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        """[texts] entries of `classes_`."""
        return np.asarray(self.classes_)[self.score(texts).predictions.numpy()]

    def save(self, path: str | os.PathLike) -> None:
        """Write an adapter that `ofa.load(path)` makes this classifier of again."""
        metadata = {
            "task": asdict(self.task),
            "config": asdict(self.config),
            "labels": "words" if self.classes_ == self.task.label_words else "numbers",
        }
        save_adapter(self.model, path, metadata)


def load(path: str | os.PathLike, model: str | None = None, progress: bool = True) -> FewShotClassifier:
    """The classifier of an adapter folder: its model, γ, template and label words.

    Args:
        path: what `FewShotClassifier.save` or `ofa adapt` wrote.
        model: another place of the base model than the recorded one.
        progress: show progress bars.

    Raises:
        FileNotFoundError: no such adapter.
        ValueError: the adapter has no task (use `load_adapter`), is damaged or doesn't fit the model.
        SourceError: the model can't be reached.
    """
    record = read_config(path)
    if "task" not in record:
        raise ValueError(
            f"{path} holds γ but no template and label words, as ofa.save_adapter writes it; give a folder "
            "of ofa adapt or FewShotClassifier.save, or use ofa.load_adapter(model, path)"
        )
    try:
        task, recorded, config = record["task"], record["model"], OFAConfig(**record["config"])
        words, template, labels = task["label_words"], task["template"], record["labels"]
        name, dtype = model or recorded["name"], getattr(torch, recorded["dtype"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {OFA_CONFIG} is damaged: {error!r}") from None
    if not name:
        raise ValueError(
            f"{path} was made of a model without a name; say where it is: ofa.load(path, model=…)"
        )
    classifier = FewShotClassifier(name, words, template, config, dtype=dtype, progress=progress)
    load_adapter(classifier.model, path)
    if labels == "numbers":
        classifier.classes_ = tuple(range(len(classifier.task.label_words)))
    return classifier


def tracker(bar: Progress, name: str):
    """A wrapper of an iteration over batches that advances a line of the bar."""

    def track(batches):
        line = bar.add_task(name, total=len(batches), info="")
        for batch in batches:
            yield batch
            bar.advance(line)

    return track
