"""The norms of the last layers are trained, and no others, whoever takes the steps."""

from dataclasses import replace

import pytest
import torch
from transformers import TrainingArguments

import ofa
from ofa import Job, OFAConfig
from ofa.data.batch import features
from ofa.decoder.view import Decoder
from ofa.train.checkpoint import CheckpointError
from tests.ofa.conftest import build_llama
from tests.ofa.decoder.test_families import build
from tests.ofa.train.jobs import PLAIN, SHOTS

CONFIG = OFAConfig(0.1, 0.1, epochs=3, batch_size=3, lr=1e-2, weight_decay=0.3)


def fit(model, tokenizer, config, folder):
    ofa.fit(model, tokenizer, PLAIN, SHOTS, config, progress=False)


def fit_many(model, tokenizer, config, folder):
    (result,) = ofa.fit_many(model, tokenizer, [Job(PLAIN, SHOTS, config)], progress=False)
    for norm, gamma in zip(ofa.patch_model(model).norms, result.gammas, strict=True):
        norm.module.weight.data.copy_(gamma)


def trainer(model, tokenizer, config, folder, **options):
    arguments = TrainingArguments(
        folder, num_train_epochs=2, learning_rate=1e-2, weight_decay=0.3, report_to=[], use_cpu=True,
        disable_tqdm=True, per_device_train_batch_size=2, **{"save_strategy": "no", **options},
    )  # fmt: skip
    made = ofa.OFATrainer(model, arguments, config, train_dataset=features(tokenizer, PLAIN, SHOTS, 64))
    made.train()
    return made


def gammas(model):
    return [norm.module.weight.detach().clone() for norm in ofa.patch_model(model).norms]


def moved(before, after):
    return [not torch.equal(one, other) for one, other in zip(before, after, strict=True)]


@pytest.mark.parametrize("train", [fit, fit_many, trainer])
@pytest.mark.parametrize(("depth", "first"), [(1.0, 0), (0.9, 0), (0.7, 1), (0.5, 1), (0.4, 2), (0.01, 2)])
def test_only_the_last_layers_and_the_final_norm_are_trained(tokenizer, tmp_path, depth, first, train):
    model = build_llama()
    names, start = [name for name, *_ in Decoder.of(model).named_norms()], gammas(model)
    train(model, tokenizer, replace(CONFIG, trained_depth=depth), tmp_path)
    wanted = [name == "norm" or int(name.split(".")[1]) >= first for name in names]
    assert moved(start, gammas(model)) == wanted


@pytest.mark.parametrize("train", [fit, fit_many])
def test_a_family_without_a_stacked_form(tokenizer, tmp_path, train):
    model = build("gpt2")
    start = gammas(model)
    assert len(Decoder.of(model).layers) == 3
    train(model, tokenizer, replace(CONFIG, trained_depth=0.5), tmp_path)
    assert moved(start, gammas(model)) == [False] * 2 + [True] * 5  # two a layer, and the final one


def test_nothing_is_kept_for_the_backward_pass_below(tokenizer):
    """One step of a model of 8 layers: what it saves is bounded by the layers that are trained."""

    def saved(depth):
        sizes = []
        config = replace(CONFIG, epochs=1, batch_size=None, trained_depth=depth)

        def keep(tensor):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            ofa.fit(build_llama(n_layers=8), tokenizer, PLAIN, SHOTS, config, progress=False)
        return sum(sizes)

    whole, half, quarter = saved(1.0), saved(0.5), saved(0.25)
    assert quarter < half < whole
    assert half - quarter == pytest.approx((whole - half) / 2, rel=0.1)  # the first layer has no H


def test_afterwards_all_are_trained_again(tokenizer, tmp_path):
    model = build_llama()
    norms = ofa.patch_model(model).norms  # to ask for them again would itself let all train
    fit(model, tokenizer, replace(CONFIG, trained_depth=0.5), tmp_path)
    assert all(norm.module.weight.requires_grad for norm in norms)


def test_the_others_decide_a_checkpoint_too(tokenizer, tmp_path):
    """γ that is not trained is part of the model that is adapted."""
    config, path = replace(CONFIG, trained_depth=0.5), tmp_path / "run.safetensors"
    ofa.fit(build_llama(), tokenizer, PLAIN, SHOTS, config, False, max_steps=2, checkpoint=path)
    ofa.fit(build_llama(), tokenizer, PLAIN, SHOTS, config, False, max_steps=3, checkpoint=path)
    other = build_llama()
    ofa.patch_model(other).norms[0].module.weight.data.mul_(2)
    with pytest.raises(CheckpointError):
        ofa.fit(other, tokenizer, PLAIN, SHOTS, config, False, checkpoint=path)


def test_a_trainer_that_goes_on_trains_the_same_norms(tokenizer, tmp_path):
    config = replace(CONFIG, trained_depth=0.5)
    start = gammas(build_llama())
    whole = trainer(build_llama(), tokenizer, config, tmp_path / "a", save_strategy="epoch")
    assert whole.state.global_step == 6
    model = build_llama()
    arguments = replace(whole.args, output_dir=str(tmp_path / "b"))
    again = ofa.OFATrainer(model, arguments, config, train_dataset=features(tokenizer, PLAIN, SHOTS, 64))
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    assert moved(start, gammas(model)) == moved(start, gammas(whole.model)) != [True] * len(start)
    for one, other in zip(gammas(model), gammas(whole.model), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("depth", [0, -0.5, 1.01, float("nan"), float("inf")])
def test_what_is_no_share_is_refused(depth):
    with pytest.raises(ValueError, match="trained_depth must be above 0 and at most 1, got"):
        OFAConfig(trained_depth=depth)
