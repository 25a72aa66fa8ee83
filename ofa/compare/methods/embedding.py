"""A sentence encoder and logistic regression: no language model."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from sklearn.linear_model import LogisticRegression

from ofa.compare.encoder import NAME, SHA256, Encoder, load_encoder, missing_encoder
from ofa.compare.methods.base import Fitted, Setting, Track
from ofa.compare.methods.regression import class_labels, log_probs, n_weights
from ofa.scoring import Scores


def scorer(encoder: Encoder, regression: LogisticRegression) -> Callable[[Sequence[str], Track], Scores]:
    """Scores of bare texts by a regression on their embeddings."""

    def scored(texts: Sequence[str], track: Track = iter) -> Scores:
        vectors, n_truncated = encoder.embed(texts, track)
        return Scores(log_probs(regression, vectors), n_truncated)

    return scored


class Embedding:
    """Logistic regression on the embeddings that all-MiniLM-L6-v2 gives the bare texts.

    The encoder stays as it is (Reimers and Gurevych 2019; Wang et al. 2020). Template, label words and
    protocol change nothing.
    """

    name = "embedding"

    def missing(self) -> str | None:
        """Why the encoder can't be had, or None."""
        return missing_encoder()

    @contextmanager
    def fit(self, setting: Setting) -> Iterator[Fitted]:
        """Fit the regression.

        Raises:
            SourceError: the encoder can't be had.
            ValueError: an unknown label, or a class without a shot.
        """
        labels = class_labels(setting)
        encoder = load_encoder(setting.decoder.device)
        vectors, _ = encoder.embed([shot["text"] for shot in setting.shots])
        regression = LogisticRegression(max_iter=1000).fit(vectors, labels)
        notes = {"encoder": NAME, "encoder_sha256": SHA256}
        yield Fitted(scorer(encoder, regression), n_weights(regression), notes=notes)
