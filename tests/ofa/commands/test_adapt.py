import io
from collections import Counter

import pytest
from rich.console import Console

from ofa.commands import adapt

WORDS = ("bad", "good")


def rows(*counts):
    return [{"text": f"{label} {i}", "label": label} for label, n in enumerate(counts) for i in range(n)]


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=200)


@pytest.mark.parametrize(
    ("counts", "asked", "tested", "said"),
    [
        ((3995, 4005), "500", {0: 250, 1: 250}, "tested on 500 of 7,990 other rows, classes balanced;"),
        ((300, 16), "100", {0: 89, 1: 11}, "100 of 306 other rows, classes as balanced as the rows allow"),
        ((300, 5), "100", {0: 100}, "100 of 295 other rows, classes as balanced as the rows allow"),
        ((3000, 2000), "all", {0: 2995, 1: 1995}, ""),
        ((20, 20), "500", {0: 15, 1: 15}, ""),
        ((20, 20), "0", {}, ""),
    ],
)  # fmt: skip
def test_what_is_tested_and_of_how_many(console, counts, asked, tested, said):
    shots, test = adapt.draw(rows(*counts), WORDS, 5, adapt.n_to_test(asked), 0, console)
    assert Counter(shot["label"] for shot in shots) == {0: 5, 1: 5}
    assert Counter(row["label"] for row in test) == tested
    assert not {row["text"] for row in shots} & {row["text"] for row in test}
    output = console.file.getvalue()
    assert said in output and bool(output) == bool(said)


@pytest.mark.parametrize("text", ["", "some", "-1", "1.5", "all of them"])
def test_what_is_no_number_of_test_rows(text):
    with pytest.raises(ValueError, match="--test must be a number of rows, or all, got"):
        adapt.n_to_test(text)


def test_the_first_of_all_rows_are_like_the_others(console):
    _, test = adapt.draw(rows(300, 300), WORDS, 5, None, 0, console)
    assert Counter(row["label"] for row in test[:32]) == {0: 16, 1: 16}
