"""The README's Python example runs as it is written, on the real model."""

import re
from pathlib import Path

import pytest

import ofa
from ofa.download import SourceError

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.model
@pytest.mark.timeout(600)
def test_the_python_example(tmp_path, monkeypatch, capsys):
    try:
        ofa.models.load("smollm2-135m-instruct")
    except SourceError as error:
        pytest.skip(f"no model: {error}")
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(code.strip().splitlines()) <= 12
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(README), "exec"), {})
    assert capsys.readouterr().out.splitlines()[-1] == "['negative' 'positive']"
    assert (tmp_path / "adapters" / "reviews" / "adapter_model.safetensors").is_file()
