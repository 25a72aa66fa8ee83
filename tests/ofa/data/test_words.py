"""The cross-entropy in every form, against its definition written out example by example, in float64."""

import math

import pytest
import torch

from ofa.data.words import cross_entropies, cross_entropy

CLASSES = torch.tensor([[7, 2, 5], [7, 2, 5], [7, 5, -100], [2, 8, 4]])
LABELS = torch.tensor([2, 7, 5, 2])


@pytest.fixture
def logits():
    torch.manual_seed(0)
    return torch.randn(4, 9, dtype=torch.float64)


def allowed(over):
    """The tokens that each example's loss is over."""
    rows = CLASSES.tolist() if over == "classes" else [list(range(9))] * 4
    return [[token for token in row if token >= 0] for row in rows]


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("over", ["vocabulary", "classes"])
def test_it_is_over_what_it_is_told_from(logits, over, smoothing):
    classes = CLASSES if over == "classes" else None
    found = cross_entropies(logits, None, LABELS, classes, smoothing)
    for row, label, tokens, value in zip(logits.tolist(), LABELS.tolist(), allowed(over), found, strict=True):
        total = math.log(sum(math.exp(row[token]) for token in tokens))
        mean = sum(row[token] for token in tokens) / len(tokens)
        expected = total - (1 - smoothing) * row[label] - smoothing * mean
        assert value.item() == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(
        cross_entropy(logits, None, LABELS), cross_entropies(logits, None, LABELS).mean()
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_gradients_are_right_and_reach_no_other_token(logits, smoothing):
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: cross_entropies(x, None, LABELS, CLASSES, smoothing), logits)
    (gradient,) = torch.autograd.grad(cross_entropies(logits, None, LABELS, CLASSES, smoothing).sum(), logits)
    for row, tokens in zip(gradient, allowed("classes"), strict=True):
        others = [token for token in range(9) if token not in tokens]
        assert row[tokens].all() and not row[others].any()


def test_a_label_that_is_none_of_the_classes_is_not_taken_for_one(logits):
    found = cross_entropies(logits, None, torch.tensor([2, 3, 5, 2]), CLASSES)
    assert found.isnan().tolist() == [False, True, False, False]


def test_words_of_several_tokens_are_smoothed_token_by_token(logits):
    labels = torch.tensor([[2, 3], [7, -100], [5, 1], [2, -100]])
    following = torch.randn(4, 1, 9, dtype=torch.float64)
    found = cross_entropies(logits, following, labels, label_smoothing=0.2)
    first, second = (
        cross_entropies(logits, None, labels[:, 0], label_smoothing=0.2),
        following[:, 0].log_softmax(-1),
    )
    for i, token in enumerate([3, None, 1, None]):
        more = 0 if token is None else -0.8 * second[i, token] - 0.2 * second[i].mean()
        torch.testing.assert_close(found[i], first[i] + more)


def test_sixteen_bit_logits_are_summed_in_float32(logits):
    half = logits.bfloat16()
    for classes in (None, CLASSES):
        found = cross_entropies(half, None, LABELS, classes)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, cross_entropies(half.float(), None, LABELS, classes))
