"""Every reading of the terms against its definition, written out example by example, in float64."""

import math

import pytest
import torch

from ofa.ablation import AS_IT_IS, Ablation
from ofa.loss.forms import sharpness_of, step_ratio_of


@pytest.fixture
def products():
    torch.manual_seed(1)
    return torch.randn(3, 2, 4, dtype=torch.float64)  # [layers, probes, examples]


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


def test_the_defaults_are_the_method(products):
    ratios = torch.rand(3, 4)
    assert torch.equal(step_ratio_of(AS_IT_IS, ratios), ratios.sum(0))
    torch.testing.assert_close(sharpness_of(AS_IT_IS, products), -products.mean((0, 1)))
