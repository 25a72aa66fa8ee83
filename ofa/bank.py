"""Many adapters of one model in memory: a batch in which every text belongs to another of them."""

import os
import threading
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ofa import models
from ofa.data.inputs import as_labels, as_texts
from ofa.data.task import Prompt, Task, count_truncated
from ofa.decoder.patch import GAMMA_DTYPES, base_gammas
from ofa.decoder.view import Decoder
from ofa.mixed_scoring import Adapter, mixed_log_probs
from ofa.save.adapter import read_config, read_gammas
from ofa.save.task_record import recorded_task


@dataclass(frozen=True)
class _Entry:
    """An adapter with its task; `labels` are what `predict` answers for the label words."""

    adapter: Adapter
    task: Task
    labels: tuple[Hashable, ...]


class AdapterBank:
    """One copy of a model, and as many adapters of it as the memory holds: 4 bytes a norm weight each.

    A batch may mix adapters: each row of a norm is scaled with the γ of its text's adapter, and all else is
    computed for all at once. The model is not changed, and the γ that it holds itself play no role.

    Threads may ask, load, add and remove at once. A request is answered with the adapters that were there
    when it began; the batches of several requests take turns.

    A model without a stacked form (GPT-2, GPT-J, one whose layers accelerate moves) is run adapter by
    adapter, through its own layers. While it runs, the adapter's γ is in the model, which nobody else may
    use then; afterwards the model is as it was.

    Args:
        model: a name, folder or hub id for `ofa.models.load`, or a loaded model (then give its tokenizer).
        tokenizer: of a model given as an object.
        dtype: for `ofa.models.load`; None is the fastest type of this machine.

    Attributes:
        model: the loaded model.
        tokenizer: the model's.

    Raises:
        ValueError: the model is of no supported family, or is an object without tokenizer or with a dtype.
        SourceError: the model can't be reached.
    """

    def __init__(
        self,
        model: str | nn.Module,
        tokenizer: PreTrainedTokenizerBase | None = None,
        dtype: torch.dtype | None = None,
    ):
        if isinstance(model, str):
            if tokenizer is not None:
                raise ValueError(f"the model {model!r} brings its own tokenizer; give none")
            model, tokenizer = models.load(model, dtype)
        elif tokenizer is None or dtype is not None:
            raise ValueError("a model given as an object needs its tokenizer, and keeps its own dtype")
        Decoder.of(model)
        self.model = model
        self.tokenizer = tokenizer
        # replaced as a whole, so that a request that holds it sees no change
        self._entries: dict[str, _Entry] = {}
        self._changing = threading.Lock()
        self._tokenizing = threading.Lock()  # fast tokenizers refuse to be used by two threads at times
        self._running = threading.Lock()  # memory for one batch, and no threads that wait for each other

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters' names, in the order of their arrival."""
        return tuple(self._entries)

    @property
    def nbytes(self) -> int:
        """The memory that all γ take, in bytes."""
        return sum(entry.adapter.gammas.nbytes for entry in self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def load(self, path: str | os.PathLike, name: str) -> None:
        """Take an adapter from its folder.

        Args:
            path: what `FewShotClassifier.save` or `ofa adapt` wrote.
            name: by which it is asked for.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: the adapter has no task, is damaged or doesn't fit the model, its label words can't
                be told apart, or the name is taken. The bank is then unchanged.
        """
        task, classes = recorded_task(read_config(path), path)
        self.add(name, read_gammas(self.model, path), task, classes.labels)

    def add(
        self, name: str, gammas: Sequence[Tensor], task: Task, labels: Iterable[Hashable] | None = None
    ) -> None:
        """Take an adapter's γ and task.

        Args:
            name: by which it is asked for. To replace an adapter, remove it first; or add the new one under
                another name, if requests keep coming.
            gammas: a tensor [D] a norm, in the order of `patch_model(model).norms`, of a floating type. They
                are copied: to the model's device, as float32 (float64 for a float64 model).
            task: template and label words.
            labels: what `predict` answers for each of the label words; None for the words themselves.

        Raises:
            TypeError: an argument is of the wrong type.
            ValueError: γ doesn't fit the model, or is NaN or infinite; labels and label words don't fit
                together or can't be told apart; the name is taken. The bank is then unchanged.
        """
        if not isinstance(name, str):
            raise TypeError(f"an adapter's name must be a string, got {name!r} ({type(name).__name__})")
        if not isinstance(task, Task):
            raise TypeError(f"task must be an ofa.Task, got {task!r} ({type(task).__name__})")
        known = tuple(task.label_words if labels is None else as_labels(labels))
        if len(known) != len(task.label_words) or len(set(known)) != len(known):
            raise ValueError(
                f"each of the {len(task.label_words)} label words needs a label of its own, got {known}"
            )
        with self._tokenizing:
            words = task.target_ids(self.tokenizer)
        entry = _Entry(Adapter(self._checked(gammas), words), task, known)
        with self._changing:
            if name in self._entries:
                raise ValueError(
                    f"there is an adapter {name!r} already; remove it first, or take another name"
                )
            self._entries = {**self._entries, name: entry}

    def remove(self, name: str) -> None:
        """Forget an adapter; requests that have begun are still answered with it.

        Raises:
            KeyError: there is none of that name.
        """
        with self._changing:
            if name not in self._entries:
                raise KeyError(f"there is no adapter {name!r}")
            self._entries = {other: kept for other, kept in self._entries.items() if other != name}

    def predict(self, texts: Iterable[str], names: str | Iterable[str]) -> list[Hashable]:
        """The label of each text; an error names the place of the text that it is about.

        Args:
            texts: what to classify: a list, tuple, generator, array or column of a table.
            names: which adapter answers for each text, in any mixture; or one name for all texts.

        Returns:
            A label a text. A warning says how many texts were cut on the left to fit the context.

        Raises:
            TypeError: a single string instead of a list, or a text that is no string.
            KeyError: there is no adapter of a name.
            ValueError: numbers of texts and names differ, a text is empty, or nothing of it fits the context.
            FloatingPointError: a logit is NaN or infinite.
        """
        entries, log_probs = self._answers(texts, names)
        numbers = log_probs.argmax(-1).tolist()
        return [entry.labels[number] for entry, number in zip(entries, numbers, strict=True)]

    def predict_proba(self, texts: Iterable[str], names: str | Iterable[str]) -> list[dict[Hashable, float]]:
        """The probability of each label of a text's adapter; arguments and errors as for `predict`."""
        entries, log_probs = self._answers(texts, names)
        return [
            dict(zip(entry.labels, row[: len(entry.labels)], strict=True))
            for entry, row in zip(entries, log_probs.exp().tolist(), strict=True)
        ]

    def _answers(self, texts: Iterable[str], names: str | Iterable[str]) -> tuple[list[_Entry], Tensor]:
        """The adapter of each text, and the log-probabilities of its labels (see `mixed_log_probs`)."""
        present, texts = self._entries, as_texts(texts)
        names = [names] * len(texts) if isinstance(names, str) else list(names)
        if len(names) != len(texts):
            raise ValueError(
                f"texts and names must have the same length, got {len(texts)} and {len(names)}; give one "
                "string as the name of all"
            )
        for i, name in enumerate(names):
            if name not in present:
                raise KeyError(f"text {i} asks for the adapter {name!r}, and there is none of that name")
        if not texts:
            return [], torch.empty(0, 1)
        entries = [present[name] for name in names]
        adapters = [entry.adapter for entry in entries]
        return entries, mixed_log_probs(self.model, self._prompts(texts, entries), adapters, self._running)

    def _checked(self, gammas: Sequence[Tensor]) -> Tensor:
        """[norms, D], a copy."""
        decoder, base = Decoder.of(self.model), base_gammas(self.model)
        if len(gammas) != len(base):
            raise ValueError(
                f"the model has {len(base)} norms, and got γ for {len(gammas)}; wrong base model?"
            )
        dtype = base[0].dtype if base[0].dtype in GAMMA_DTYPES else torch.float32
        copies = []
        for (norm, *_), own, gamma in zip(decoder.named_norms(), base, gammas, strict=True):
            if not isinstance(gamma, Tensor) or not gamma.is_floating_point():
                what = gamma.dtype if isinstance(gamma, Tensor) else type(gamma).__name__
                raise TypeError(f"γ of {norm} must be a tensor of a floating type, got {what}")
            if gamma.shape != own.shape:
                raise ValueError(
                    f"γ of {norm} has shape {tuple(gamma.shape)}, and the model needs {tuple(own.shape)}; "
                    "wrong base model?"
                )
            copies.append(gamma.detach().to(decoder.device, dtype))
            if not torch.isfinite(copies[-1]).all():
                raise ValueError(f"γ of {norm} holds NaN or infinite values, or such that {dtype} can't hold")
        return torch.stack(copies)

    def _prompts(self, texts: list[str], entries: list[_Entry]) -> list[list[int]]:
        """The token ids of each text in its adapter's template, cut to fit the context."""
        rendered, prompts = [], []
        for i, (text, entry) in enumerate(zip(texts, entries, strict=True)):
            with _at_text(i):
                rendered.append(entry.task.render(text))
        with self._tokenizing:
            encoded = self.tokenizer(rendered)["input_ids"]  # at once, which fast tokenizers do in parallel
        for i, ids in enumerate(encoded):
            with _at_text(i):
                prompts.append(self._fitted(Prompt(ids), texts[i], entries[i]))
        count_truncated(prompts)
        return [prompt.ids for prompt in prompts]

    def _fitted(self, prompt: Prompt, text: str, entry: _Entry) -> Prompt:
        """The prompt of a text, cut to fit the context together with the longest label word."""
        decoder, n_more = Decoder.of(self.model), entry.adapter.longest - 1
        limit = decoder.max_tokens - n_more
        if len(prompt.ids) > limit:
            with self._tokenizing:
                prompt = entry.task.encode(self.tokenizer, text, limit)
        decoder.check_attention(len(prompt.ids) + n_more)
        return prompt


@contextmanager
def _at_text(place: int) -> Iterator[None]:
    """Say in errors which text they are about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"text {place}: {error}") from None
