"""A classification task as a language model sees it: a template and one label word per class."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

from transformers import PreTrainedTokenizerBase

FIELD = "{text}"


@dataclass(frozen=True)
class Prompt:
    """Token ids of one prompt; `n_dropped` text tokens were cut off on the left to fit the context."""

    ids: list[int]
    n_dropped: int = 0


def count_truncated(prompts: Sequence[Prompt]) -> int:
    """How many texts were cut, with a warning if any was."""
    n = sum(prompt.n_dropped > 0 for prompt in prompts)
    if n:
        warnings.warn(
            f"{n} of {len(prompts)} texts were longer than the context and lost their beginning", stacklevel=3
        )
    return n


def _beginnings(words: Sequence[list[int]]) -> list[tuple[int, int]]:
    """Pairs of different places whose first word begins the second, or equals it."""
    return [
        (i, j)
        for j, long in enumerate(words)
        for i, word in enumerate(words)
        if i != j and long[: len(word)] == word
    ]


@dataclass(frozen=True)
class Task:
    r"""Template and label words.

    Attributes:
        name: for tables and files.
        template: holds `{text}` once and ends where the label word follows, for example
            `"Review: {text}\nSentiment:"`. No chat template is added.
        label_words: one word per class, in label order.
        whole_words: train on and score all tokens of a word; else its first only, which must then tell the
            words apart.
    """

    name: str
    template: str
    label_words: Sequence[str]
    whole_words: bool = False

    def __post_init__(self):
        if isinstance(self.label_words, str):
            raise TypeError(f"label_words must be a list, got the single {self.label_words!r}")
        object.__setattr__(self, "label_words", tuple(self.label_words))
        if self.template.count(FIELD) != 1:
            raise ValueError(f"the template must hold {FIELD} exactly once, got {self.template!r}")
        if self.template != self.template.rstrip():
            raise ValueError(
                f"the template {self.template!r} must not end in white space: label words bring their own"
            )
        for word in self.label_words:
            if not isinstance(word, str):
                raise TypeError(f"label words must be strings, got {word!r} ({type(word).__name__})")
        if len(self.label_words) < 2 or not all(word.strip() for word in self.label_words):
            raise ValueError(f"at least two label words are needed, none empty, got {self.label_words}")

    def render(self, text: str) -> str:
        """The prompt for one text."""
        if not text.strip():
            raise ValueError("a text is empty; remove it or fill it in")
        return self.template.replace(FIELD, text)

    def demonstrations(self, shots: Sequence[dict]) -> str:
        """The shots with their label words, one below the other, ready to precede a prompt."""
        return "".join(f"{self.render(s['text'])} {self.label_words[s['label']]}\n" for s in shots)

    def check_labels(self, shots: Sequence[dict]) -> None:
        """Raise ValueError for a label that is no class number."""
        for i, shot in enumerate(shots):
            label = shot["label"]
            if (
                isinstance(label, bool)
                or not isinstance(label, int)
                or not 0 <= label < len(self.label_words)
            ):
                raise ValueError(
                    f"example {i} has the unknown label {label!r}; known are 0 to "
                    f"{len(self.label_words) - 1} for {', '.join(self.label_words)}"
                )

    def label_ids(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """The first token of each label word where it follows the template (with the space it needs).

        Raises:
            ValueError: two words start with the same token (a fix is suggested), or the template's end
                merges with the word.
        """
        ids: dict[int, str] = {}
        for word in self.label_words:
            token = self._first_token(tokenizer, word)
            if token in ids:
                raise ValueError(
                    f"label words {ids[token]!r} and {word!r} start with the same token "
                    f"{tokenizer.decode([token])!r}, so no score can tell them apart; "
                    f"{self._suggestion(tokenizer, word)}, or whole_words=True"
                )
            ids[token] = word
        return list(ids)

    def word_ids(self, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
        """All tokens of each label word where it follows the template.

        Where one word begins another (`good`, `good one`), the shorter would always be the likelier; then
        each word is followed by the line's end, as in demonstrations.

        Raises:
            ValueError: two words have the same tokens, or the template's end merges with a word.
        """
        words = [self._tokens(tokenizer, word) for word in self.label_words]
        if _beginnings(words):
            words = [self._tokens(tokenizer, f"{word}\n") for word in self.label_words]
        for i, j in _beginnings(words):
            raise ValueError(
                f"the tokens of label word {self.label_words[i]!r} begin those of {self.label_words[j]!r}, "
                "so no score can tell them apart; use a synonym"
            )
        return words

    def target_ids(self, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
        """The tokens of each label word that are trained on and scored: its first, or all of them.

        Raises:
            ValueError: these can't tell the words apart, or the template's end merges with a word.
        """
        if self.whole_words:
            return self.word_ids(tokenizer)
        return [[token] for token in self.label_ids(tokenizer)]

    def told_apart(self, tokenizer: PreTrainedTokenizerBase) -> "Task":
        """The same task, with whole words where first tokens can't tell them apart; a warning says so."""
        first: dict[int, str] = {}
        for word in self.label_words:
            other = first.setdefault(self._first_token(tokenizer, word), word)
            if other != word:
                warnings.warn(
                    f"label words {other!r} and {word!r} start with the same token, so words are trained "
                    "on and scored whole, token by token",
                    stacklevel=2,
                )
                return replace(self, whole_words=True)
        return self

    def _first_token(self, tokenizer: PreTrainedTokenizerBase, word: str) -> int:
        return self._tokens(tokenizer, word)[0]

    def _tokens(self, tokenizer: PreTrainedTokenizerBase, word: str) -> list[int]:
        prompt = self.render("text")
        before, after = tokenizer(prompt)["input_ids"], tokenizer(f"{prompt} {word}")["input_ids"]
        if after[: len(before)] != before or len(after) == len(before):
            raise ValueError(
                f"the tokenizer merges the end of the template {self.template!r} with the label word "
                f"{word!r}; let the template end in a character such as ':'"
            )
        return after[len(before) :]

    def _suggestion(self, tokenizer: PreTrainedTokenizerBase, word: str) -> str:
        taken = {self._first_token(tokenizer, other) for other in self.label_words}
        for variant in (word.capitalize(), word.lower(), word.upper()):
            if self._first_token(tokenizer, variant) not in taken:
                return f"{variant!r} instead of {word!r} would do, or a synonym"
        return f"use a synonym for {word!r}"

    def encode(
        self, tokenizer: PreTrainedTokenizerBase, text: str, max_tokens: int, before: str = ""
    ) -> Prompt:
        """Tokenise `before` + the prompt, cutting the text from the left where the context is too short.

        The template, with its label prompt, and `before` are never cut.

        Raises:
            ValueError: the text is empty, or nothing is left of it that fits.
        """
        ids = tokenizer(before + self.render(text))["input_ids"]
        if len(ids) <= max_tokens:
            return Prompt(ids)
        text_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        n_dropped = len(ids) - max_tokens
        while n_dropped < len(text_ids):
            rest = cast(str, tokenizer.decode(text_ids[n_dropped:])).lstrip()
            if rest:
                ids = tokenizer(before + self.render(rest))["input_ids"]
                if len(ids) <= max_tokens:
                    return Prompt(ids, n_dropped)
            n_dropped += max(1, len(ids) - max_tokens)
        raise ValueError(
            f"a text of {len(text_ids)} tokens can't be cut to fit: the template and what precedes it fill "
            f"the context of {max_tokens} tokens; use fewer demonstrations or a shorter template"
        )
