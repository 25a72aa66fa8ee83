"""The norm weights γ and IA3's factors, trained together."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ofa.compare.methods.base import Fitted, Setting
from ofa.compare.methods.ia3 import ia3_config
from ofa.compare.methods.peft_training import TrainingOptions, adapter, fitted
from ofa.decoder.patch import borrowed

OPTIONS = TrainingOptions(lr=3e-3, weight_decay=1e-3, epochs=30, batch_size=5)


@dataclass(frozen=True)
class LNIA3:
    """LN-tuning and IA3 in one: γ scales what attention and the MLP read, IA3 what happens inside them.

    Each is a diagonal matrix between weights that stay frozen. One loss, the cross-entropy, and one schedule
    train both.
    """

    name: str = "ln-ia3"
    options: TrainingOptions = OPTIONS

    @contextmanager
    def fit(self, setting: Setting) -> Iterator[Fitted]:
        """Train γ and the factors; on leaving the factors are gone and γ is what it was."""
        # the norms go in last and come out first, so that each finds the flags that it left
        with adapter(setting, ia3_config()) as factors, borrowed(setting.model) as report:
            for factor in factors:
                factor.requires_grad_(True)
            gammas = [norm.module.weight for norm in report.norms]
            yield fitted(setting, [*gammas, *factors], self.options)
