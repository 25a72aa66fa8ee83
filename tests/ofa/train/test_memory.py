"""What is run together fits, and nothing is left out."""

import pytest

from ofa.decoder.view import Decoder
from ofa.train import memory
from tests.ofa.conftest import build_llama
from tests.ofa.decoder.test_families import build


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (1, [["a"], ["b"], ["c"], ["d"]]),
        (7, [["a"], ["b", "c"], ["d"]]),
        (8, [["a", "b"], ["c"], ["d"]]),
        (20, [["a", "b", "c", "d"]]),
    ],
)
def test_rows_are_cut_where_they_have_too_many_tokens(limit, expected):
    assert list(memory.parts("abcd", (6, 2, 5, 7), limit)) == expected


@pytest.mark.parametrize("model", [build_llama(), build("gpt2")])
def test_a_token_takes_six_rows_of_the_state_and_three_of_the_mlp(model, monkeypatch):
    n_bytes = 3 * (6 * 24 + 3 * 40) * 8
    assert memory.bytes_per_token(Decoder.of(model)) == n_bytes
    monkeypatch.setattr(memory, "ACTIVATION_BYTES", 10 * n_bytes)
    assert memory.tokens_at_once(Decoder.of(model)) == 10
