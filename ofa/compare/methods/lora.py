"""LoRA: low-rank updates of frozen linear layers."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

from peft import LoraConfig

from ofa.compare.methods.base import Fitted, Setting
from ofa.compare.methods.peft_training import TrainingOptions, fit_adapter
from ofa.config import check_count


@dataclass(frozen=True)
class LoRAOptions(TrainingOptions):
    """How to train, with the rank `r` of the updates and `lora_alpha`, which over r is their scale.

    Raises:
        ValueError: `r` or `lora_alpha` is no integer of at least 1, or as `TrainingOptions`.
    """

    r: int = 8
    lora_alpha: int = 16

    def __post_init__(self):
        super().__post_init__()
        check_count("r", self.r)
        check_count("lora_alpha", self.lora_alpha)


@dataclass(frozen=True)
class LoRA:
    """Low-rank updates of the query and value projections (Hu et al. 2021), by PEFT."""

    name: str = "lora"
    options: LoRAOptions = LoRAOptions(lr=1e-3, weight_decay=1e-3, epochs=30, batch_size=5)

    def fit(self, setting: Setting) -> AbstractContextManager[Fitted]:
        """Train the updates; on leaving they are gone."""
        config = LoraConfig(
            r=self.options.r,
            lora_alpha=self.options.lora_alpha,
            lora_dropout=0.0,
            target_modules=["q_proj", "v_proj"],
        )
        return fit_adapter(setting, config, self.options)
