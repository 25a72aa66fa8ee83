"""The methods of the comparison, one a file."""

from ofa.fewshot.methods.base import Fitted, Method, Setting
from ofa.fewshot.methods.i2cl import I2CL
from ofa.fewshot.methods.ia3 import IA3
from ofa.fewshot.methods.icl import InContext
from ofa.fewshot.methods.label_anchor import LabelAnchor
from ofa.fewshot.methods.lora import LoRA
from ofa.fewshot.methods.norm_tuning import LN_TUNING, OFA, PAPER_CODE
from ofa.fewshot.methods.soft_prompt import SoftPrompt
from ofa.fewshot.methods.task_vector import TaskVector
from ofa.fewshot.methods.zero_shot import ZeroShot

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        ZeroShot(),
        InContext(),
        SoftPrompt(),
        LabelAnchor(),
        TaskVector(),
        I2CL(),
        IA3(),
        LoRA(),
        LN_TUNING,
        OFA,
        PAPER_CODE,
    )
}

__all__ = ["METHODS", "Fitted", "Method", "Setting"]
