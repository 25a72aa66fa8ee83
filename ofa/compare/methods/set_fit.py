"""SetFit: a sentence encoder that is trained on pairs of shots, and logistic regression on its embeddings."""

import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import datasets
import numpy as np
import torch
from transformers import ProgressCallback

from ofa.compare.encoder import NAME, SHA256, Encoder, encoder_folder, missing_encoder
from ofa.compare.methods.base import Fitted, Setting
from ofa.compare.methods.embedding import scorer
from ofa.compare.methods.regression import class_labels, n_weights
from ofa.models import quiet

if TYPE_CHECKING:
    from setfit import Trainer  # pyright: ignore[reportMissingImports]

ITERATIONS = 20  # pairs of each kind a shot
# by which the processes of a run know each other
PROCESSES = ("RANK", "LOCAL_RANK", "WORLD_SIZE")


class SetFit:
    """SetFit (Tunstall et al. 2022) by the package `setfit`, from all-MiniLM-L6-v2.

    Pairs of shots learn to be near each other within a class and apart otherwise; then a regression is fitted
    on the shots' embeddings. Of each kind there are 20 pairs a shot: the package would take
    each pair once, which for a few shots are a handful of steps. All else is the package's default. Template,
    label words and protocol change nothing.
    """

    name = "setfit"

    def missing(self) -> str | None:
        """Why it can't be run here, or None: the package is not installed, or the encoder can't be had."""
        try:
            import setfit  # noqa: F401  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            return f'{error}; install it with: pip install "setfit>=1.2"'
        return missing_encoder()

    @contextmanager
    def fit(self, setting: Setting) -> Iterator[Fitted]:
        """Train the encoder and fit the regression.

        Raises:
            ImportError: the package is not installed.
            SourceError: the encoder can't be had.
            ValueError: an unknown label, or a class without a shot.
        """
        labels = class_labels(setting)
        with _reseeded(), _one_process(), tempfile.TemporaryDirectory() as folder:
            trainer = _trained(setting, labels, folder)
        model = trainer.model
        body, head = model.model_body, model.model_head
        encoder = Encoder(body[0].auto_model.eval(), body.tokenizer)
        n_trained = sum(weight.numel() for weight in body.parameters()) + n_weights(head)
        notes = {"encoder": NAME, "encoder_sha256": SHA256}
        yield Fitted(scorer(encoder, head), n_trained, trainer.st_trainer.state.global_step, notes)


def _trained(setting: Setting, labels: list[int], folder: str) -> "Trainer":
    """The trainer after its work, which is quiet and leaves no file but in the folder."""
    import setfit  # pyright: ignore[reportMissingImports]

    setfit.logging.set_verbosity_error()
    texts = [shot["text"] for shot in setting.shots]
    options = setfit.TrainingArguments(
        output_dir=folder,
        max_steps=-1 if setting.max_steps is None else setting.max_steps,
        num_iterations=ITERATIONS,
        seed=setting.seed,
        report_to="none",
        logging_strategy="no",
        save_strategy="no",
        show_progress_bar=False,
    )
    with quiet(), _no_bars():
        device = str(setting.decoder.device)
        model = setfit.SetFitModel.from_pretrained(str(encoder_folder()), device=device)
        trainer = setfit.Trainer(model, options)
        trainer.pop_callback(ProgressCallback)
        inner = trainer.st_trainer.args
        inner._n_gpu = min(1, inner.n_gpu)  # each of several GPUs would take a batch of its own
        inner.dataloader_pin_memory = False
        if setting.max_steps != 0:  # which transformers would take for no cap
            trainer.train_embeddings(texts, labels, args=options)
        trainer.train_classifier(texts, labels, args=options)
    return trainer


@contextmanager
def _no_bars() -> Iterator[None]:
    hidden = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not hidden:
            datasets.enable_progress_bars()


@contextmanager
def _reseeded() -> Iterator[None]:
    """The trainer seeds every generator; put them back on leaving."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def _one_process() -> Iterator[None]:
    """Hide the other processes of a run: the trainer would wait for them, which have other cells to run."""
    hidden = {name: os.environ.pop(name) for name in PROCESSES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)
