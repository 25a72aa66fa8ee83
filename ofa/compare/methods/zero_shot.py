"""Nothing is learned: the prompt alone."""

from collections.abc import Iterator
from contextlib import contextmanager

from ofa.compare.methods.base import Fitted, Setting


class ZeroShot:
    """The template alone (protocol B makes it in-context learning)."""

    name = "zero-shot"

    @contextmanager
    def fit(self, setting: Setting) -> Iterator[Fitted]:
        """Ready at once."""
        yield Fitted(setting.scorer())
