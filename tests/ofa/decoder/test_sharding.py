"""Models on several devices: frozen weights shared by two gloo processes, layers placed by accelerate."""

import gc
import os

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch.distributed.tensor import DTensor

import ofa
from ofa.data.batch import features
from ofa.decoder.view import Decoder
from ofa.passes.fast import why_not_stacked
from ofa.passes.own_layers import token_states
from tests.ofa.conftest import build_llama, make_batch
from tests.ofa.decoder.test_families import build
from tests.ofa.train.test_hf import gammas, trainer

CONFIG = ofa.OFAConfig(lambda_step=0.1, lambda_sharp=0.1, n_probes=2)
CE_ONLY = ofa.OFAConfig(lambda_step=0.1, lambda_sharp=0)


def n_gathered(model) -> int:
    return sum(not isinstance(next(layer.mlp.parameters()), DTensor) for layer in Decoder.of(model).layers)


def loss_and_gradients(model, config):
    weights = [norm.module.weight for norm in ofa.patch_model(model).norms]
    loss = ofa.objective(model, make_batch((7, 5)), config).loss
    return [loss.detach(), *torch.autograd.grad(loss, weights)]


def checkpointed_llama():
    model = build_llama().train()
    model.gradient_checkpointing_enable()
    return model


def one_of_two(rank, port, tokenizer, task, shots, folder):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    cases = (
        (build_llama, CONFIG),
        (checkpointed_llama, CONFIG),
        (lambda: build("gpt2", torch.float64), CE_ONLY),
    )
    for make, config in cases:
        whole, shared = make(), ofa.shard_layers(make())
        ofa.patch_model(whole)
        assert n_gathered(shared) == 0
        for found, expected in zip(
            loss_and_gradients(shared, config), loss_and_gradients(whole, config), strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        assert n_gathered(shared) <= 1
        with torch.no_grad():
            states = token_states(Decoder.of(shared), make_batch((7, 5)))
            torch.testing.assert_close(
                states.logits, token_states(Decoder.of(whole), make_batch((7, 5))).logits
            )
        assert n_gathered(shared) <= 1
    with pytest.raises(ValueError, match=r"sharded, .* no stacked form of gpt2"):
        ofa.objective(shared, make_batch((7, 5)), CONFIG)

    shared = ofa.shard_layers(build_llama())
    ofa.fit(shared, tokenizer, task, shots, CONFIG, progress=False, max_steps=10)
    if rank == 0:
        ofa.save_adapter(shared, f"{folder}/fit")
    rows = features(tokenizer, task, shots, 64)
    runner = trainer(rows, folder, model=ofa.shard_layers(build_llama()), per_device_train_batch_size=3)
    runner.train()
    if rank == 0:
        runner.save_model(f"{folder}/trainer")
    del runner
    gc.collect()  # a data-parallel wrapper that outlives its gloo group may hang as it is freed
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def adapter(folder):
    model = build_llama()
    return torch.cat([norm.module.weight.detach() for norm in ofa.load_adapter(model, folder).norms])


def test_the_adapter_is_that_of_one_process(tokenizer, task, shots, tmp_path, free_port):
    arguments = (free_port, tokenizer, task, shots, str(tmp_path))
    torch.multiprocessing.spawn(one_of_two, arguments, nprocs=2)
    alone = build_llama()
    before = torch.cat([norm.module.weight.detach().clone() for norm in ofa.patch_model(alone).norms])
    ofa.fit(alone, tokenizer, task, shots, CONFIG, progress=False, max_steps=10)
    ofa.save_adapter(alone, tmp_path / "alone")
    rows = features(tokenizer, task, shots, 64)
    one = trainer(rows, tmp_path, model=build_llama(), per_device_train_batch_size=6)
    one.train()
    for folder, expected in (("fit", adapter(tmp_path / "alone")), ("trainer", gammas(one))):
        assert (adapter(tmp_path / folder) - expected).abs().max() <= 1e-6
        assert (expected - before).abs().max() > 1e-3


def test_without_a_group_it_is_refused():
    with pytest.raises(RuntimeError, match="run under torchrun or accelerate launch"):
        ofa.shard_layers(build_llama())


def test_layers_placed_by_accelerate_give_the_same():
    """`device_map="auto"` puts such hooks on every layer; here all are told to run on the CPU."""
    plain, placed = build_llama(), build_llama()
    for model in (plain, placed):
        ofa.patch_model(model)
    for layer in placed.model.layers:
        add_hook_to_module(layer, AlignDevicesHook(execution_device="cpu", io_same_device=True))
    assert "accelerate" in why_not_stacked(Decoder.of(placed))
    for found, expected in zip(
        loss_and_gradients(placed, CONFIG), loss_and_gradients(plain, CONFIG), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
