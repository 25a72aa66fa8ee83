"""The demo's data: human-rated tweets (Hutto & Gilbert 2014), from the sdist vaderSentiment 0.5 (MIT)."""

import io
import os
import tarfile
import tempfile
import zipfile
from pathlib import Path

from ofa.data.draws import draw_shots
from ofa.data.task import Task
from ofa.download import SourceError, cache_dir, check_sha256, pip_download, sha256

SDIST = "vaderSentiment==0.5"
SDIST_SHA256 = "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a"
ARCHIVE = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
MEMBER = "hutto_ICWSM_2014/tweets_GroundTruth.txt"
TASK = Task("tweets", "Tweet: {text}\nSentiment:", ("negative", "positive"))
TEST_PER_CLASS = 250
TEST_SEED = 42


def load_tweets() -> list[dict]:
    """All tweets as {"text", "label"}, 0 negative and 1 positive: the sign of the mean rating.

    Raises:
        SourceError: neither the cache nor PyPI has them.
    """
    path = cache_dir() / Path(MEMBER).name
    if not path.is_file():
        _fetch(path)
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        _, valence, text = line.split("\t")
        if float(valence) and text.strip():
            rows.append({"text": text, "label": int(float(valence) > 0)})
    return rows


def split_tweets(rows: list[dict]) -> tuple[list[dict], list[dict]]:
    """(500 test tweets, 250 a class and the same for every seed; the pool to draw shots from)."""
    return draw_shots(rows, TEST_PER_CLASS, TEST_SEED, TASK.label_words)


def _fetch(path: Path) -> None:
    try:
        with pip_download(f"{SDIST} --hash=sha256:{SDIST_SHA256}", "--no-binary", "vaderSentiment") as sdist:
            check_sha256(sdist.name, sha256(sdist), SDIST_SHA256)
            archive = io.BytesIO(zipfile.ZipFile(sdist).read(ARCHIVE))
    except SourceError as error:
        raise SourceError(
            f"the tweets are not in {path.parent}, and PyPI did not give them: {error}. Get a network, or "
            "adapt to your own file: ofa adapt FILE.csv"
        ) from error
    with tarfile.open(fileobj=archive) as tar:
        member = tar.extractfile(MEMBER)
        assert member is not None  # it is a file in the archive whose SHA-256 is pinned
        text = member.read()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # so that two first runs don't collide
        temporary = Path(folder) / path.name
        temporary.write_bytes(text)
        os.replace(temporary, path)
