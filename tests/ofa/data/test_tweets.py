import io
import tarfile
import zipfile
from collections import Counter
from contextlib import contextmanager

import pytest

from ofa.data import tweets
from ofa.download import SourceError, cache_dir, sha256

LINES = ["1\t2.5\tlovely", "2\t-1.25\tawful", "3\t0\tneither", "4\t0.1\tfine"]


@pytest.fixture
def sdist(tmp_path, monkeypatch):
    """A file of the real one's form, with rows of its own."""
    monkeypatch.setenv("OFA_CACHE", str(tmp_path / "cache"))
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as tar:
        info = tarfile.TarInfo(tweets.MEMBER)
        content = "\n".join(LINES).encode()
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    path = tmp_path / "sdist.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(tweets.ARCHIVE, inner.getvalue())
    calls = []

    @contextmanager
    def give(requirement, *options):
        calls.append(requirement)
        yield path

    monkeypatch.setattr(tweets, "pip_download", give)
    monkeypatch.setattr(tweets, "SDIST_SHA256", sha256(path))
    return calls


def test_the_sign_is_the_class_and_zero_is_left_out(sdist):
    expected = [("lovely", 1), ("awful", 0), ("fine", 1)]
    assert [(row["text"], row["label"]) for row in tweets.load_tweets()] == expected
    assert len(tweets.load_tweets()) == 3 and len(sdist) == 1, "the second call reads the cache"
    assert sdist[0].startswith("vaderSentiment==0.5 --hash=sha256:")


def test_another_file_is_refused_and_not_kept(sdist, monkeypatch):
    monkeypatch.setattr(tweets, "SDIST_SHA256", "0" * 64)
    with pytest.raises(SourceError, match=r"PyPI did not give them: .*not the pinned file.*ofa adapt FILE"):
        tweets.load_tweets()
    assert not cache_dir().exists()


def test_the_test_set_is_balanced_fixed_and_apart():
    rows = [{"text": str(i), "label": int(i % 3 > 0)} for i in range(1200)]
    test, pool = tweets.split_tweets(rows)
    assert Counter(row["label"] for row in test) == {0: 250, 1: 250}
    assert not {row["text"] for row in test} & {row["text"] for row in pool}
    assert tweets.split_tweets(rows) == (test, pool)
