"""A model and rows to compare methods on."""

import pytest
import torch

from ofa.compare import encoder
from ofa.compare.cells import Pool
from tests.ofa.compare.encoders import save_encoder
from tests.ofa.conftest import TEXTS, build_llama


@pytest.fixture
def model():
    return build_llama(torch.float32)


@pytest.fixture
def pool(task):
    words = [word for text in TEXTS for word in text.split()[:2]]
    rows = [{"text": word, "label": i % 2} for i, word in enumerate(words)]
    return Pool(task, rows[:6], rows[6:], shots=1)


@pytest.fixture
def tiny_encoder(tmp_path, monkeypatch):
    """Its folder, where the cache has the real encoder's."""
    monkeypatch.setenv("OFA_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / encoder.NAME
    folder.mkdir(parents=True)
    save_encoder(folder)
    encoder.load_encoder.cache_clear()
    yield folder
    encoder.load_encoder.cache_clear()
