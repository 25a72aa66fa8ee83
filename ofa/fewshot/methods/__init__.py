"""The methods of the comparison, one a file."""

from ofa.fewshot.methods.base import Fitted, Method, Setting
from ofa.fewshot.methods.icl import InContext
from ofa.fewshot.methods.norm_tuning import LN_TUNING, OFA, PAPER_CODE
from ofa.fewshot.methods.zero_shot import ZeroShot

METHODS: dict[str, Method] = {
    method.name: method for method in (ZeroShot(), InContext(), LN_TUNING, OFA, PAPER_CODE)
}

__all__ = ["METHODS", "Fitted", "Method", "Setting"]
