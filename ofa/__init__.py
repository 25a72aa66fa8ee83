"""Few-shot adaptation of frozen language models through their norm weights (OFA)."""

from ofa import models
from ofa.adapter import load_adapter, save_adapter
from ofa.classifier import FewShotClassifier, load
from ofa.export import export_merged
from ofa.fewshot.tasks import Task
from ofa.objective import OFAConfig, objective
from ofa.patch import patch_model
from ofa.sharpness import sharpness
from ofa.trainer import fit

__all__ = [
    "FewShotClassifier",
    "OFAConfig",
    "Task",
    "export_merged",
    "fit",
    "load",
    "load_adapter",
    "models",
    "objective",
    "patch_model",
    "save_adapter",
    "sharpness",
]
