"""Every reading of the terms against its definition, written out example by example, in float64."""

import math

import pytest
import torch

from ofa.ablation import AS_IT_IS, Ablation
from ofa.data.words import cross_entropies
from ofa.loss.forms import cross_entropies_of, sharpness_of, step_ratio_of

CLASSES = [7, 2, 5]


@pytest.fixture
def logits():
    torch.manual_seed(0)
    return torch.randn(4, 9, dtype=torch.float64)


@pytest.fixture
def products():
    torch.manual_seed(1)
    return torch.randn(3, 2, 4, dtype=torch.float64)  # [layers, probes, examples]


def test_the_loss_over_labels_is_over_their_tokens_alone(logits):
    labels = torch.tensor([2, 7, 5, 2])
    found = cross_entropies_of(Ablation(loss_over="labels"), logits, None, labels, CLASSES)
    for row, label, value in zip(logits.tolist(), labels.tolist(), found.tolist(), strict=True):
        total = sum(math.exp(row[token]) for token in CLASSES)
        assert value == pytest.approx(math.log(total) - row[label], rel=1e-12)


@pytest.mark.parametrize("over", ["vocabulary", "labels"])
def test_smoothing_spreads_its_share_over_all_that_the_loss_is_over(logits, over):
    labels, tokens = torch.tensor([2, 7, 5, 2]), CLASSES if over == "labels" else list(range(9))
    ablation = Ablation(loss_over=over, label_smoothing=0.3)
    found = cross_entropies_of(ablation, logits, None, labels, CLASSES)
    for row, label, value in zip(logits, labels.tolist(), found.tolist(), strict=True):
        log_probs = row[tokens].log_softmax(-1)
        expected = -0.7 * log_probs[tokens.index(label)] - 0.3 * log_probs.mean()
        assert value == pytest.approx(expected.item(), rel=1e-12)


def test_words_of_several_tokens_are_smoothed_token_by_token(logits):
    labels = torch.tensor([[2, 3], [7, -100], [5, 1], [2, -100]])
    following = torch.randn(4, 1, 9, dtype=torch.float64)
    found = cross_entropies_of(Ablation(label_smoothing=0.2), logits, following, labels, [])
    first, second = cross_entropies(logits, None, labels[:, 0], 0.2), following[:, 0].log_softmax(-1)
    for i, token in enumerate([3, None, 1, None]):
        more = 0 if token is None else -0.8 * second[i, token] - 0.2 * second[i].mean()
        torch.testing.assert_close(found[i], first[i] + more)


@pytest.mark.parametrize("first_layer", [1, 2, 3])
@pytest.mark.parametrize("form", ["plain", "log"])
def test_step_ratios(form, first_layer):
    ratios = torch.rand(3, 4, dtype=torch.float64) + 0.5
    found = step_ratio_of(Ablation(ratio_form=form, first_layer=first_layer), ratios)
    function = math.log if form == "log" else float
    for example, value in enumerate(found.tolist()):
        kept = [ratios[t, example].item() for t in range(first_layer - 1, 3)]
        assert value == pytest.approx(sum(map(function, kept)), rel=1e-12)


@pytest.mark.parametrize("first_layer", [1, 2, 3])
@pytest.mark.parametrize("form", ["plain", "positive", "relative"])
def test_sharpness(products, form, first_layer):
    found = sharpness_of(Ablation(trace_form=form, first_layer=first_layer), products)
    traces = [[-products[t, :, b].mean().item() for b in range(4)] for t in range(first_layer - 1, 3)]
    for b, value in enumerate(found.tolist()):
        if form == "positive":
            own = [max(layer[b], 0.0) for layer in traces]
        elif form == "relative":
            own = [layer[b] / (sum(map(abs, layer)) / 4) for layer in traces]
        else:
            own = [layer[b] for layer in traces]
        assert value == pytest.approx(sum(own) / len(own), rel=1e-12)


def test_no_gradient_goes_through_the_size_that_traces_are_relative_to(products):
    products.requires_grad_()
    (found,) = torch.autograd.grad(sharpness_of(Ablation(trace_form="relative"), products).sum(), products)
    sizes = products.detach().mean(1).abs().mean(1)
    torch.testing.assert_close(found, (-1 / (2 * 3 * sizes))[:, None, None].expand(3, 2, 4))


def test_the_defaults_are_the_method(logits, products):
    labels, ratios = torch.tensor([2, 7, 5, 2]), torch.rand(3, 4)
    own = cross_entropies_of(AS_IT_IS, logits, None, labels, CLASSES)
    assert torch.equal(own, cross_entropies(logits, None, labels))
    assert torch.equal(step_ratio_of(AS_IT_IS, ratios), ratios.sum(0))
    torch.testing.assert_close(sharpness_of(AS_IT_IS, products), -products.mean((0, 1)))
