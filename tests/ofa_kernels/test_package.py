"""The names of the package: where they can be imported from, and that none hides another."""

import importlib
import inspect
import pkgutil

import pytest

import ofa_kernels as ok

FORMER = {
    "ofa_kernels.hutchinson": "TraceEstimate",
    "ofa_kernels.probes": "mix",
    "ofa_kernels.reference": "accumulation_dtype Seed preconditioner",
}


@pytest.mark.parametrize("name", ok.__all__)
def test_public_names_have_a_docstring(name):
    assert inspect.getdoc(getattr(ok, name))


@pytest.mark.parametrize("module", FORMER)
def test_names_can_still_be_imported_from_where_they_were(module):
    for name in FORMER[module].split():
        assert getattr(importlib.import_module(module), name) is getattr(ok, name)


@pytest.mark.parametrize("package", ["ofa_kernels", "ofa_kernels.native", "ofa_kernels.triton.launch"])
def test_no_function_hides_a_module_of_its_name(package):
    if "triton" in package:
        pytest.importorskip("triton", reason="Triton is not installed")
    package = importlib.import_module(package)
    for module in pkgutil.iter_modules(package.__path__):
        found = getattr(package, module.name, None)
        assert found is None or inspect.ismodule(found), module.name
