import warnings

import pytest

from ofa.data.languages import warn_of_unknown_language

ENGLISH = "the second half never ends, and every scene earns its place"
CHINESE = "这部电影非常无聊，二十分钟后我就离开了"
HEBREW = "הסרט היה משעמם מאוד"


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (
            [CHINESE],
            r"^100% of the texts' tokens are pieces of single characters \(3\.0 tokens a character\)",
        ),
        ([ENGLISH, CHINESE, HEBREW, CHINESE], "% of the texts' tokens are pieces"),
        # past the first hundred, in a sample that is spread over all
        ([ENGLISH] * 150 + [CHINESE] * 150, "pieces of single characters"),
    ],
)
def test_texts_read_byte_by_byte(tokenizer, texts, message):
    with pytest.warns(UserWarning, match=message + ".*take a multilingual model"):
        warn_of_unknown_language(tokenizer, texts)


@pytest.mark.parametrize(
    "texts", [[], [""], [ENGLISH], [ENGLISH] * 300, ["love it 😍", ENGLISH], ["123 456"]]
)
def test_texts_that_are_read_well(tokenizer, texts):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_unknown_language(tokenizer, texts)


class ByCharacter:
    """A token a character, none of them a fragment, as small tokenizers read other alphabets."""

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [ord(sign) for sign in text if not sign.isspace()]}

    def decode(self, ids):
        return "".join(map(chr, ids))


@pytest.mark.parametrize(
    ("text", "warned"),
    [
        (HEBREW, True),
        ("Фильм был очень скучным", True),
        ("كان الفيلم مملا جدا", True),
        (CHINESE, False),
        ("이 영화는 매우 지루해서", False),
        (ENGLISH, False),
        ("Bộ phim này rất hay", False),
        ("12:30 !?", False),
    ],
)
def test_a_token_a_letter_is_a_sign_in_other_alphabets(text, warned):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        warn_of_unknown_language(ByCharacter(), [text])
    assert [str(w.message)[:39] for w in found] == ["the texts take about a token a letter ("] * warned


def test_the_same_texts_are_worth_one_warning(tokenizer):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("default")
        for _ in range(3):
            warn_of_unknown_language(tokenizer, [CHINESE])
    assert len(found) == 1
