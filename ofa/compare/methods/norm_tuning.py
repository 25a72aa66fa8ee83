"""The methods that train the norm weights γ: LN-tuning, OFA, and OFA as its authors' code has it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from torch import Tensor

from ofa.compare.methods.base import Fitted, Setting
from ofa.config import OFAConfig
from ofa.decoder.patch import patch_model, set_gammas
from ofa.train.fit import fit
from ofa.train.job import Job


@dataclass(frozen=True)
class NormTuning:
    """Norm weights trained under a configuration."""

    name: str
    options: OFAConfig

    @contextmanager
    def fit(self, setting: Setting) -> Iterator[Fitted]:
        """Patch, train, and undo on leaving."""
        report = patch_model(setting.model)
        try:
            result = fit(
                setting.model,
                setting.tokenizer,
                setting.task,
                setting.shots,
                self._config(setting),
                setting.progress,
                setting.max_steps,
            )
            yield Fitted(setting.scorer(), report.n_trainable, len(result.history))
        finally:
            report.undo()

    def job(self, setting: Setting) -> Job | None:
        """The same training as one of a set; None where it has to run alone."""
        config = self._config(setting)
        if config.terms != "formulas":
            return None
        return Job(setting.task, setting.shots, config, setting.max_steps)

    @contextmanager
    def trained(self, setting: Setting, gammas: Sequence[Tensor], n_steps: int) -> Iterator[Fitted]:
        """What `fit` gives, of a training in a set: patch, put γ in, and undo on leaving."""
        report = patch_model(setting.model)
        try:
            set_gammas(setting.model, gammas)
            yield Fitted(setting.scorer(), report.n_trainable, n_steps)
        finally:
            report.undo()

    def _config(self, setting: Setting) -> OFAConfig:
        return replace(self.options, seed=setting.seed)


LN_TUNING = NormTuning("ln-tuning", OFAConfig(lambda_step=0, lambda_sharp=0))
OFA = NormTuning("ofa", OFAConfig())
PAPER_CODE = NormTuning("paper-code", OFAConfig.paper_code())
