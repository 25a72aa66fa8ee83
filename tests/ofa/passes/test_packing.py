import pytest
import torch

import ofa
from ofa.passes.packing import Packing, packed
from tests.ofa.conftest import build_llama, make_batch

CONFIG = ofa.OFAConfig(lambda_step=0.3, lambda_sharp=0.2, n_probes=2, seed=4)


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


def words_of_two_tokens():
    batch = make_batch((7, 4, 5))
    labels = torch.tensor([[5, -100], [6, 7], [8, 9]])
    for row, n in ((1, 4), (2, 5)):
        batch["input_ids"][row, n - 1] = labels[row, 0]
    return {**batch, "labels": labels}


@pytest.mark.parametrize(
    ("batch", "multiples", "shape"),
    [
        (make_batch((7, 5)), (8, 4), (16, 8)),
        (make_batch((3, 1, 4), "left"), (8, 4), (8, 4)),
        (make_batch((8, 8)), (12, 8), (24, 16)),  # without more places there were no padding to stand at
        (make_batch((8, 8)), (8, 4), (16, 8)),
        (make_batch((9,)), (8, 4), (16, 12)),
        (words_of_two_tokens(), (10, 4), (20, 8)),
    ],
    ids=["ragged", "as it is", "no padding", "full", "one", "words"],
)
def test_a_rounded_packing_changes_no_result(batch, multiples, shape):
    model = build_llama()
    weights = [norm.module.weight for norm in ofa.patch_model(model).norms]
    before = packed(batch)["packing"]
    after = before.rounded(*multiples)
    assert (len(after.input_ids), after.real.shape[1]) == shape
    found, expected = [], []
    for results, packing in ((found, after), (expected, before)):
        computed = ofa.objective(model, {**batch, "packing": packing}, CONFIG)
        results += [computed.loss, *computed.terms().values()]
        results += torch.autograd.grad(computed.loss, weights)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_added_rows_stand_at_padding_and_no_gradient_comes_from_there():
    packing = Packing.of(*(make_batch((3, 1, 4))[name] for name in ("input_ids", "attention_mask")))
    rounded = packing.rounded(6, 6)
    n_rows, n_added = len(packing.input_ids), 4
    assert len(rounded.input_ids) == n_rows + n_added and rounded.real.shape == (3, 6)
    assert not rounded.real.flatten()[rounded.place_of[n_rows:]].any()
    assert rounded.real.flatten()[rounded.place_of[:n_rows]].all()
    assert (rounded.row_of < n_rows).all(), "attention looks at none of them"
    assert torch.equal(rounded.lengths, packing.lengths) and torch.equal(rounded.following, packing.following)
    rows = torch.randn(n_rows + n_added, 2, requires_grad=True)
    padded, _, tail = rounded.unpack(rows)
    assert torch.equal(rounded.pack(padded, tail)[:n_rows], rows[:n_rows])
    (padded * rounded.real[..., None]).sum().backward()
    assert not rows.grad[n_rows:].any() and rows.grad[:n_rows].all()
