"""Every block of the documentation: Python runs as it is written, commands parse, links and names exist."""

import inspect
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer
import yaml

import ofa
import ofa_kernels
from ofa.cli import app
from ofa.download import SourceError

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = [ROOT / "README.md", ROOT / "SECURITY.md", *PAGES]
WITH_PYTHON = [page for page in PAGES if "```python" in page.read_text(encoding="utf-8")]

# every name that the documentation of version 0.2.0 listed
NAMES = [
    "ofa.FewShotClassifier",
    "ofa.FewShotClassifier.fit",
    "ofa.FewShotClassifier.label_scores",
    "ofa.FewShotClassifier.predict_proba",
    "ofa.FewShotClassifier.predict",
    "ofa.FewShotClassifier.score",
    "ofa.FewShotClassifier.save",
    "ofa.OFAConfig",
    "ofa.OFAConfig.paper_code",
    "ofa.OFAConfig.schedule",
    "ofa.OFATrainer",
    "ofa.OFATrainer.compute_loss",
    "ofa.OFATrainer.training_step",
    "ofa.OFATrainer.log",
    "ofa.Task",
    "ofa.Task.render",
    "ofa.Task.demonstrations",
    "ofa.Task.check_labels",
    "ofa.Task.label_ids",
    "ofa.Task.word_ids",
    "ofa.Task.target_ids",
    "ofa.Task.told_apart",
    "ofa.Task.encode",
    "ofa.collate",
    "ofa.export_merged",
    "ofa.features",
    "ofa.fit",
    "ofa.lm_eval_task",
    "ofa.load",
    "ofa.load_adapter",
    "ofa.models.load",
    "ofa.objective",
    "ofa.packed",
    "ofa.patch_model",
    "ofa.save_adapter",
    "ofa.shard_layers",
    "ofa.sharpness",
    "ofa_kernels.add_rms_norm",
    "ofa_kernels.backend_report",
    "ofa_kernels.hutchinson_trace",
    "ofa_kernels.layer_norm",
    "ofa_kernels.preconditioned_probes",
    "ofa_kernels.probe_dot",
    "ofa_kernels.rademacher",
    "ofa_kernels.rms_norm",
    "ofa_kernels.rms_norm_jvp",
    "ofa_kernels.step_ratio",
]
PARAMETERS = {
    "ofa.FewShotClassifier": "model label_words template config tokenizer dtype progress whole_words",
    "ofa.FewShotClassifier.fit": "self X y checkpoint",
    "ofa.FewShotClassifier.label_scores": "self texts shots name",
    "ofa.FewShotClassifier.score": "self X y sample_weight",
    "ofa.OFAConfig": "lambda_step lambda_sharp n_probes sharpness_every lr weight_decay epochs",
    "ofa.OFATrainer": "model args ofa_config kwargs",
    "ofa.Task": "name template label_words whole_words",
    "ofa.fit": "model tokenizer task shots cfg progress max_steps checkpoint",
    "ofa.features": "tokenizer task rows max_tokens",
    "ofa.load": "path model progress",
    "ofa.models.load": "name dtype",
    "ofa.objective": "model batch cfg step",
    "ofa.save_adapter": "model path metadata",
    "ofa.sharpness": "model batch n_probes seed method fd_eps",
    "ofa_kernels.add_rms_norm": "x residual weight eps offset rounding",
    "ofa_kernels.hutchinson_trace": "fn z preconditioner n_probes seed method fd_eps example_ids layer",
    "ofa_kernels.layer_norm": "x weight bias eps",
    "ofa_kernels.preconditioned_probes": "z weight eps seed n_probes offset example_ids layer",
    "ofa_kernels.probe_dot": "t seed example_ids layer",
    "ofa_kernels.rademacher": "shape seed device dtype",
    "ofa_kernels.rms_norm": "x weight eps offset rounding",
    "ofa_kernels.rms_norm_jvp": "x weight x_dot eps offset",
    "ofa_kernels.step_ratio": "states per_step",
}


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def named(name):
    package, *rest = name.split(".")
    thing = {"ofa": ofa, "ofa_kernels": ofa_kernels}[package]
    for part in rest:
        thing = getattr(thing, part)
    return thing


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


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.stem)
def test_commands_parse(page):
    commands = typer.main.get_group(app).commands
    lines = "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    for line in lines:
        words = shlex.split(line, comments=True)
        if words[:2] == ["accelerate", "launch"]:
            words = words[words.index("-m") + 1 :] if "-m" in words else []
        if words[:1] == ["ofa"]:
            commands[words[1]].make_context(words[1], words[2:])
        elif words[:1] == ["make"]:
            assert set(words[1:]) <= set(targets), line
        elif words[:2] == ["python", "-m"] and words[2].startswith(("benchmarks", "tools")):
            assert find_spec(words[2]), line
        elif words[:1] == ["python"] and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file(), line


@pytest.mark.parametrize("name", NAMES)
def test_a_documented_name_stays(name):
    assert inspect.getdoc(named(name))


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_documented_call_takes_what_it_took(name):
    call = named(name)
    assert callable(call)
    before, now = PARAMETERS[name].split(), list(inspect.signature(call).parameters)
    assert now[: len(before)] == before


def test_the_api_page_has_every_public_name():
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    shown = re.findall(r"^::: (\S+)$", page, flags=re.MULTILINE)
    public = {f"{package.__name__}.{name}" for package in (ofa, ofa_kernels) for name in package.__all__}
    assert public - {"ofa.models"} <= set(shown) and "ofa.models.load" in shown


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert text.count("![") == 1


def test_the_picture_is_made_from_the_committed_cells(tmp_path):
    code = (
        "import runpy, sys; from pathlib import Path; "
        f"make = runpy.run_path({str(ROOT / 'docs' / 'make_picture.py')!r}); "
        f"make['plot_accuracy_time'](make['panels'](), Path({str(tmp_path / 'made.png')!r}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    for picture in (tmp_path / "made.png", ROOT / "docs" / "accuracy-time.png"):
        assert picture.read_bytes()[:4] == b"\x89PNG"


def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {page.name: page.read_text(encoding="utf-8") for page in tmp_path.glob("*.html")}
    assert {"index.html", "tutorial.html", "limits.html", "api.html"} <= pages.keys()
    for name, text in pages.items():
        assert not re.findall(r'<(?:script|img|iframe)[^>]* src="?(?:https?:)?//', text), name
        assert not re.findall(r'<link[^>]* href="?(?:https?:)?//', text), name
    for name in NAMES:
        assert f'id="{name}"' in pages["api.html"], name


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    (version,) = re.findall(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    assert citation["version"] == version and citation["license"] == "Apache-2.0"
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    for cited in (citation, *citation["references"]):
        assert cited["type"] and cited["title"] and all(cited["authors"])


def test_hooks_need_nothing_but_the_environment():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [repository["repo"] for repository in hooks["repos"]] == ["local"]
    entries = {
        hook["entry"].split()[0] for hook in hooks["repos"][0]["hooks"] if hook["language"] == "system"
    }
    assert entries == {f".venv/bin/{name}" for name in ("ruff", "lint-imports", "pyright")}
