import pytest
import torch

from ofa.passes.packing import Packing
from tests.ofa.conftest import make_batch


@pytest.mark.parametrize("side", ["left", "right"])
def test_prediction_tokens_come_first_and_padding_is_gone(side):
    batch = make_batch((3, 1, 4), side)
    packing = Packing.of(batch["input_ids"], batch["attention_mask"])
    rows = [ids[mask.bool()] for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    expected = torch.cat([torch.stack([row[-1] for row in rows]), *(row[:-1] for row in rows)])
    assert torch.equal(packing.input_ids, expected)
    assert packing.positions.tolist() == [2, 0, 3, 0, 1, 0, 1, 2]
    assert packing.lengths.tolist() == [3, 1, 4] and packing.n_examples == 3


def test_a_mask_with_holes_keeps_the_order_of_real_tokens():
    packing = Packing.of(torch.tensor([[7, 8, 9, 6]]), torch.tensor([[1, 0, 1, 1]]))
    assert packing.input_ids.tolist() == [6, 7, 9] and packing.positions.tolist() == [2, 0, 1]


def test_unpack_and_pack_move_rows_and_their_gradients():
    batch = make_batch((3, 1, 4))
    packing = Packing.of(batch["input_ids"], batch["attention_mask"])
    rows = torch.randn(8 + 5, 2, 3, dtype=torch.float64, requires_grad=True)
    padded, own, tail = packing.unpack(rows)
    assert padded.shape == (3, 4, 2, 3)
    assert torch.equal(own, rows[:3]) and torch.equal(tail, rows[8:])
    assert torch.equal(packing.pack(padded, tail), rows)
    for i, n in enumerate(packing.lengths):
        assert torch.equal(padded[i, n - 1], own[i])

    real = packing.real[..., None, None]

    def real_places(rows):
        padded, own, tail = packing.unpack(rows)
        return padded * real, own, tail  # attention sends no gradient to padding either

    torch.autograd.gradcheck(real_places, rows)
    padded, tail = padded.detach().requires_grad_(), tail.detach().requires_grad_()
    torch.autograd.gradcheck(packing.pack, (padded, tail))


def test_what_is_no_batch_is_refused():
    ids = torch.ones(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"must both be \[B, T\]"):
        Packing.of(ids, torch.ones(2, 4))
    with pytest.raises(ValueError, match="example 1 of the batch has no real token"):
        Packing.of(ids, torch.tensor([[0, 1, 1], [0, 0, 0]]))
