"""A pass whose examples have γ of their own, against a pass for every adapter, in float64."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import ofa
from ofa.decoder.patch import set_gammas
from ofa.decoder.view import Decoder
from ofa.passes.fast import stacked_pass
from ofa.passes.layer import Probes
from ofa.passes.row_weights import RowWeights
from ofa_kernels import mix
from tests.ofa.conftest import build_llama, make_batch
from tests.ofa.decoder.test_families import OPTIONS, WITHOUT_STACKED_FORM, build, in_float64

LENGTHS = (7, 5, 1, 6, 4)
WHICH = {
    "random": [2, 0, 3, 0, 3],  # nobody has adapter 1
    "sorted": [0, 0, 2, 2, 3],
    "constant": [3, 3, 3, 3, 3],
    "one each": [4, 1, 0, 3, 2],
}
STACKED = [family for family in OPTIONS if family not in WITHOUT_STACKED_FORM]
SEEDS = torch.tensor([mix(9, step) - 2**63 for step in range(5)])


def drawn(model, n_adapters=5):
    """The γ of several adapters, [A, D] a norm."""
    generator = torch.Generator().manual_seed(3)
    norms = [norm for *_, norm in Decoder.of(model).named_norms()]
    return [
        torch.rand(n_adapters, len(norm.weight), generator=generator, dtype=torch.float64).requires_grad_()
        for norm in norms
    ]


def words_of_three_tokens(side="right"):
    """A batch whose labels are one to three tokens long."""
    batch = make_batch(LENGTHS, side)
    labels = torch.full((len(LENGTHS), 3), -100)
    for i, n in enumerate((1, 3, 1, 2, 3)):
        labels[i, : n - 1] = batch["input_ids"][i, batch["attention_mask"][i].bool()][LENGTHS[i] - n + 1 :]
        labels[i, n - 1] = 9
    return {**batch, "labels": labels}


def results(ran):
    """What a pass leaves behind, examples first."""
    shown = [ran.z.transpose(0, 1), ran.logits, ran.products.permute(2, 0, 1)]
    return shown if ran.following is None else [*shown, ran.following]


def mixed(model, batch, gammas, which):
    probes = Probes([1, 2], 2, SEEDS, torch.arange(5) * 3)
    return results(stacked_pass(Decoder.of(model), batch, probes, RowWeights(gammas, which)))


def alone(model, batch, gammas, which, i):
    """Example i in a pass of its own, with its adapter inside the model."""
    set_gammas(model, [gamma[which[i]] for gamma in gammas])
    probes = Probes([1, 2], 2, SEEDS[i : i + 1], torch.tensor([3 * i]))
    one = {name: value[i : i + 1] for name, value in batch.items()}
    return results(stacked_pass(Decoder.of(model), one, probes))


def numbers_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("patched", [False, True])
def test_every_example_has_what_its_adapter_gives_it_alone(which, patched):
    model, batch, which = in_float64(build_llama()), make_batch(LENGTHS), torch.tensor(WHICH[which])
    if patched:
        ofa.patch_model(model)
    gammas, before = drawn(model), numbers_of(model)
    found = mixed(model, batch, gammas, which)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for i in range(len(LENGTHS)):
        for part, expected in zip(found, alone(model, batch, gammas, which, i), strict=True):
            torch.testing.assert_close(part[i], expected[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", STACKED)
def test_every_family_in_values_and_gradients(family, side):
    model, which = in_float64(build(family)), torch.tensor(WHICH["random"])
    weights = [norm.module.weight for norm in ofa.patch_model(model).norms]
    batch, gammas = words_of_three_tokens(side), drawn(model)
    found = mixed(model, batch, gammas, which)
    generator = torch.Generator().manual_seed(0)
    weigh = [torch.randn(part.shape, generator=generator, dtype=part.dtype) for part in found]
    gradients = torch.autograd.grad(sum((p * w).sum() for p, w in zip(found, weigh, strict=True)), gammas)
    truths = [torch.zeros_like(gamma) for gamma in gammas]
    for i, adapter in enumerate(which):
        expected = alone(model, batch, gammas, which, i)
        for part, truth in zip(found, expected, strict=True):
            torch.testing.assert_close(part[i], truth[0], rtol=1e-12, atol=1e-12)
        loss = sum((part[0] * w[i]).sum() for part, w in zip(expected, weigh, strict=True))
        for truth, gradient in zip(truths, torch.autograd.grad(loss, weights), strict=True):
            truth[adapter] += gradient
    for gradient, truth in zip(gradients, truths, strict=True):
        assert not gradient[[1, 4]].any(), "an adapter without examples has a gradient"
        assert (gradient - truth).norm() <= 1e-11 * truth.norm()


def test_gradient_checkpointing_changes_nothing():
    model, which = build_llama(), torch.tensor(WHICH["random"])
    ofa.patch_model(model)
    gammas = drawn(model)

    def run():
        found = mixed(model, make_batch(LENGTHS), gammas, which)
        return [*found, *torch.autograd.grad(sum(part.sin().sum() for part in found), gammas)]

    plain = run()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert all(torch.equal(*pair) for pair in zip(run(), plain, strict=True))


def test_passes_run_in_several_threads():
    model, batch = build_llama(), make_batch(LENGTHS)
    ofa.patch_model(model).norms[0].module.weight.requires_grad_(False)
    gammas, sets = drawn(model), [torch.tensor(which) for which in WHICH.values()] * 5
    expected = [mixed(model, batch, gammas, which) for which in sets]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda which: mixed(model, batch, gammas, which), sets))
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("n_norms", "n_examples", "message"),
    [(6, 5, "each of the model's 7 norms .* got 6 tensors"), (7, 4, r"5 examples, .*shape \(4,\)")],
)
def test_what_does_not_fit_is_refused(n_norms, n_examples, message):
    model = build_llama()
    gammas, which = drawn(model)[:n_norms], torch.zeros(n_examples, dtype=torch.int64)
    with pytest.raises(ValueError, match=message):
        stacked_pass(Decoder.of(model), make_batch(LENGTHS), weights=RowWeights(gammas, which))


def test_an_adapter_that_is_not_there_is_refused():
    model, which = build_llama(), torch.tensor([0, 1, 5, 0, 0])
    with pytest.raises(IndexError):
        stacked_pass(Decoder.of(model), make_batch(LENGTHS), weights=RowWeights(drawn(model), which))
