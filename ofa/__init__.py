"""Few-shot adaptation of frozen language models through their norm weights (OFA)."""

import importlib
import importlib.metadata
import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

# imported when they are first asked for: PyTorch and transformers take seconds, `ofa --help` needs neither
_MODULES = {
    "FewShotClassifier": "classifier",
    "OFAConfig": "objective",
    "OFATrainer": "hf_trainer",
    "Task": "fewshot.tasks",
    "export_merged": "export",
    "features": "hf_trainer",
    "fit": "trainer",
    "lm_eval_task": "lm_eval",
    "load": "classifier",
    "load_adapter": "adapter",
    "objective": "objective",
    "patch_model": "patch",
    "save_adapter": "adapter",
    "shard_layers": "sharding",
    "sharpness": "sharpness",
}

try:
    __version__ = importlib.metadata.version("ofa-kernels")
except importlib.metadata.PackageNotFoundError:  # a source tree that was not installed
    __version__ = "0+unknown"


class _Package(ModuleType):
    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):  # asked for by whoever inspects modules
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            module = importlib.import_module(f"{__name__}.{_MODULES.get(name, name)}")
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
        found = getattr(module, name) if name in _MODULES else module
        setattr(self, name, found)
        return found

    def __setattr__(self, name: str, value: object) -> None:
        # an import of the module ofa.objective would put it in the place of the function
        if isinstance(value, ModuleType) and _MODULES.get(name) == name:
            value = getattr(value, name)
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package
