"""Every block of the documentation: Python runs as it is written, commands parse."""

import re
import runpy
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer

import ofa
from ofa.cli import app
from ofa.download import SourceError

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
WITH_PYTHON = [page for page in PAGES if "```python" in page.read_text(encoding="utf-8")]


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.model
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.stem)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    try:
        ofa.models.load("smollm2-135m-instruct")
    except SourceError as error:
        pytest.skip(f"no model: {error}")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    from ofa.compare.methods import METHODS

    before, names = dict(METHODS), {}
    try:
        for code in blocks(page, "python"):
            if "import kernels" in code and find_spec("kernels") is None:
                continue
            exec(compile(code, str(page), "exec"), names)
    finally:
        METHODS.clear()
        METHODS.update(before)


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.stem)
def test_commands_parse(page):
    commands = typer.main.get_command(app).commands
    lines = "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    for line in lines:
        words = shlex.split(line, comments=True)
        if words[:2] == ["accelerate", "launch"]:
            words = words[words.index("-m") + 1 :] if "-m" in words else []
        if words[:1] == ["ofa"]:
            commands[words[1]].make_context(words[1], words[2:])
        elif words[:1] == ["make"]:
            assert words[1] in targets, line


def test_the_api_page_is_that_of_the_docstrings():
    make_api = runpy.run_path(str(ROOT / "docs" / "make_api.py"))
    assert (ROOT / "docs" / "api.md").read_text(encoding="utf-8") == make_api["page"](), "make docs"


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", *PAGES]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
