"""What a step does within its graph: the same at every replay, without a wait, leaving nothing behind."""

import gc
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

import ofa
from ofa.config import OFAConfig
from ofa.decoder.families import FAMILIES
from ofa.loss.objective import objective
from ofa.train import captured
from ofa.train import fit as trainer
from ofa.train.adamw import AdamWUpdate
from ofa.train.captured import Captured
from tests.fake_gpu import fake_gpu, is_on_gpu
from tests.ofa.conftest import build_llama
from tests.ofa.decoder.test_families import build
from tests.ofa.train.graphs import Watch, stand_in

CONFIG = OFAConfig(epochs=5, batch_size=4, lr=1e-2, lambda_step=0.1, lambda_sharp=0.1, cuda_graph=True)


@pytest.fixture
def fit(tokenizer, task, shots):
    def fit(config, device="cpu", n_shots=None, model=None):
        model = (model or build_llama(torch.float32)).to(device)
        return ofa.fit(model, tokenizer, task, shots[:n_shots], config, progress=False)

    return fit


def doing(monkeypatch, extra):
    """Let every step compute something more: `extra` takes the loss, the batch and the step's number."""

    def more(model, batch, cfg, step):
        terms = objective(model, batch, cfg, step)
        return replace(terms, loss=extra(terms.loss, batch, step))

    monkeypatch.setattr(trainer, "objective", more)


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        replace(CONFIG, lambda_step=0, lambda_sharp=0),
        replace(CONFIG, n_probes=4, weight_decay=0),
        replace(CONFIG, sharpness_every=2),
    ],
    ids=["both terms", "cross-entropy", "four probes", "sharpness at times"],
)
def test_all_steps_of_a_shape_launch_the_same_on_the_same_memory(fit, monkeypatch, reference_backend, config):
    watch = Watch()
    graphs = stand_in(monkeypatch, watch, rounding=(16, 16))
    fit(config)
    assert graphs.n_replays >= 4 and watch.faults == set()
    assert all(len(recorders) > 2 for recorders in watch.recorders.values())


@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if family.fast_pass])
def test_every_stacked_family_can_be_captured(fit, monkeypatch, reference_backend, family):
    watch = Watch()
    stand_in(monkeypatch, watch, rounding=(16, 16))
    fit(replace(CONFIG, epochs=2, batch_size=3), model=build(family, torch.float32))
    assert watch.faults == set()


def test_the_next_batch_is_packed_before_the_step_is_waited_for(fit, monkeypatch):
    events = []

    def noting(name, function):
        def noted(*arguments):
            events.append(name)
            return function(*arguments)

        return noted

    for owner, name in ((Captured, "_pack"), (Captured, "_launch"), (captured, "check_finite")):
        monkeypatch.setattr(owner, name, noting(name, getattr(owner, name)))
    stand_in(monkeypatch)
    fit(replace(CONFIG, epochs=2))
    step = ["_launch", "_pack", "check_finite"]
    assert events == ["_pack", *step * 3, "_launch", "check_finite"]


KEPT = []
COUNTED = iter(range(10**6))
FAULTS = {
    "item": (lambda loss, *_: loss + 0 * loss.item(), "_local_scalar_dense waits"),
    "a condition": (lambda loss, *_: loss if loss < 1e9 else 0 * loss, "_local_scalar_dense waits"),
    "nonzero": (lambda loss, batch, _: loss + 0 * batch["labels"].nonzero().sum(), "nonzero waits"),
    "a mask": (lambda loss, batch, _: loss + 0 * batch["labels"][batch["labels"] > 0].sum(), "index waits"),
    "host memory": (lambda loss, *_: loss * torch.tensor(1.0), "lift_fresh waits"),
    "a result kept": (lambda loss, *_: KEPT.append(loss.detach()) or loss, "lives on"),
    "a number of Python": (lambda loss, *_: loss * (1 + 1e-9 * next(COUNTED)), "other launches than before"),
    "other memory": (lambda loss, *_: loss + 0 * KEPT[-1], "other launches than before"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_no_graph_can_hold_is_noticed(fit, monkeypatch, reference_backend, name):
    extra, complaint = FAULTS[name]
    KEPT.clear()
    KEPT.append(torch.ones(()))
    doing(monkeypatch, extra)
    watch = Watch()
    stand_in(monkeypatch, watch, rounding=(16, 16))
    if name == "other memory":
        take = Captured.take

        def renewing(self, *arguments):
            KEPT.append(torch.ones(()))
            return take(self, *arguments)

        monkeypatch.setattr(Captured, "take", renewing)
    fit(CONFIG)
    assert any(complaint in fault for fault in watch.faults), watch.faults


def test_a_learning_rate_that_is_no_memory_is_noticed(fit, monkeypatch, reference_backend):
    tell, apply = AdamWUpdate.numbers, AdamWUpdate.apply

    def telling(self, lr):
        self.lr = lr
        return tell(self, lr)

    def applying(self, gradients, numbers):
        apply(self, gradients, numbers)
        torch._foreach_mul_(self._weights, 1 - 1e-9 * self.lr)

    monkeypatch.setattr(AdamWUpdate, "numbers", telling)
    monkeypatch.setattr(AdamWUpdate, "apply", applying)
    watch = Watch()
    stand_in(monkeypatch, watch, rounding=(16, 16))
    fit(CONFIG)
    assert watch.faults == {"other launches than before"}


@pytest.fixture
def traffic():
    if torch.cuda.is_available():
        pytest.skip("the fake GPU counts; a real one would say nothing")
    pytest.importorskip("triton")
    with fake_gpu() as traffic:
        yield traffic


def has_memory_on_the_gpu(found):
    try:
        return issubclass(type(found), torch.Tensor) and is_on_gpu(found)
    except (NotImplementedError, RuntimeError):  # it has no memory of its own, such as a sparse one
        return False


def memory_on_the_gpu():
    """Of all tensors that Python holds there, by address; held on to, so that none is used again."""
    gc.collect()
    storages = [t.untyped_storage() for t in gc.get_objects() if has_memory_on_the_gpu(t)]
    return {storage._cdata: storage for storage in storages}


@pytest.mark.parametrize("kernels", ["triton", "reference"])
def test_on_a_gpu_a_step_is_one_copy_there_one_replay_and_one_look(fit, monkeypatch, traffic, kernels):
    monkeypatch.setenv("OFA_BACKEND", kernels)
    within, taken, left, take = [], [], [], Captured.take

    @contextmanager
    def watch(_):
        outside, before = list(traffic), memory_on_the_gpu()
        traffic.clear()
        yield
        within.extend(traffic)
        traffic[:] = outside
        left.append(memory_on_the_gpu().keys() - before)

    def counted(self, *arguments):
        traffic.clear()
        values = take(self, *arguments)
        taken.append(list(traffic))
        return values

    monkeypatch.setattr(Captured, "take", counted)
    graphs = stand_in(monkeypatch, watch, rounding=(16, 16))
    fit(replace(CONFIG, epochs=2, batch_size=None), "cuda", n_shots=2)
    assert graphs.n_runs == 1 and graphs.n_replays == 1
    assert within == [] and taken == [["copy_ of host memory", "tolist"]] * 2
    # what is made once is made before the capture
    assert left[1:] == [set()]


@pytest.mark.parametrize(
    ("extra", "waits", "leaves"),
    [
        (lambda loss, *_: loss + 0 * loss.item(), {"_local_scalar_dense"}, 0),
        (lambda loss, *_: KEPT.append(loss.detach().clone()) or loss, set(), 1),
    ],
    ids=["item", "a result kept"],
)
def test_on_a_gpu_what_no_graph_can_hold_is_noticed(fit, monkeypatch, traffic, extra, waits, leaves):
    monkeypatch.setenv("OFA_BACKEND", "reference")
    within, left = [], []

    @contextmanager
    def watch(_):
        before = memory_on_the_gpu()
        traffic.clear()
        yield
        within.extend(traffic)
        left.append(len(memory_on_the_gpu().keys() - before))

    doing(monkeypatch, extra)
    stand_in(monkeypatch, watch, rounding=(16, 16))
    fit(replace(CONFIG, epochs=3, batch_size=None), "cuda", n_shots=2)
    assert set(within) == waits and left[1:] == [leaves] * 2
