"""Settings chosen on the shots alone: every candidate and every fold of a cross-validation in one set."""

import math
import os
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.console import Console
from sklearn.model_selection import StratifiedKFold
from torch import nn
from transformers import PreTrainedTokenizerBase

from ofa.bank import AdapterBank
from ofa.config import OFAConfig
from ofa.train.fit_many import fit_many
from ofa.train.job import Job

# what the learning rate of a configuration is multiplied by, and both of its λ
LR_FACTORS = (1, 3, 10)
LAMBDA_FACTORS = (0, 1)
MAX_FOLDS = 5
CHOSEN = ("lr", "lambda_step", "lambda_sharp")
# the least probability that a shot's loss is taken of, so that a single one can't make a mean infinite
LEAST = 1e-30


def candidates(config: OFAConfig) -> list[OFAConfig]:
    """The settings to choose among: 1, 3 and 10 times the learning rate, with both λ 0 and as they are.

    With both λ 0 it is LN-tuning. Of `OFAConfig()` they are 0.001, 0.003 and 0.01, each without λ_J and λ_H
    and with 0.01 and 0.001. Everything else is the configuration's.
    """
    found = [
        replace(
            config,
            lr=config.lr * faster,
            lambda_step=config.lambda_step * stronger,
            lambda_sharp=config.lambda_sharp * stronger,
        )
        for stronger in LAMBDA_FACTORS
        for faster in LR_FACTORS
    ]
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Selection:
    """What a cross-validation chose, and why.

    Attributes:
        config: the chosen settings.
        rows: a dict a candidate: `lr`, `lambda_step`, `lambda_sharp`, `log_loss` and `accuracy` (means over
            the held-out shots) with `log_loss_stderr` and `accuracy_stderr`, and `error`, None or what a
            training of the candidate ended in; it then has no numbers, and is not chosen.
        n_folds: trainings a candidate.
    """

    config: OFAConfig
    rows: list[dict]
    n_folds: int

    def __str__(self) -> str:
        ranked = sorted((row for row in self.rows if row["error"] is None), key=_rank)
        n_failed = len(self.rows) - len(ranked)
        first, *others = ranked
        second = f"; next is {_described(others[0])}" if others else ""
        failed = f"; {n_failed} could not be trained" if n_failed else ""
        return (
            f"chosen of {len(self.rows)} settings in {self.n_folds} folds, as the lowest log-loss of shots "
            f"held out: {_described(first)}{second}{failed}"
        )


def _described(row: dict) -> str:
    return (
        f"lr {row['lr']:g}, λ_J {row['lambda_step']:g}, λ_H {row['lambda_sharp']:g} (log-loss "
        f"{row['log_loss']:.3f} ± {row['log_loss_stderr']:.3f}, accuracy {row['accuracy']:.2f})"
    )


def _rank(row: dict) -> tuple[float, float]:
    return row["log_loss"], -row["accuracy"]


def n_folds(shots: Sequence[dict], words: Sequence[str]) -> int:
    """How many folds stratified cross-validation takes: 5, or as many as the smallest class has shots.

    Args:
        shots: {"text", "label": class number}.
        words: one a class, for the error.

    Raises:
        ValueError: a class has a single shot.
    """
    counts = Counter(shot["label"] for shot in shots)
    fewest, label = min((n, label) for label, n in counts.items())
    if fewest == 1:
        raise ValueError(
            f"class {words[label]!r} has a single shot, and select='cv' holds out shots of each class and "
            "learns from others: give at least two of each, or leave out select"
        )
    return min(MAX_FOLDS, fewest)


def cross_validated(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    job: Job,
    progress: bool = True,
    checkpoint: str | os.PathLike | None = None,
) -> Selection:
    """Choose learning rate and λ by stratified k-fold cross-validation on the shots alone.

    Every candidate is trained on all folds but one, for each fold, all in one set (`ofa.fit_many`), and
    scores the shots of the fold that it did not see. The lowest mean log-loss over all held-out shots is
    chosen; of equal ones the higher accuracy, then the first of `candidates`.

    Args:
        model: a causal language model of a supported family; every training starts from the γ that it has,
            and it is given back as it was.
        tokenizer: the model's.
        job: the task, all shots, and the settings that `candidates` are made of; their seed draws the folds.
        progress: show a bar, and print what is chosen and why.
        checkpoint: where the set is kept; see `ofa.fit_many`.

    Returns:
        The chosen settings and every candidate's numbers. Standard errors are over held-out shots; shots of
        one fold share a training, so they are lower than those of fresh shots and trainings would be.

    Raises:
        ValueError: a class has a single shot, or what `ofa.fit_many` refuses.
        NonFiniteError: no candidate could be trained.
    """
    task, shots = job.task, job.shots
    k, grid = n_folds(shots, task.label_words), candidates(job.config)
    labels = [shot["label"] for shot in shots]
    folds = list(StratifiedKFold(k, shuffle=True, random_state=job.config.seed).split(labels, labels))
    jobs = [
        replace(job, shots=[shots[i] for i in learnt], config=setting)
        for setting in grid
        for learnt, _ in folds
    ]
    results = fit_many(model, tokenizer, jobs, progress, checkpoint)
    bank, texts, names, held_out = AdapterBank(model, tokenizer), [], [], []
    errors: list[Exception | None] = []
    for number in range(len(grid)):
        own = results[number * k : (number + 1) * k]
        errors.append(next((result.error for result in own if result.error is not None), None))
        if errors[-1] is not None:
            continue
        for fold, (result, (_, seen)) in enumerate(zip(own, folds, strict=True)):
            name = f"{number}.{fold}"
            bank.add(name, result.gammas, task, range(len(task.label_words)))
            texts += [shots[i]["text"] for i in seen]
            names += [name] * len(seen)
            held_out += [labels[i] for i in seen]
    if None not in errors:
        raise next(filter(None, errors))
    rows, scored = [], iter(zip(bank.predict_proba(texts, names), held_out, strict=True))
    for setting, error in zip(grid, errors, strict=True):
        numbers = _numbers([] if error else [next(scored) for _ in shots])
        own = {name: getattr(setting, name) for name in CHOSEN}
        rows.append({**own, **numbers, "error": None if error is None else str(error)})
    best = min((i for i, error in enumerate(errors) if error is None), key=lambda i: _rank(rows[i]))
    selection = Selection(grid[best], rows, k)
    if progress:
        Console(stderr=True).print(str(selection), highlight=False, soft_wrap=True)
    return selection


def _numbers(scored: Sequence[tuple[dict, int]]) -> dict[str, float | None]:
    """Means and their standard errors over (probability of each class, class); None without any."""
    losses = [-math.log(max(found[label], LEAST)) for found, label in scored]
    right = [float(max(found, key=found.__getitem__) == label) for found, label in scored]
    numbers = {}
    for name, values in (("log_loss", losses), ("accuracy", right)):
        numbers[name] = statistics.mean(values) if values else None
        numbers[f"{name}_stderr"] = statistics.stdev(values) / math.sqrt(len(values)) if values else None
    return numbers
