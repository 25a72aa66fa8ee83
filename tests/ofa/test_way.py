"""The way of a γ from `ofa.fit` to the C++ kernel and back goes through few files."""

import traceback
from pathlib import Path

import pytest
import torch

import ofa
from ofa_kernels import native
from tests.ofa.conftest import build_llama

ROOT = Path(__file__).parents[2]
LONGEST_WAY = 12


def files_of_the_stack():
    places = (Path(frame.filename) for frame in traceback.extract_stack())
    return {place.relative_to(ROOT) for place in places if place.is_relative_to(ROOT)}


def watched(name, kernel, opened):
    def call(*args, **options):
        opened[name] = files_of_the_stack()
        return kernel(*args, **options)

    return call


def test_a_gamma_goes_through_few_files(tokenizer, task, shots, monkeypatch):
    if native.missing():
        pytest.skip(native.missing())
    monkeypatch.setenv("OFA_BACKEND", "native")
    opened = {}
    for name in ("rms_norm_forward", "add_rms_norm_forward", "rms_norm_jvp", "rms_norm_backward"):
        monkeypatch.setattr(native, name, watched(name, getattr(native, name), opened))
    ofa.fit(build_llama(torch.float32), tokenizer, task, shots, ofa.OFAConfig(epochs=1), progress=False)
    assert len(opened) == 4
    ours = {path for path in set.union(*opened.values()) if path.parts[0] in ("ofa", "ofa_kernels")}
    way = {*ours, Path("ofa_kernels/native/__init__.py"), Path("csrc/cpu/rms_norm.cpp")}
    assert Path("ofa/train/fit.py") in way and Path("ofa/passes/layer.py") in way
    assert len(way) <= LONGEST_WAY, sorted(way)
