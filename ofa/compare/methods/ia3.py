"""IA3: learned factors on keys, values and the MLP's hidden units."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

from peft import IA3Config

from ofa.compare.methods.base import Fitted, Setting
from ofa.compare.methods.peft_training import TrainingOptions, fit_adapter

OPTIONS = TrainingOptions(lr=5e-3, weight_decay=1e-3, epochs=30, batch_size=5)


def ia3_config() -> IA3Config:
    """Of a factor a key, value and hidden unit; a new one each time, since PEFT writes into it."""
    return IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"])


@dataclass(frozen=True)
class IA3:
    """One factor a key, value and hidden unit of the MLP (Liu et al. 2022), by PEFT."""

    name: str = "ia3"
    options: TrainingOptions = OPTIONS

    def fit(self, setting: Setting) -> AbstractContextManager[Fitted]:
        """Train the factors; on leaving they are gone."""
        return fit_adapter(setting, ia3_config(), self.options)
