"""A few-shot text classifier of scikit-learn's kind: model, template, label words and adapter in one."""

import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import NotFittedError
from sklearn.metrics import accuracy_score
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ofa import models
from ofa.config import DEFAULT_METHOD, METHODS, OFAConfig, check_count
from ofa.data.inputs import as_labels, as_texts
from ofa.data.labels import Classes
from ofa.data.languages import warn_of_unknown_language
from ofa.data.task import Task
from ofa.decoder.patch import patch_model, set_gammas
from ofa.members import COMBINATIONS, GAMMA, PROBABILITIES, mean_scores, train_members
from ofa.progress import progress_bar, tracker
from ofa.save.adapter import OFA_CONFIG, load_adapter, read_config, save_adapter
from ofa.save.task_record import recorded_task, task_record
from ofa.scoring import Scores, score
from ofa.selection import cross_validated
from ofa.train.fit import fit
from ofa.train.job import Job


class FewShotClassifier(ClassifierMixin, BaseEstimator):
    r"""Classify texts with a language model adapted on a few labelled ones.

    scikit-learn's `clone`, `Pipeline`, `cross_val_score`, `GridSearchCV` and the like take it. Every `fit`
    starts from the base model, and classifiers of one model object, such as clones, don't disturb each other:
    each keeps the γ that it learnt, and puts it into the model before the model is used.

    Args:
        model: a name, folder or hub id for `ofa.models.load`, or a loaded model (then give its tokenizer).
        label_words: how the model says each class. None: the labels of `fit` as strings. A mapping from
            labels to words. A list of words: the labels of `fit` are these words; or class numbers, 0 for the
            first word; or else the list holds a word for each label in their sorted order.
        template: holds `{text}` once, for example `"Review: {text}\nSentiment:"`.
        config: how to adapt; None: as the default method of `ofa adapt` does.
        tokenizer: of a model given as an object.
        dtype: for `ofa.models.load`; None is the fastest type of this machine.
        progress: show progress bars.
        whole_words: train on and score all tokens of the label words; False: their first alone. None: all
            where the first can't tell the words apart, with a warning.
        warm_start: a second `fit` goes on from the γ of the first, with every member. A cross-validation
            starts from the base model all the same, since that γ may have seen what it holds out.
        select: None, or `"cv"` to choose learning rate and λ by cross-validation on the shots alone, among
            `ofa.selection.candidates(config)`, before they are trained on.
        n_members: trainings, which differ in their seed (`config.seed` + 0, 1, …) and run together.
        combine: `"gamma"`: the mean of the members' γ is one adapter like any other. `"probabilities"`: the
            mean of their probabilities, at the cost of as many predictions.

    Attributes:
        classes_: the labels, sorted; the columns of `predict_proba`.
        task_: template and label words, in the order of `classes_`.
        gamma_: the adapted γ, a tensor a norm, on the CPU; the mean of the members'.
        members_: the γ of each member.
        selected_: the settings that were trained with; after `select="cv"` those that it chose.
        selection_: with `select="cv"` a dict a candidate with its settings, `log_loss` and `accuracy` on
            held-out shots and their standard errors (`log_loss_stderr`, …); else empty.
        model_: the loaded model with this γ in it; before `fit`, with the γ of the base model.
        tokenizer_: the model's.
        result_: the `FitResult` of the last `fit`, its numbers the members' means; an adapter that was
            loaded has none.
    """

    # the model that a name stands for, once it is loaded; shared by clones
    _memory: dict[tuple[str, torch.dtype | None], tuple[nn.Module, PreTrainedTokenizerBase]]

    def __init__(
        self,
        model: str | nn.Module = models.SMOLLM2,
        label_words: Sequence[str] | Mapping[Hashable, str] | None = None,
        template: str = "Text: {text}\nSentiment:",
        config: OFAConfig | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        dtype: torch.dtype | None = None,
        progress: bool = True,
        whole_words: bool | None = None,
        warm_start: bool = False,
        select: str | None = None,
        n_members: int = 1,
        combine: str = GAMMA,
    ):
        self.model = model
        self.label_words = label_words
        self.template = template
        self.config = config
        self.tokenizer = tokenizer
        self.dtype = dtype
        self.progress = progress
        self.whole_words = whole_words
        self.warm_start = warm_start
        self.select = select
        self.n_members = n_members
        self.combine = combine

    def fit(
        self, X: Iterable[str], y: Iterable[Hashable], checkpoint: str | os.PathLike | None = None
    ) -> "FewShotClassifier":
        """Adapt the model's γ to texts and their labels; returns itself.

        Args:
            X: texts: a list, tuple, generator, array or column of a table.
            y: a label each, of any type that can be hashed; see `label_words`.
            checkpoint: where the run is kept; one that was stopped goes on where it was, see `ofa.fit`. A
                cross-validation is kept beside it, in a file of the same name that ends in
                `.selection.safetensors`.

        Raises:
            TypeError: a single string instead of a list, or a text that is no string.
            ValueError: lengths differ, a label is missing or unknown, a text is empty, the template has no
                `{text}`, label words collide, a class has too few shots for `select`, or `select`,
                `n_members` or `combine` is none of what there is.
            SourceError: the model can't be reached.
            NonFiniteError: the loss became NaN or infinite.
        """
        self._check_settings()
        texts, labels = as_texts(X), as_labels(y)
        if len(texts) != len(labels):
            raise ValueError(
                f"texts and labels must have the same length, got {len(texts)} and {len(labels)}"
            )
        if not texts:
            raise ValueError("fit needs at least one labelled example, got none")
        classes = Classes.of(labels, self.label_words)
        task = self._task(classes.words)
        shots = [{"text": t, "label": n} for t, n in zip(texts, classes.numbers(labels), strict=True)]
        model, tokenizer = self._loaded()
        warn_of_unknown_language(tokenizer, texts)
        job, rows = Job(task, shots, self.config or METHODS[DEFAULT_METHOD]), []
        if self.select is not None:
            place = None if checkpoint is None else Path(checkpoint).with_suffix(".selection.safetensors")
            set_gammas(model)
            chosen = cross_validated(model, tokenizer, job, self.progress, place)
            job, rows = replace(job, config=chosen.config), chosen.rows
        set_gammas(model, getattr(self, "gamma_", None) if self.warm_start else None)
        if self.n_members == 1:
            result = fit(model, tokenizer, task, shots, job.config, self.progress, checkpoint=checkpoint)
            self._keep(task, classes)
        else:
            members = train_members(model, tokenizer, job, self.n_members, self.progress, checkpoint)
            set_gammas(model, members.mean_gamma)
            result = members.result
            self._keep(task, classes, members.gammas)
        self.result_, self.selected_, self.selection_ = result, job.config, rows
        return self

    def label_scores(self, texts: Iterable[str], shots: Sequence[dict] = (), name: str = "scoring") -> Scores:
        """Label-word scores, optionally with demonstrations in context; see `ofa.scoring.score`.

        Before `fit` the base model gives them, for the words of `label_words` in the order given.

        Raises:
            NotFittedError: neither fitted nor given label words.
            TypeError: a single string instead of a list, or a text that is no string.
        """
        texts = as_texts(texts)
        if hasattr(self, "task_"):
            task = self.task_
        elif self.label_words is None:
            raise NotFittedError("the label words are not known yet: call fit, or give label_words")
        else:
            words = self.label_words
            if isinstance(words, Mapping):
                words = Classes.of((), words).words
            task = self._task(words)
        (model, tokenizer), scores = self._loaded(), []
        with progress_bar(self.progress) as bar:
            for gamma in self._gammas():
                set_gammas(model, gamma)
                scores.append(score(model, tokenizer, task, texts, shots, tracker(bar, name)))
        return mean_scores(scores)

    def predict_proba(self, X: Iterable[str]) -> np.ndarray:
        """[texts, classes] probabilities over the label words, in the order of `classes_`.

        Raises:
            NotFittedError: there was no `fit`.
            TypeError: a single string instead of a list, or a text that is no string.
        """
        check_is_fitted(self)
        return self.label_scores(X).log_probs.exp().numpy()

    def predict(self, X: Iterable[str]) -> np.ndarray:
        """[texts] entries of `classes_`; raises as `predict_proba`."""
        check_is_fitted(self)
        return self.classes_[self.label_scores(X).predictions.numpy()]

    def score(
        self, X: Iterable[str], y: Iterable[Hashable], sample_weight: Sequence[float] | None = None
    ) -> float:
        """The share of texts whose label is predicted, weighted if asked; raises as `predict_proba`."""
        check_is_fitted(self)
        classes = Classes(tuple(self.classes_.tolist()), tuple(self.task_.label_words))
        truth = classes.numbers(as_labels(y))
        found = self.label_scores(X).predictions.numpy()
        return accuracy_score(truth, found, sample_weight=sample_weight)

    def save(self, path: str | os.PathLike) -> None:
        """Write an adapter that `ofa.load(path)` makes this classifier of again.

        Raises:
            NotFittedError: there was no `fit`.
            ValueError: JSON can't hold the labels, or probabilities of several members are combined.
        """
        check_is_fitted(self)
        if self.combine == PROBABILITIES and len(self.members_) > 1:
            raise ValueError(
                f"an adapter holds one γ, and this classifier predicts with {len(self.members_)}; "
                "set_params(combine='gamma') saves their mean, which is not quite the same classifier"
            )
        metadata = task_record(self.task_, self.classes_.tolist())
        metadata["config"] = self.selected_.settings()
        save_adapter(self.model_, path, metadata)

    @property
    def model_(self) -> nn.Module:
        """The loaded model, with this classifier's γ in it; before `fit`, with the γ of the base model."""
        model, _ = self._loaded()
        set_gammas(model, getattr(self, "gamma_", None))
        return model

    @property
    def tokenizer_(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return self._loaded()[1]

    def _loaded(self) -> tuple[nn.Module, PreTrainedTokenizerBase]:
        if not isinstance(self.model, str):
            if self.tokenizer is None or self.dtype is not None:
                raise ValueError("a model given as an object needs its tokenizer, and keeps its own dtype")
            return self.model, self.tokenizer
        memory, key = self.__dict__.setdefault("_memory", {}), (self.model, self.dtype)
        if key not in memory:
            memory.clear()
            memory[key] = models.load(*key)
        return memory[key]

    def _task(self, words: Sequence[str]) -> Task:
        """The task with these label words; scored whole if first tokens collide and `whole_words` is None."""
        task = Task("few-shot", self.template, words, bool(self.whole_words))
        if self.whole_words is None:
            task = task.told_apart(self.tokenizer_)
        return task

    def _keep(self, task: Task, classes: Classes, members: list[list[Tensor]] | None = None) -> None:
        """Be fitted: with the model's present γ, which is that of the members, or of the only one."""
        norms = patch_model(self._loaded()[0]).norms
        self.gamma_ = [norm.module.weight.detach().to("cpu", copy=True) for norm in norms]
        self.members_ = members or [self.gamma_]
        self.task_, self.classes_ = task, classes.array()

    def _gammas(self) -> Sequence[list[Tensor] | None]:
        """What predicts: one γ, or that of each member; None is the base model's."""
        if not hasattr(self, "gamma_"):
            return [None]
        return self.members_ if self.combine == PROBABILITIES else [self.gamma_]

    def _check_settings(self) -> None:
        if self.select not in (None, "cv"):
            raise ValueError(f"select must be None or 'cv', got {self.select!r}")
        if self.combine not in COMBINATIONS:
            raise ValueError(f"combine must be one of {COMBINATIONS}, got {self.combine!r}")
        check_count("n_members", self.n_members)

    def __sklearn_clone__(self) -> "FewShotClassifier":
        # copies of a model would fill the memory, and since each classifier keeps its own γ, one will do
        bare = copy(self)
        bare.model = bare.tokenizer = None
        cloned = cast(FewShotClassifier, super(FewShotClassifier, bare).__sklearn_clone__())
        cloned.model, cloned.tokenizer = self.model, self.tokenizer
        cloned._memory = self.__dict__.setdefault("_memory", {})
        return cloned

    def __getstate__(self) -> dict:
        # a model that has a name is loaded again where it is needed
        return {name: value for name, value in super().__getstate__().items() if name != "_memory"}

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        return tags


def load(path: str | os.PathLike, model: str | None = None, progress: bool = True) -> FewShotClassifier:
    """The fitted classifier of an adapter folder: its model, γ, template, label words and classes.

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
    task, classes = recorded_task(record, path)
    try:
        recorded, config = record["model"], OFAConfig(**record["config"])
        name, dtype = model or recorded["name"], getattr(torch, recorded["dtype"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {OFA_CONFIG} is damaged: {error!r}") from None
    if not name:
        raise ValueError(
            f"{path} was made of a model without a name; say where it is: ofa.load(path, model=…)"
        )
    words = task.label_words
    if not isinstance(record["labels"], str):
        words = dict(zip(classes.labels, words, strict=True))
    classifier = FewShotClassifier(
        name, words, task.template, config, dtype=dtype, progress=progress, whole_words=task.whole_words
    )
    load_adapter(classifier._loaded()[0], path)
    classifier._keep(task, classes)
    classifier.selected_, classifier.selection_ = config, []
    return classifier
