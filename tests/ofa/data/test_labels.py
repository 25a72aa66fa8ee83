import numpy as np
import pytest

from ofa.data.labels import Classes

WORDS = ("bad", "good")


@pytest.mark.parametrize(
    ("found", "label_words", "labels", "words"),
    [
        (["b", "a", "b"], None, ("a", "b"), ("a", "b")),
        ([2, 10], None, (2, 10), ("2", "10")),
        ([True, False], None, (False, True), ("False", "True")),
        (["good", "bad"], WORDS, ("bad", "good"), WORDS),
        (["good", "bad"], ("good", "bad"), ("bad", "good"), WORDS),
        (["good"], ["ugly", "good", "bad"], ("bad", "good", "ugly"), ("bad", "good", "ugly")),
        ([0, 1], ("good", "bad"), (0, 1), ("good", "bad")),
        ([0, 2], ("x", "y", "z"), (0, 1, 2), ("x", "y", "z")),
        ([1, -1], WORDS, (-1, 1), WORDS),
        ([2, 1], WORDS, (1, 2), WORDS),
        ([True, False], WORDS, (False, True), WORDS),
        ([1.5, 0.5], WORDS, (0.5, 1.5), WORDS),
        (["pos", "neg"], WORDS, ("neg", "pos"), WORDS),
        ([("b", 1), ("a", 1)], WORDS, (("a", 1), ("b", 1)), WORDS),
        (["pos"], {"pos": "good", "neg": "bad"}, ("neg", "pos"), WORDS),
        ([1, "x"], None, (1, "x"), ("1", "x")),
    ],
)
def test_classes_are_sorted_and_have_their_words(found, label_words, labels, words):
    classes = Classes.of(found, label_words)
    assert classes == Classes(labels, words) and [*map(type, classes.labels)] == [*map(type, labels)]
    array = classes.array()
    assert array.shape == (len(labels),) and array.tolist() == list(labels)
    assert np.array_equal(array[classes.numbers(found)], np.fromiter(found, object, len(found)))


@pytest.mark.parametrize(
    ("found", "label_words", "error", "message"),
    [
        (["bad", "fair"], WORDS, ValueError, "unknown label 'fair'; known are 'bad', 'good'"),
        (["a", "b", "c"], WORDS, ValueError, "unknown label 'a'; known are 'bad', 'good'"),
        ([0, 1, 2], WORDS, ValueError, "unknown label 2; known are 0, 1"),
        ([True], WORDS, ValueError, "unknown label True"),
        ([0], {1: "good", 2: "bad"}, ValueError, "unknown label 0; known are 1, 2"),
        ([0, 1], "good", TypeError, "must be a list or a mapping, got the single 'good'"),
        (["x", "x"], None, ValueError, "one class only"),
        ([0.5, 1.5], None, ValueError, "continuous"),
    ],
)
def test_labels_without_a_word_are_refused(found, label_words, error, message):
    with pytest.raises(error, match=message):
        Classes.of(found, label_words)


def test_unknown_labels_have_no_number():
    assert Classes((0, 1), WORDS).numbers([1, 7, "x"]) == [1, -1, -1]
