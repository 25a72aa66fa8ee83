"""Seven jobs that have nothing in common, and what `fit` makes of each alone."""

import torch

import ofa
from ofa import Job, OFAConfig, Task
from tests.ofa.conftest import LABELS, TEXTS

TEMPLATE = "Review: {text}\nSentiment:"
SHOTS = [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]
PLAIN = Task("reviews", TEMPLATE, ("bad", "good"))
OTHER = Task("topics", "{text} It is about", ("good", "negative", "bad"))
WHOLE = Task("words", TEMPLATE, ("very good", "bad"), whole_words=True)

JOBS = [
    Job(PLAIN, SHOTS, OFAConfig(0.1, 0.05, epochs=3, batch_size=2, lr=1e-2)),
    Job(
        OTHER,
        SHOTS[:3],
        OFAConfig(0.0, 0.0, epochs=2, batch_size=None, lr=3e-2, weight_decay=0.1, trained_depth=0.5),
    ),
    Job(
        WHOLE,
        SHOTS[1:],
        OFAConfig(0.3, 0.2, n_probes=2, seed=4, epochs=2, batch_size=3, lr=5e-3, trained_depth=0.1),
    ),
    Job(
        PLAIN,
        SHOTS[2:],
        OFAConfig(0.0, 0.1, seed=2**70, sharpness_every=2, epochs=3, batch_size=2, loss_over="labels"),
    ),
    Job(PLAIN, SHOTS[:1], OFAConfig(0.2, 0.0, seed=9, epochs=5, batch_size=1, lr=2e-2, weight_decay=0.0)),
    Job(
        WHOLE,
        SHOTS,
        OFAConfig(0.0, 0.3, seed=7, epochs=20, batch_size=4, lr=1e-2, loss_over="labels"),
        max_steps=6,
    ),
    Job(OTHER, SHOTS[::-1], OFAConfig(0.1, -0.1, n_probes=2, seed=1, epochs=1, lr=1e-2, loss_over="labels")),
]


def gammas_of(model):
    return [norm.module.weight.detach().clone() for norm in ofa.patch_model(model).norms]


def alone(build, tokenizer, jobs=JOBS):
    """(γ, history) of each job, by `fit` on a model of its own."""
    found = []
    for job in jobs:
        model = build()
        options = {"progress": False, "max_steps": job.max_steps}
        result = ofa.fit(model, tokenizer, job.task, job.shots, job.config, **options)
        found.append((gammas_of(model), result.history))
    return found


def assert_same(results, expected):
    """Results of `fit_many` are those of `fit` but for rounding."""
    for result, (gammas, history) in zip(results, expected, strict=True):
        assert result.error is None
        torch.testing.assert_close(result.gammas, gammas, rtol=0, atol=1e-10)
        assert_same_history(result.history, history)


def assert_same_history(found, expected):
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for row, truth in zip(found, expected, strict=True):
        assert row.keys() == truth.keys()
        for name, value in truth.items():
            assert row[name] == value or abs(row[name] - value) <= 1e-10 * max(1, abs(value)), name


def assert_same_bits(results, expected):
    """Two sets of results of `fit_many`."""
    for result, other in zip(results, expected, strict=True):
        assert all(torch.equal(*pair) for pair in zip(result.gammas, other.gammas, strict=True))
        assert result.history == other.history
        assert (type(result.error), str(result.error)) == (type(other.error), str(other.error))
