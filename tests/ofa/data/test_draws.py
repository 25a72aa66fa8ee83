from collections import Counter

import pytest

from ofa.data.draws import draw_shots, draw_test, number_labels


def test_a_word_for_two_classes():
    with pytest.raises(ValueError, match="given twice: bad, bad"):
        number_labels([{"text": "x", "label": "bad"}], ["bad", "bad"])


@pytest.mark.parametrize(
    ("labels", "words", "expected"),
    [
        (["yes", "no", "yes"], None, ([1, 0, 1], ("no", "yes"))),
        (["yes", "no"], ["yes", "no"], ([0, 1], ("yes", "no"))),
        ([1, 0], ["no", "yes"], ([1, 0], ("no", "yes"))),
        ([1, 3], ["1", "2", "3"], ([0, 2], ("1", "2", "3"))),
        (["1", "0"], ["no", "yes"], ([1, 0], ("no", "yes"))),
        ([1, 5, 3], ["1=bad", "3=okay", "5=great"], ([0, 2, 1], ("bad", "okay", "great"))),
        (["1.0", "5.00"], ["1=bad", "5=great"], ([0, 1], ("bad", "great"))),
        (["1", "5"], ["1.0=bad", "5.0=great"], ([0, 1], ("bad", "great"))),
        (["-1", "1"], ["-1=bad", "1=great"], ([0, 1], ("bad", "great"))),
        (["0.5", "1.5"], ["0.5=low", "1.5=high"], ([0, 1], ("low", "high"))),
        (["neg", "good"], ["good", "neg=bad"], ([1, 0], ("good", "bad"))),
    ],
)
def test_labels_become_numbers(labels, words, expected):
    rows, found = number_labels([{"text": "t", "label": label} for label in labels], words)
    assert ([row["label"] for row in rows], found) == expected


@pytest.mark.parametrize(
    ("labels", "words", "message"),
    [
        ([0, 1], None, r"the labels are numbers \(0, 1\); .*--label-words 0=WORD,1=WORD$"),
        (["10", "9"], None, r"numbers \(9, 10\); .*--label-words 9=WORD,10=WORD"),
        (["1.0", "5"], None, r"numbers \(1, 5\); .*--label-words 1=WORD,5=WORD"),
        (["-1", "0.5"], None, r"numbers \(-1, 0.5\); .*--label-words -1=WORD,0.5=WORD"),
        (range(40), None, r"8, 9, …\); .*,9=WORD,…$"),
        ([1, 2], ["a", "b"], "unknown labels: 2; known are 0, 1.*--label-words 1=a,2=b"),
        ([1, 3], ["1=a", "2=b"], "unknown labels: 3; known are a, b"),
        (["a", "c"], ["a", "b"], "unknown labels: c; known are a, b"),
        ([0, 2], ["a", "b"], "unknown labels: 2; known are 0, 1"),
        (["a", "a"], None, "at least two classes"),
    ],
)
def test_labels_that_fit_no_class(labels, words, message):
    with pytest.raises(ValueError, match=message):
        number_labels([{"text": "t", "label": label} for label in labels], words)


def test_shots_are_balanced_shuffled_and_apart():
    rows = [{"text": str(i), "label": i % 2} for i in range(40)]
    shots, rest = draw_shots(rows, 5, seed=0, label_words=("a", "b"))
    assert Counter(shot["label"] for shot in shots) == {0: 5, 1: 5}
    assert sorted(int(row["text"]) for row in shots + rest) == list(range(40))
    assert draw_shots(rows, 5, 0, ("a", "b"))[0] == shots != draw_shots(rows, 5, 1, ("a", "b"))[0]
    orders = {tuple(s["label"] for s in draw_shots(rows, 5, seed, ("a", "b"))[0]) for seed in range(5)}
    assert len(orders) > 1


def test_a_class_that_is_too_small_is_named():
    rows = [{"text": str(i), "label": int(i == 0)} for i in range(9)]
    with pytest.raises(ValueError, match="class 'rare' has 1 example, and 5 per class are asked for"):
        draw_shots(rows, 5, 0, ("common", "rare"))


def test_the_test_rows_are_balanced_whatever_the_order():
    rows = [{"text": str(i), "label": int(i >= 300)} for i in range(600)]
    test = draw_test(rows, 200, seed=0, n_classes=2)
    assert Counter(row["label"] for row in test) == {0: 100, 1: 100}
    assert draw_test(rows, 200, 0, 2) == test != draw_test(rows, 200, 1, 2)
    few = draw_test(rows[:305], 200, 0, 2)
    assert Counter(row["label"] for row in few) == {0: 195, 1: 5}
    assert len(draw_test(rows, 1000, 0, 2)) == 600
