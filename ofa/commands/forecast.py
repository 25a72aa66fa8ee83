"""How long scoring many texts will take, from the first of them."""

import time
import warnings
from collections.abc import Sequence

from ofa.classifier import FewShotClassifier
from ofa.decoder.view import Decoder

N_TIMED = 32
WORTH_SAYING = 60  # seconds


def seconds_to_score(classifier: FewShotClassifier, texts: Sequence[str]) -> float:
    """The time of scoring all texts, by the time a token of the first 32; 0 where there are few more.

    Args:
        classifier: whose model is timed, as it is.
        texts: in no order of length or kind, so that the first are like the others.
    """
    if len(texts) < 2 * N_TIMED:
        return 0.0
    limit = Decoder.of(classifier.model_).max_tokens
    lengths = [min(len(ids), limit) for ids in classifier.tokenizer_(list(texts))["input_ids"]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of cut texts: the whole run tells their number
        classifier.label_scores(texts[:2], name="warming up")  # what only a first call does is not timed
        begin = time.perf_counter()
        classifier.label_scores(texts[:N_TIMED], name="timing")
        seconds = time.perf_counter() - begin
    return seconds * sum(lengths) / sum(lengths[:N_TIMED])


def in_words(seconds: float) -> str:
    """`3 minutes`, `2.5 hours`."""
    minutes = round(seconds / 60)
    if minutes >= 120:
        return f"{seconds / 3600:.1f} hours"
    return f"{minutes} minute{'s' * (minutes != 1)}"
