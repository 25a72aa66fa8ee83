"""The methods that train the norm weights γ: LN-tuning, OFA, and OFA as its authors' code has it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from ofa.compare.methods.base import Fitted, Setting
from ofa.config import OFAConfig
from ofa.decoder.patch import patch_model
from ofa.train.fit import fit


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
                replace(self.options, seed=setting.seed),
                setting.progress,
                setting.max_steps,
            )
            yield Fitted(setting.scorer(), report.n_trainable, len(result.history))
        finally:
            report.undo()


LN_TUNING = NormTuning("ln-tuning", OFAConfig(lambda_step=0, lambda_sharp=0))
OFA = NormTuning("ofa", OFAConfig())
PAPER_CODE = NormTuning("paper-code", OFAConfig.paper_code())
