"""Few-shot adaptation of frozen language models through their norm weights (OFA)."""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING

from ofa.moved import MOVED, MovedModules

if TYPE_CHECKING:
    __version__: str
    from ofa import models
    from ofa.bank import AdapterBank
    from ofa.classifier import FewShotClassifier, load
    from ofa.config import OFAConfig
    from ofa.data.batch import collate, features
    from ofa.data.task import Task
    from ofa.decoder.patch import patch_model
    from ofa.decoder.sharding import shard_layers
    from ofa.loss.objective import objective
    from ofa.loss.sharpness import sharpness
    from ofa.passes.packing import packed
    from ofa.save.adapter import load_adapter, save_adapter
    from ofa.save.export import export_merged
    from ofa.save.lm_eval import lm_eval_task
    from ofa.train.fit import fit
    from ofa.train.fit_many import fit_many
    from ofa.train.hf import OFATrainer
    from ofa.train.job import Job

__all__ = [
    "AdapterBank",
    "FewShotClassifier",
    "Job",
    "OFAConfig",
    "OFATrainer",
    "Task",
    "collate",
    "export_merged",
    "features",
    "fit",
    "fit_many",
    "lm_eval_task",
    "load",
    "load_adapter",
    "models",
    "objective",
    "packed",
    "patch_model",
    "save_adapter",
    "shard_layers",
    "sharpness",
]

# imported when they are first asked for: PyTorch and transformers take seconds, `ofa --help` needs neither
_MODULES = {
    "AdapterBank": "bank",
    "FewShotClassifier": "classifier",
    "Job": "train.job",
    "OFAConfig": "config",
    "OFATrainer": "train.hf",
    "Task": "data.task",
    "collate": "data.batch",
    "export_merged": "save.export",
    "features": "data.batch",
    "fit": "train.fit",
    "fit_many": "train.fit_many",
    "lm_eval_task": "save.lm_eval",
    "load": "classifier",
    "load_adapter": "save.adapter",
    "objective": "loss.objective",
    "packed": "passes.packing",
    "patch_model": "decoder.patch",
    "save_adapter": "save.adapter",
    "shard_layers": "decoder.sharding",
    "sharpness": "loss.sharpness",
}


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("ofa-kernels")
    except PackageNotFoundError:  # a source tree that was not installed
        return "0+unknown"


class _Package(ModuleType):
    def __getattr__(self, name: str) -> object:
        if name == "__version__":
            return _version()
        if name.startswith("__"):  # asked for by whoever inspects modules
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            module = importlib.import_module(f"{__name__}.{_MODULES.get(name, name)}")
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
        value = getattr(module, name) if name in _MODULES else module
        setattr(self, name, value)
        return value

    def __setattr__(self, name: str, value: object) -> None:
        # a pickle's import of ofa.objective, as its module was called, would hide the function
        if isinstance(value, ModuleType) and name in MOVED and name in _MODULES:
            value = getattr(value, name)
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package
sys.meta_path.append(MovedModules())
