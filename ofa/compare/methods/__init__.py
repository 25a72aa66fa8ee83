"""The methods of the comparison, one a file."""

from ofa.compare.methods.base import Fitted, Method, Setting
from ofa.compare.methods.embedding import Embedding
from ofa.compare.methods.i2cl import I2CL
from ofa.compare.methods.ia3 import IA3
from ofa.compare.methods.icl import InContext
from ofa.compare.methods.label_anchor import LabelAnchor
from ofa.compare.methods.linear_probe import LinearProbe
from ofa.compare.methods.ln_ia3 import LNIA3
from ofa.compare.methods.lora import LoRA
from ofa.compare.methods.norm_tuning import LN_TUNING, OFA, PAPER_CODE
from ofa.compare.methods.set_fit import SetFit
from ofa.compare.methods.soft_prompt import SoftPrompt
from ofa.compare.methods.task_vector import TaskVector
from ofa.compare.methods.zero_shot import ZeroShot

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        ZeroShot(),
        InContext(),
        LinearProbe(),
        Embedding(),
        SetFit(),
        SoftPrompt(),
        LabelAnchor(),
        TaskVector(),
        I2CL(),
        IA3(),
        LNIA3(),
        LoRA(),
        LN_TUNING,
        OFA,
        PAPER_CODE,
    )
}


def missing(method: Method) -> str | None:
    """What a method needs besides the model and can't be had here, in words; None if it can be run."""
    asked = getattr(method, "missing", None)
    return asked() if asked else None


__all__ = ["METHODS", "Fitted", "Method", "Setting", "missing"]
