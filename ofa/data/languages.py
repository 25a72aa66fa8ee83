"""Whether a tokenizer knows the script of some texts."""

import unicodedata
import warnings
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

N_TEXTS = 100
FRAGMENTS = 0.5  # of the tokens
TOKENS_PER_LETTER = 0.9


def warn_of_unknown_language(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> None:
    """Warn where a model reads the texts byte by byte, so that adapting it will hardly help.

    The signs are that more than half of the tokens are parts of a character, or that texts in an alphabet
    other than the Latin one take a token a letter. Up to 100 of the texts are looked at, evenly spread.

    Args:
        tokenizer: the model's.
        texts: what the model is to be adapted to.
    """
    sample = texts[:: -(-len(texts) // N_TEXTS) or 1]
    ids = [i for text in sample for i in tokenizer(text, add_special_tokens=False)["input_ids"]]
    if not ids:
        return
    decoded = {i: tokenizer.decode([i]) for i in set(ids)}
    share = sum("\ufffd" in decoded[i] for i in ids) / len(ids)
    signs = [sign for text in sample for sign in text if not sign.isspace()]
    per_sign = len(ids) / max(len(signs), 1)
    if share > FRAGMENTS:
        finding = f"{share:.0%} of the texts' tokens are pieces of single characters"
    elif per_sign >= TOKENS_PER_LETTER and _is_another_alphabet(signs):
        finding = "the texts take about a token a letter"
    else:
        return
    # no stacklevel: the same texts are worth one warning, whoever asks
    warnings.warn(
        f"{finding} ({per_sign:.1f} tokens a character): the model was hardly trained on their language, and "
        "adapting it is unlikely to help; take a multilingual model (--model)",
        stacklevel=1,
    )


def _is_another_alphabet(signs: Sequence[str]) -> bool:
    """Whether most letters are neither Latin nor wide; Chinese takes a token a character in any model."""
    letters = [sign for sign in signs if sign.isalpha()]
    others = [
        letter
        for letter in letters
        if not unicodedata.name(letter, "").startswith("LATIN")
        and unicodedata.east_asian_width(letter) not in "WF"
    ]
    return len(others) > len(letters) / 2
