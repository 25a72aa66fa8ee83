"""The methods that train the norm weights γ: LN-tuning, OFA, and OFA as its authors' code has it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ofa.compare.methods.base import Fitted, Setting
from ofa.config import OFAConfig
from ofa.data.batch import labelled
from ofa.decoder.patch import patch_model, set_gammas
from ofa.loss.objective import objective
from ofa.train.fit_many import fit_many
from ofa.train.job import Job

N_MEASURED = 32  # texts
MEASURED, MEASURES = OFAConfig(n_probes=8), ("step_ratio", "sharpness")


@dataclass(frozen=True)
class NormTuning:
    """Norm weights trained under a configuration."""

    name: str
    options: OFAConfig

    @contextmanager
    def fit(self, setting: Setting) -> Iterator[Fitted]:
        """Train in a set of one, put γ in, and undo on leaving."""
        (result,) = fit_many(setting.model, setting.tokenizer, [self._job(setting)], setting.progress)
        if result.error is not None:
            raise result.error
        with self.trained(setting, result.gammas, len(result.history)) as fitted:
            yield fitted

    def job(self, setting: Setting) -> Job | None:
        """The same training as one of a set; None where it has to run alone."""
        return self._job(setting) if self.options.terms == "formulas" else None

    @contextmanager
    def trained(self, setting: Setting, gammas: Sequence[Tensor], n_steps: int) -> Iterator[Fitted]:
        """What a training in a set gives: patch, put γ in, and undo on leaving."""
        report = patch_model(setting.model)
        try:
            set_gammas(setting.model, gammas)
            yield self._fitted(setting, report.n_trainable, n_steps)
        finally:
            report.undo()

    def _fitted(self, setting: Setting, n_trainable: int, n_steps: int) -> Fitted:
        return Fitted(setting.scorer(), n_trainable, n_steps, measure=partial(terms_at, setting))

    def _job(self, setting: Setting) -> Job:
        config = replace(self.options, seed=setting.seed)
        return Job(setting.task, setting.shots, config, setting.max_steps, bool(setting.demonstrations))


@torch.no_grad()
def terms_at(setting: Setting, texts: Sequence[str]) -> dict[str, float]:
    """J and H of the model as it is at up to 32 bare prompts; nothing where it can't be probed."""
    task, decoder = setting.task, setting.decoder
    prompts = [task.encode(setting.tokenizer, text, decoder.max_tokens).ids for text in texts[:N_MEASURED]]
    batch = labelled(prompts, [[0]] * len(prompts), decoder.device)  # no term depends on a label
    try:
        found = objective(setting.model, batch, MEASURED)
    except ValueError:  # one layer only, or quantised ones that drop derivatives
        return {}
    return {name: t.item() for name, t in found.terms().items() if t is not None and name in MEASURES}


LN_TUNING = NormTuning("ln-tuning", OFAConfig(lambda_step=0, lambda_sharp=0))
OFA = NormTuning("ofa", OFAConfig())
PAPER_CODE = NormTuning("paper-code", OFAConfig.paper_code())
