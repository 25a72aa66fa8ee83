import pytest
import torch

from ofa.data.batch import labelled
from ofa.decoder.view import Decoder
from ofa.passes.fast import stacked_pass
from ofa.passes.packing import Packing
from ofa.passes.shared_packing import SharedPacking
from tests.ofa.conftest import build_llama

CPU = torch.device("cpu")
PROMPTS = [[5, 9, 41, 7], [5, 9, 41, 7], [5, 9, 8], [5, 9, 41, 7, 3], [4], [5, 9, 41, 7]]
ONE_TOKEN = [[60]] * len(PROMPTS)
WORDS = [[60, 61, 62], [60, 64], [70], [60], [60, 61], [60, 61, 62]]


@pytest.mark.parametrize("words", [ONE_TOKEN, WORDS], ids=["one token", "words"])
def test_without_anything_to_share_a_packing_is_the_usual_one(words):
    batch = labelled(PROMPTS, words, CPU)
    usual = Packing.of(batch["input_ids"], batch["attention_mask"], batch["labels"])
    found = SharedPacking.of_prompts(PROMPTS, words, range(len(PROMPTS)), CPU)
    for name, expected in vars(usual).items():
        assert torch.equal(getattr(found, name), expected), name


@pytest.mark.parametrize(
    ("words", "groups", "n_rows"),
    [
        (ONE_TOKEN, [0] * 6, 6 + 4),  # the prediction tokens, and 5 9 41 7
        (ONE_TOKEN, [0, 0, 0, 1, 1, 1], 6 + 3 + 4),
        (WORDS, [0] * 6, 6 + 4 + 6),  # the further tokens are each example's own
    ],
)
def test_what_a_group_begins_with_has_its_rows_once(words, groups, n_rows):
    packing = SharedPacking.of_prompts(PROMPTS, words, groups, CPU)
    assert len(packing.input_ids) == len(packing.positions) == len(packing.place_of) == n_rows
    longest, seen = packing.real.shape[1], set()
    for i, (prompt, word) in enumerate(zip(PROMPTS, words, strict=True)):
        ids = prompt + word[:-1]
        rows = packing.row_of[i, : len(ids)]
        assert packing.input_ids[rows].tolist() == ids
        assert packing.positions[rows].tolist() == [*range(len(ids))]
        assert rows[len(prompt) - 1] == i, "the prediction tokens come first"
        for place, row in enumerate(rows.tolist()):
            if row not in seen:  # the first example that has it
                assert packing.place_of[row] == i * longest + place
            assert groups[packing.example_of[row]] == groups[i]
            seen.add(row)
        padding = packing.row_of[i, len(ids) :]
        assert (padding == i).all(), "at padding stands a row of the example"
    assert seen == set(range(n_rows))


@pytest.mark.parametrize("words", [ONE_TOKEN, WORDS], ids=["one token", "words"])
@pytest.mark.parametrize("rounded", [False, True])
def test_shared_rows_give_the_results_of_separate_ones(words, rounded):
    decoder = Decoder.of(build_llama())
    with torch.no_grad():
        expected = stacked_pass(decoder, labelled(PROMPTS, words, CPU))
        packing = SharedPacking.of_prompts(PROMPTS, words, [0] * len(PROMPTS), CPU)
        found = stacked_pass(decoder, {"packing": packing.rounded(7, 5) if rounded else packing})
    for name in ("z", "logits", "following"):
        one, other = getattr(found, name), getattr(expected, name)
        assert (one is None) == (other is None) == (name == "following" and words is ONE_TOKEN)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_no_gradient_comes_through_shared_rows():
    decoder = Decoder.of(build_llama())
    packing = SharedPacking.of_prompts(PROMPTS, ONE_TOKEN, [0] * len(PROMPTS), CPU)
    for at in (packing, packing.rounded(8, 8)):
        with pytest.raises(RuntimeError, match=r"is for inference: run it under torch\.no_grad"):
            stacked_pass(decoder, {"packing": at})
