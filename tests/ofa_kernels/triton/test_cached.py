"""Remembered launches are Triton's own, but for the time they take; they can't share Triton's interpreter."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

ROOT = Path(__file__).parents[3]
SOURCE = Path(__file__).with_name("cached_checks.py")
# each is a function that takes nothing and gives nothing
CHECKS = [
    node.name
    for node in ast.parse(SOURCE.read_text(encoding="utf-8")).body
    if isinstance(node, ast.FunctionDef) and node.returns is None and not any(ast.iter_child_nodes(node.args))
]


@pytest.fixture(scope="module")
def done():
    """What the checks printed, each its name when it had passed."""
    environment = {k: v for k, v in os.environ.items() if k not in ("OFA_BACKEND", "TRITON_INTERPRET")}
    command = [sys.executable, "-m", "tests.ofa_kernels.triton.cached_checks"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("check", CHECKS)
def test_a_remembered_launch(done, check):
    assert check in done.stdout.splitlines(), done.stderr[-2000:]


def test_there_are_checks(done):
    assert len(CHECKS) == 8, CHECKS
    assert done.returncode == 0
