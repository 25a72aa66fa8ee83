"""What `import ofa` gives: everything public, without PyTorch until it is needed, and a version."""

import importlib
import importlib.metadata
import inspect
import subprocess
import sys

import pytest

import ofa
import ofa_kernels


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_the_command_line_starts_without_pytorch():
    code = "import sys, ofa.cli; print(*{'torch', 'transformers', 'datasets'} & set(sys.modules))"
    assert python(code).strip() == ""


def test_every_public_name_is_there_and_is_its_modules():
    assert set(ofa.__all__) == {*ofa._MODULES, "models"} <= set(dir(ofa))
    for name, module in ofa._MODULES.items():
        assert getattr(ofa, name) is getattr(importlib.import_module(f"ofa.{module}"), name)
    assert inspect.ismodule(ofa.models) and inspect.ismodule(ofa.packing)


@pytest.mark.parametrize("name", ["objective", "sharpness"])
def test_a_function_stays_one_when_the_module_of_its_name_is_imported(name):
    code = f"import ofa, ofa.{name}, ofa.trainer; print(type(ofa.{name}).__name__)"
    assert python(code).strip() == "function"


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
