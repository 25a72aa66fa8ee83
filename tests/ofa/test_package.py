"""What `import ofa` gives: everything public, without PyTorch until it is needed, and a version."""

import importlib
import importlib.metadata
import inspect
import pickle
import subprocess
import sys
import warnings

import pytest

import ofa
import ofa_kernels
from ofa.moved import MOVED


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_the_command_line_starts_without_pytorch():
    code = "import sys, ofa.cli; print(*{'torch', 'transformers', 'datasets'} & set(sys.modules))"
    assert python(code).strip() == ""


def test_every_public_name_is_there_and_is_its_modules():
    assert set(ofa.__all__) == {*ofa._MODULES, "models"} <= set(dir(ofa))
    for name, module in ofa._MODULES.items():
        assert getattr(ofa, name) is getattr(importlib.import_module(f"ofa.{module}"), name)
    assert inspect.ismodule(ofa.models) and inspect.ismodule(ofa.scoring)


@pytest.mark.parametrize("path", MOVED)
def test_a_module_is_found_under_its_old_path_with_a_warning(path):
    code = (
        f"import importlib, warnings\nwarnings.simplefilter('error', DeprecationWarning)\n"
        f"try: importlib.import_module('ofa.{path}')\nexcept DeprecationWarning as warning: print(warning)"
    )
    assert python(code).strip() in {f"ofa.{old} is ofa.{new} now" for old, new in MOVED.items()}
    with pytest.warns(DeprecationWarning):
        old = importlib.reload(importlib.import_module(f"ofa.{path}"))
    new = importlib.import_module(f"ofa.{MOVED[path]}")
    public = [name for name in vars(new) if not name.startswith("_")]
    assert public or path == "fewshot"  # which holds its parts only
    assert all(getattr(old, name) is getattr(new, name) for name in public)


def test_a_function_stays_one_when_the_module_that_had_its_name_is_imported():
    code = "import ofa, ofa.objective, ofa.train.fit; print(type(ofa.objective).__name__)"
    assert python(code).strip() == "function"


def test_pickles_of_the_version_before_load():
    # what a joblib file of a fitted classifier of version 0.2.0 names
    names = {"ofa.objective": "OFAConfig", "ofa.fewshot.tasks": "Task", "ofa.training": "FitResult"}
    for module, name in names.items():
        pickled = f"c{module}\n{name}\n.".encode()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            assert pickle.loads(pickled).__name__ == name


def test_what_is_not_there_is_an_attribute_error():
    for name in ("nothing", "__nothing__", "__main__"):
        with pytest.raises(AttributeError, match=f"'ofa' has no attribute '{name}'"):
            getattr(ofa, name)
    with pytest.raises(ImportError):
        importlib.import_module("ofa.nothing")


def test_the_version_is_the_distributions():
    try:
        expected = importlib.metadata.version("ofa-kernels")
    except importlib.metadata.PackageNotFoundError:
        expected = "0+unknown"
    assert ofa.__version__ == ofa_kernels.__version__ == expected


def test_a_source_tree_that_was_not_installed_has_a_version_too():
    code = (
        "import importlib.metadata as m\n"
        "def missing(name): raise m.PackageNotFoundError(name)\n"
        "m.version = missing\n"
        "import ofa; print(ofa.__version__)"
    )
    assert python(code).strip() == "0+unknown"
