"""The house keeps its order: small files, and functions of few parameters."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("benchmarks", "csrc", "docs", "examples", "ofa", "ofa_kernels", "tests", "tools")
PYTHON = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
CPP = [path for suffix in ("cpp", "hpp", "h") for path in sorted((ROOT / "csrc").rglob(f"*.{suffix}"))]
LONGEST, MOST_PARAMETERS = 400, 6
# what users call, and what others' protocols call
PUBLIC = {
    "ofa/classifier.py": {"__init__"},
    "ofa/cli.py": {"adapt", "compare", "predict", "probe"},
    "ofa/passes/hf_attention.py": {"one_query_attention", "soft_capped_attention"},
    "ofa/scoring.py": {"score"},
    "ofa/train/fit.py": {"fit"},
}


def n_parameters(function):
    named = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return len(named) - (bool(named) and named[0].arg in ("self", "cls", "ctx"))


@pytest.mark.parametrize("path", [*PYTHON, *CPP], ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_is_long(path):
    assert path.read_text(encoding="utf-8").count("\n") <= LONGEST


@pytest.mark.parametrize("folder", ["benchmarks", "docs", "examples", "ofa", "tools"])
def test_no_function_takes_many_parameters(folder):
    """But public API and what others call; the kernels and their calling interface are apart."""
    many = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and n_parameters(node) > MOST_PARAMETERS:
                many.setdefault(str(path.relative_to(ROOT)), set()).add(node.name)
    assert many == {name: names for name, names in PUBLIC.items() if name.startswith(f"{folder}/")}
