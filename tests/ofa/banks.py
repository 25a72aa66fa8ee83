"""Banks of a few unlike adapters, and what must stay as it is around them."""

import pytest
import torch

from ofa import AdapterBank, Task
from ofa.decoder.view import Decoder
from tests.ofa.conftest import TEXTS

TASKS = {
    "films": Task("t", "Review: {text}\nSentiment:", ("bad", "good")),
    "moods": Task("t", "Text: {text}\nThe mood is", ("dull", "warm", "funny")),
    "words": Task("t", "Review: {text}\nSentiment:", ("very good", "so", "very bad", "good"), True),
    "other films": Task("t", "Review: {text}\nSentiment:", ("bad", "good")),
}
NAMES = (*TASKS, *reversed(TASKS), "films", "films", "words", "moods")
MANY_TEXTS = (*TEXTS, *(f"{text} and {other}" for text, other in zip(TEXTS, reversed(TEXTS), strict=True)))


def random_gammas(model, seed):
    """γ of an adapter of the model: a tensor a norm."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.rand(norm.weight.shape, generator=generator, dtype=torch.float64) + 0.5
        for *_, norm in Decoder.of(model).named_norms()
    ]


def filled(model, tokenizer):
    bank = AdapterBank(model, tokenizer)
    for seed, (name, task) in enumerate(TASKS.items()):
        bank.add(name, random_gammas(model, seed), task)
    return bank


def assert_alike(found, expected, tolerance):
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=tolerance, abs=tolerance)


def state(model):
    """All that a bank must leave alone, γ's class and flags among it."""
    flags = [(name, p.requires_grad) for name, p in model.named_parameters()]
    classes = [type(module) for module in model.modules()]
    return flags, classes, {name: t.clone() for name, t in model.state_dict().items()}


def assert_same_state(model, before):
    flags, classes, tensors = state(model)
    assert flags == before[0] and classes == before[1]
    for name, tensor in tensors.items():
        assert torch.equal(tensor, before[2][name]), name
