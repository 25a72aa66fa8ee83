"""The README's Python examples run as they are written: `ofa` on the real model, `ofa_kernels` alone."""

import re
from pathlib import Path

import pytest
import torch

import ofa
from ofa.download import SourceError

README = Path(__file__).parent.parent / "README.md"
ADAPT, KERNELS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("code", [ADAPT, KERNELS], ids=["ofa", "ofa_kernels"])
def test_an_example_is_about_ten_lines(code):
    assert len(code.strip().splitlines()) <= 12


@pytest.mark.model
@pytest.mark.timeout(600)
def test_the_example_of_ofa(tmp_path, monkeypatch, capsys):
    try:
        ofa.models.load("smollm2-135m-instruct")
    except SourceError as error:
        pytest.skip(f"no model: {error}")
    monkeypatch.chdir(tmp_path)
    exec(compile(ADAPT, str(README), "exec"), {})
    assert capsys.readouterr().out.splitlines()[-1] == "['negative' 'positive']"
    assert (tmp_path / "adapters" / "reviews" / "adapter_model.safetensors").is_file()


@pytest.mark.host
def test_the_example_of_ofa_kernels(capsys):
    names = {}
    exec(compile(KERNELS, str(README), "exec"), names)
    x, gamma, trace = names["x"], names["gamma"], names["trace"]

    def loss(row):
        mean_square = row.pow(2).mean() + 1e-6
        return torch.tanh(gamma * row / mean_square.sqrt()).sum()

    hessians = torch.func.vmap(torch.func.hessian(loss))(x)
    exact = hessians.diagonal(dim1=-2, dim2=-1).sum(-1)
    assert ((trace.value - exact).abs() < 5 * trace.stderr).all()
    assert "rms_norm" in capsys.readouterr().out
