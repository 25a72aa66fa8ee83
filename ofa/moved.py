"""Module paths of earlier versions, kept for imports and pickles: `ofa.packing` is `ofa.passes.packing`."""

import importlib
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# what was documented, and what a pickled classifier names
MOVED = {
    "fewshot": "compare",
    "fewshot.methods": "compare.methods",
    "fewshot.tasks": "data.task",
    "hf_trainer": "train.hf",
    "objective": "loss.objective",
    "packing": "passes.packing",
    "training": "train.loop",
}


class MovedModules(MetaPathFinder, Loader):
    """Finds a module under the path that it had, and warns."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The alias of a module that moved; None for any other name."""
        package, _, name = fullname.partition(".")
        return ModuleSpec(fullname, self) if package == "ofa" and name in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """A module with the names of the one that took its place."""
        place = f"ofa.{MOVED[spec.name.partition('.')[2]]}"
        warnings.warn(f"{spec.name} is {place} now", DeprecationWarning, stacklevel=2)
        present = importlib.import_module(place)
        module = ModuleType(spec.name, present.__doc__)
        module.__dict__.update({k: v for k, v in vars(present).items() if not k.startswith("__")})
        module.__path__ = []  # parts of an earlier package are looked for too
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is left to run."""
