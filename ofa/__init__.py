"""Few-shot adaptation of frozen language models through their norm weights (OFA)."""

from ofa import models
from ofa.adapter import load_adapter, save_adapter
from ofa.classifier import FewShotClassifier, load
from ofa.export import export_merged
from ofa.fewshot.tasks import Task
from ofa.hf_trainer import OFATrainer, features
from ofa.lm_eval import lm_eval_task
from ofa.objective import OFAConfig, objective
from ofa.patch import patch_model
from ofa.sharding import shard_layers
from ofa.sharpness import sharpness
from ofa.trainer import fit

__all__ = [
    "FewShotClassifier",
    "OFAConfig",
    "OFATrainer",
    "Task",
    "export_merged",
    "features",
    "fit",
    "lm_eval_task",
    "load",
    "load_adapter",
    "models",
    "objective",
    "patch_model",
    "save_adapter",
    "shard_layers",
    "sharpness",
]
