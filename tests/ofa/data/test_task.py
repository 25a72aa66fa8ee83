import pytest

from ofa import Task

TEMPLATE = "Review: {text}\nSentiment:"


def test_label_tokens_follow_the_template(tokenizer, task):
    ids = task.label_ids(tokenizer)
    for word, token in zip(task.label_words, ids, strict=True):
        prompt = task.render("anything")
        whole = tokenizer(f"{prompt} {word}")["input_ids"]
        assert whole[len(tokenizer(prompt)["input_ids"])] == token
    assert len(set(ids)) == 2


def test_colliding_label_words_are_named_with_a_fix(tokenizer):
    with pytest.raises(
        ValueError,
        match=r"'good' and 'goodness' start with .* ' good', .*'Goodness' instead of 'goodness' would do",
    ):
        Task("t", TEMPLATE, ("good", "goodness")).label_ids(tokenizer)
    # neither word has a token of its own, so both start with the bare space, however they are written
    with pytest.raises(ValueError, match=r"'Xx' and 'XY' start with .*; use a synonym for 'XY'"):
        Task("t", TEMPLATE, ("Xx", "XY")).label_ids(tokenizer)


@pytest.mark.parametrize("end", [" ", "\n", "\t"])
def test_a_template_that_ends_in_white_space_is_refused(end):
    with pytest.raises(ValueError, match="must not end in white space"):
        Task("t", TEMPLATE + end, ("a", "b"))


def test_a_tokenizer_that_merges_template_and_word_is_refused(task):
    def one_token_per_text(text):
        return {"input_ids": [hash(text)]}

    with pytest.raises(ValueError, match="merges the end of the template"):
        task.label_ids(one_token_per_text)


@pytest.mark.parametrize("template", ["no field", "{text} twice {text}"])
def test_the_template_needs_one_text(template):
    with pytest.raises(ValueError, match=r"\{text\} exactly once"):
        Task("t", template, ("a", "b"))


@pytest.mark.parametrize("words", [(), ("one",), ("a", " ")])
def test_two_full_label_words_are_needed(words):
    with pytest.raises(ValueError, match="at least two label words"):
        Task("t", TEMPLATE, words)


@pytest.mark.parametrize(("words", "message"), [("ab", "got the single 'ab'"), ((0, 1), r"got 0 \(int\)")])
def test_label_words_are_a_list_of_strings(words, message):
    with pytest.raises(TypeError, match=message):
        Task("t", TEMPLATE, words)


def test_braces_in_texts_and_templates_stay(task):
    assert task.render("{x} {text}") == "Review: {x} {text}\nSentiment:"
    assert Task("t", '{"a": "{text}"} is', ("a", "b")).render("y") == '{"a": "y"} is'


def test_demonstrations(task, shots):
    assert task.demonstrations(shots[:2]) == (
        f"Review: {shots[0]['text']}\nSentiment: good\nReview: {shots[1]['text']}\nSentiment: bad\n"
    )


def test_long_texts_lose_their_left_end_and_nothing_else(tokenizer, task):
    text = " ".join(f"w{i}" for i in range(100))
    prompt = task.encode(tokenizer, text, max_tokens=40, before="Before.\n")
    shown = tokenizer.decode(prompt.ids)
    assert len(prompt.ids) <= 40 and prompt.n_dropped > 0
    assert shown.startswith("Before.\nReview: ") and shown.endswith("w99\nSentiment:") and "w0 " not in shown
    kept = len(tokenizer(shown.removeprefix("Before.\nReview: ").removesuffix("\nSentiment:"))["input_ids"])
    assert len(prompt.ids) >= 36, "more was cut than needed"
    assert kept + prompt.n_dropped >= len(tokenizer(text)["input_ids"]) - 1


def test_short_texts_are_whole(tokenizer, task):
    prompt = task.encode(tokenizer, "fine", max_tokens=64)
    assert prompt.n_dropped == 0 and tokenizer.decode(prompt.ids) == "Review: fine\nSentiment:"


def test_a_context_that_holds_no_text_is_an_error(tokenizer, task):
    with pytest.raises(ValueError, match="fill the context of 3 tokens"):
        task.encode(tokenizer, "fine", max_tokens=3)
