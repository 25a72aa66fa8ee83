import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

import ofa
from ofa.config import OFAConfig
from ofa.data.batch import collate, features
from ofa.loss.objective import objective
from ofa.train.hf import OFATrainer
from tests.ofa.conftest import build_llama
from tests.ofa.decoder.test_families import build

ROOT = str(Path(__file__).parents[3])
CONFIG = OFAConfig(lambda_step=0.1, lambda_sharp=0.1, n_probes=2, seed=3)


@pytest.fixture
def rows(tokenizer, task, shots):
    return features(tokenizer, task, Dataset.from_list(shots), 64)


def trainer(rows, folder, dtype=torch.float32, model=None, callbacks=None, **options):
    settings = {
        "output_dir": str(folder), "num_train_epochs": 6, "per_device_train_batch_size": 2,
        "learning_rate": 1e-2, "logging_steps": 3, "report_to": [], "use_cpu": True,
        "disable_tqdm": True, "save_strategy": "no",
    }  # fmt: skip
    args = TrainingArguments(**{**settings, **options})
    model = model or build_llama(dtype)
    return OFATrainer(model, args, CONFIG, train_dataset=rows, eval_dataset=rows, callbacks=callbacks)


def gammas(trainer):
    return torch.cat([norm.module.weight.detach() for norm in ofa.patch_model(trainer.model).norms])


def test_the_loss_is_the_objectives_and_falls(rows, tmp_path):
    runner, batch = trainer(rows, tmp_path), collate(rows[:2])
    expected = objective(runner.model, batch, CONFIG, step=0).loss
    assert torch.equal(runner.compute_loss(runner.model, batch), expected)
    runner = trainer(rows, tmp_path)
    before = {name: p.detach().clone() for name, p in runner.model.named_parameters()}
    runner.train()
    logs = [entry for entry in runner.state.log_history if "sharpness" in entry]
    assert len(logs) == 6 and logs[-1]["loss"] < logs[0]["loss"]
    for entry in logs:
        total = entry["cross_entropy"] + 0.1 * entry["step_ratio"] + 0.1 * entry["sharpness"]
        assert entry["loss"] == pytest.approx(total, rel=1e-3)
    for name, parameter in runner.model.named_parameters():
        assert torch.equal(parameter, before[name]) == ("norm" not in name), name


def test_a_loss_over_labels_needs_and_finds_their_tokens(rows, tmp_path, task, tokenizer):
    runner, batch = trainer(rows, tmp_path), collate(rows[:2])
    runner.ofa_config = config = replace(CONFIG, loss_over="labels")
    tokens = task.label_ids(tokenizer)
    assert batch["classes"].tolist() == [tokens, tokens]
    loss = runner.compute_loss(runner.model, batch)
    assert torch.equal(loss, objective(runner.model, batch, config, step=0).loss)
    assert loss < objective(runner.model, batch, CONFIG, step=0).loss, "fewer tokens to be told from"
    runner.train()
    assert runner.state.global_step > 0


def test_nothing_is_dropped(rows, tmp_path):
    dropping = build("gpt2", torch.float32, resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    expected = objective(build("gpt2", torch.float32), collate(rows), CONFIG).loss
    runner = trainer(rows, tmp_path, model=dropping, max_steps=1)
    assert torch.equal(runner.compute_loss(dropping.train(), collate(rows)), expected)
    runner.train()


def test_accumulated_batches_are_averaged(rows, tmp_path):
    """Three batches of two in one step are one batch of six, with the same probes."""
    options = {"num_train_epochs": 1, "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "optim": "sgd"}
    whole = trainer(rows, tmp_path, per_device_train_batch_size=6, **options)
    parts = trainer(rows, tmp_path, gradient_accumulation_steps=3, **options)
    for runner in (whole, parts):
        runner.train()
    torch.testing.assert_close(gammas(parts), gammas(whole), rtol=1e-5, atol=1e-6)


def test_checkpoints_are_adapters_and_resume_with_the_same_bits(rows, tmp_path):
    undisturbed = trainer(rows, tmp_path / "a")
    undisturbed.train()
    first = trainer(rows, tmp_path / "b", save_strategy="steps", save_steps=5)
    first.train()
    checkpoint = tmp_path / "b" / "checkpoint-10"
    assert (checkpoint / "adapter_model.safetensors").is_file() and (checkpoint / "optimizer.pt").is_file()
    assert not list(checkpoint.glob("model*.safetensors"))
    second = trainer(rows, tmp_path / "b")
    second.train(resume_from_checkpoint=str(checkpoint))
    assert second.state.global_step == 18
    assert torch.equal(gammas(second), gammas(undisturbed))
    report = ofa.load_adapter(build_llama(torch.float32), checkpoint)
    assert len(report.norms) == 7


def test_evaluation_gives_logits_for_metrics(rows, tmp_path, task, tokenizer):
    label_ids = np.array(task.label_ids(tokenizer))
    runner = trainer(rows, tmp_path, per_device_eval_batch_size=4)
    seen = []

    def accuracy(prediction):
        logits, labels = prediction.predictions, prediction.label_ids
        seen.append(logits.shape)
        return {"accuracy": float((label_ids[logits[:, label_ids].argmax(-1)] == labels).mean())}

    runner.compute_metrics = accuracy
    found = runner.evaluate()
    assert seen == [(6, 512)] and 0 <= found["eval_accuracy"] <= 1 and found["eval_loss"] > 0


class FirstGradients(TrainerCallback):
    """Keeps the gradients that the first step is given."""

    found = None

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        if self.found is None:
            norms = ofa.patch_model(model).norms
            self.found = torch.cat([norm.module.weight.grad.clone() for norm in norms])


def test_two_processes_end_with_the_weights_of_one(rows, tmp_path, free_port):
    """Global example ids select the probes, so it does not matter who computes which."""
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    # --cpu would start a single process, and --multi_gpu starts two also where there is no GPU
    command = ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port")
    command = (
        sys.executable,
        "-m",
        *command,
        str(free_port),
        "-m",
        "tests.ofa.train.launched",
        str(tmp_path),
    )
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "PYTHONPATH": os.pathsep.join([ROOT, *sys.path]),
    }
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    for dtype in (torch.float64, torch.float32):
        first = FirstGradients()
        one = trainer(rows, tmp_path, dtype, per_device_train_batch_size=6, callbacks=[first])
        before = gammas(one).clone()
        one.train()
        assert (gammas(one) - before).abs().max() > 1e-2
        for rank in (0, 1):
            found, gradients = torch.load(tmp_path / f"{str(dtype).removeprefix('torch.')}-{rank}.pt")
            assert (gradients - first.found).norm() <= 1e-5 * first.found.norm()
            if dtype == torch.float64:  # in float32 Adam makes summation noise large
                assert (found - gammas(one)).abs().max() <= 1e-6 * gammas(one).abs().max()


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_mixed_precision_is_refused_with_what_to_do(rows, tmp_path, kind):
    model = build_llama(torch.float32)
    with pytest.raises(ValueError, match=f"{kind}=True asks for autocast.*load the model in bfloat16"):
        trainer(rows, tmp_path, model=model, **{kind: True})
    assert all(p.requires_grad for p in model.parameters()), "the model was patched"


def test_graphs_are_refused_since_the_steps_are_the_trainers(tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True)
    with pytest.raises(ValueError, match=r"Trainer takes its steps itself.*use ofa\.fit"):
        OFATrainer(build_llama(torch.float32), args, OFAConfig(cuda_graph=True))


def test_a_model_in_bfloat16_trains_in_it(rows, tmp_path):
    runner = trainer(rows, tmp_path, torch.bfloat16, max_steps=2)
    before = gammas(runner)
    runner.train()
    assert gammas(runner).dtype == torch.float32 and not torch.equal(gammas(runner), before)


def test_it_is_a_trainer():
    assert issubclass(ofa.OFATrainer, Trainer)
