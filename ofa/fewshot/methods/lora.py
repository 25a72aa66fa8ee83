"""LoRA: low-rank updates of frozen linear layers."""

from contextlib import AbstractContextManager

from peft import LoraConfig

from ofa.fewshot.methods.base import Fitted, Setting
from ofa.fewshot.methods.peft_training import fit_adapter
from ofa.training import Schedule


class LoRA:
    """Rank 8 on the query and value projections (Hu et al. 2021), by PEFT."""

    name = "lora"

    def fit(self, setting: Setting) -> AbstractContextManager[Fitted]:
        """Train the updates; on leaving they are gone."""
        config = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=["q_proj", "v_proj"])
        return fit_adapter(setting, config, Schedule(lr=1e-3, weight_decay=1e-3, epochs=30, batch_size=5))
