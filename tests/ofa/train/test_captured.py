"""Captured steps do what the others do, to the bit, and nothing that a CUDA graph can't hold."""

from dataclasses import replace

import pytest
import torch

import ofa
from ofa.config import OFAConfig
from ofa.decoder.view import Decoder
from ofa.loss.objective import Objective, objective
from ofa.passes.packing import packed
from ofa.train import captured, memory
from ofa.train import fit as trainer
from ofa.train.captured import why_not_captured
from ofa.train.checkpoint import CheckpointError
from ofa.train.loop import NonFiniteError
from tests.fake_gpu import fake_gpu
from tests.ofa.conftest import build_llama
from tests.ofa.train.graphs import stand_in

OFA = OFAConfig(epochs=12, batch_size=4, lr=1e-2, lambda_step=0.1, lambda_sharp=0.1, cuda_graph=False)
CONFIGS = {
    "cross-entropy": replace(OFA, lambda_step=0.0, lambda_sharp=0.0),
    "step ratio": replace(OFA, lambda_sharp=0.0),
    "sharpness": replace(OFA, lambda_step=0.0, seed=3),
    "both": OFA,
    "four probes": replace(OFA, n_probes=4, weight_decay=0.3),
    "sharpness at times": replace(OFA, sharpness_every=3),
    "over labels": replace(OFA, loss_over="labels"),
    "upper half": replace(OFA, trained_depth=0.5, weight_decay=0.3),
    "one example": replace(OFA, batch_size=1, epochs=4, weight_decay=0.0),
    "all examples": replace(OFA, batch_size=None, epochs=25),
}


def gammas(model):
    return torch.cat([norm.module.weight.detach() for norm in ofa.patch_model(model).norms])


def run(tokenizer, task, shots, config, dtype=torch.float32, **options):
    model = build_llama(dtype)
    history = ofa.fit(model, tokenizer, task, shots, config, progress=False, **options).history
    return history, gammas(model)


@pytest.fixture
def problem(tokenizer, task, shots):
    return tokenizer, task, shots


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_gamma_and_history_are_the_uncaptured_ones(problem, monkeypatch, name, dtype):
    config = CONFIGS[name]
    expected = run(*problem, config, dtype)
    graphs = stand_in(monkeypatch)
    found = run(*problem, replace(config, cuda_graph=True), dtype)
    assert found[0] == expected[0] and torch.equal(found[1], expected[1])
    assert graphs.n_replays > 5 and graphs.n_runs + graphs.n_replays == len(expected[0])


def test_words_of_several_tokens_are_captured_too(problem, monkeypatch):
    tokenizer, task, shots = problem
    task = replace(task, label_words=("bad", "very good"), whole_words=True)
    expected = run(tokenizer, task, shots, OFA)
    graphs = stand_in(monkeypatch)
    found = run(tokenizer, task, shots, replace(OFA, cuda_graph=True))
    assert found[0] == expected[0] and torch.equal(found[1], expected[1]) and graphs.n_replays


def test_a_rounded_batch_is_the_batch_but_for_rounding(problem, monkeypatch):
    expected = run(*problem, OFA, torch.float64)
    graphs = stand_in(monkeypatch, rounding=(16, 16))
    history, gamma = run(*problem, replace(OFA, cuda_graph=True), torch.float64)
    assert graphs.n_captures == 2, "batches of four and of two have a shape each"
    torch.testing.assert_close(gamma, expected[1], rtol=1e-10, atol=1e-12)
    for row, before in zip(history, expected[0], strict=True):
        assert row == pytest.approx(before, rel=1e-10)


def test_a_step_on_a_rounded_batch_is_the_uncaptured_one(problem, monkeypatch):
    def rounded(model, batch, cfg, step):
        batch = packed(batch)
        return objective(model, {**batch, "packing": batch["packing"].rounded(16, 16)}, cfg, step)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "objective", rounded)
        expected = run(*problem, OFA)
    stand_in(monkeypatch, rounding=(16, 16))
    history, gamma = run(*problem, replace(OFA, cuda_graph=True))
    assert history == expected[0] and torch.equal(gamma, expected[1])


@pytest.mark.parametrize("first", [True, False])
def test_a_run_goes_on_the_other_way_with_the_same_bits(problem, monkeypatch, tmp_path, first):
    expected, path = run(*problem, OFA), tmp_path / "run.safetensors"
    stand_in(monkeypatch)
    run(*problem, replace(OFA, cuda_graph=first), checkpoint=path, max_steps=13)
    history, gamma = run(*problem, replace(OFA, cuda_graph=not first), checkpoint=path)
    assert history == expected[0] and torch.equal(gamma, expected[1])
    with pytest.raises(CheckpointError, match="of a run with other"):
        run(*problem, replace(OFA, cuda_graph=first, lr=1e-3), checkpoint=path)


@pytest.mark.parametrize("term", ["cross_entropy", "step_ratio", "sharpness", "loss", "gradient"])
@pytest.mark.parametrize("at", [0, 7])
def test_nan_stops_with_the_gamma_of_the_uncaptured_run(problem, monkeypatch, term, at):
    n_calls = 0

    def breaking(model, batch, cfg, step):
        nonlocal n_calls
        terms, n_calls = objective(model, batch, cfg, step), n_calls + 1
        if n_calls <= at:
            return terms
        if term == "gradient":
            endless = (model.model.norm.weight * 0).sqrt().sum()
            return Objective(terms.loss + endless, terms.cross_entropy, terms.step_ratio, terms.sharpness)
        values = {**vars(terms), term: getattr(terms, term) * float("nan")}
        return Objective(**{**values, "loss": values["loss"] + values[term]})

    monkeypatch.setattr(trainer, "objective", breaking)
    stand_in(monkeypatch)
    found = []
    for how in (False, True):
        model, n_calls = build_llama(torch.float32), 0
        with pytest.raises(NonFiniteError, match=f"step {at}: the term {term} is (nan|inf)"):
            ofa.fit(model, *problem, replace(OFA, cuda_graph=how), progress=False)
        found.append(gammas(model))
    assert torch.equal(*found) and found[0].isfinite().all()


def test_what_cannot_be_captured_is_run_uncaptured_with_a_warning(problem, monkeypatch):
    expected = run(*problem, OFA)

    def refuse(_):
        try:
            raise RuntimeError("operation not permitted when stream is capturing")
        finally:  # as the end of a capture does
            raise RuntimeError("operation failed due to a previous error during capture")

    graphs = stand_in(monkeypatch)
    graphs.capture = refuse
    with pytest.warns(UserWarning, match="run uncaptured: operation not permitted") as warned:
        history, gamma = run(*problem, replace(OFA, cuda_graph=None))
    assert len(warned) == 1 and history == expected[0] and torch.equal(gamma, expected[1])
    with pytest.raises(RuntimeError, match="cuda_graph=True: the step could not be captured: operation not"):
        run(*problem, replace(OFA, cuda_graph=True))


def test_further_shapes_run_uncaptured(problem, monkeypatch):
    expected = run(*problem, OFA)
    graphs = stand_in(monkeypatch)
    monkeypatch.setattr(captured, "MAX_GRAPHS", 3)
    history, gamma = run(*problem, replace(OFA, cuda_graph=True))
    assert graphs.n_captures == 3 and graphs.n_runs > 3
    assert history == expected[0] and torch.equal(gamma, expected[1])


class Foreign(torch.nn.Linear):
    __module__ = "bitsandbytes.nn"


def spread(model):
    model.model.embed_tokens.to("cpu")


def hook(model):
    model.model.layers[1].mlp.up_proj.register_forward_hook(lambda *_: None)


def quantise(model):
    model.model.layers[1].mlp.up_proj = Foreign(24, 40, bias=False, device="cuda")


def save_memory(model):
    model.model.layers[1].gradient_checkpointing = True


def stretch(model):
    model.model.rotary_emb.rope_type = "dynamic"


def slide(model):
    model.config.sliding_window = 60


def show_states(model):
    ids = torch.ones(1, 3, dtype=torch.int64, device="cuda")
    assert model(ids, output_hidden_states=True).hidden_states


REASONS = {
    spread: "the model is spread over cpu, cuda:0",
    hook: "model.layers.1.mlp.up_proj has a hook",
    quantise: "model.layers.1.mlp.up_proj is bitsandbytes' Foreign, whose kernels may wait",
    save_memory: "gradient checkpointing",
    stretch: "the rotary embedding depends on the longest prompt",
    slide: "rounded up to a multiple of 32 tokens: a prompt of 64 tokens is longer than the model's sliding",
    show_states: None,
}


@pytest.fixture
def llama_on_gpu():
    if torch.cuda.is_available():
        pytest.skip("the fake GPU is for machines that have none")
    with fake_gpu():
        yield build_llama(torch.float32).to("cuda")


@pytest.mark.parametrize("change", REASONS)
def test_what_stands_in_the_way_is_named(llama_on_gpu, change):
    assert why_not_captured(Decoder.of(llama_on_gpu), OFAConfig(), 40) is None
    change(llama_on_gpu)
    reason = why_not_captured(Decoder.of(llama_on_gpu), OFAConfig(), 40)
    if REASONS[change] is None:
        assert reason is None
    else:
        assert REASONS[change] in reason


def test_other_passes_and_terms_are_not_captured(llama_on_gpu, monkeypatch):
    decoder = Decoder.of(llama_on_gpu)
    assert "draw their noise" in why_not_captured(decoder, OFAConfig.paper_code(), 40)
    with monkeypatch.context() as patch:
        patch.setattr(captured, "why_not_stacked", lambda _: "no stacked form of gpt2 is written")
        assert "no stacked form of gpt2" in why_not_captured(decoder, OFAConfig(), 40)
    monkeypatch.setattr(captured, "FSDPModule", type(decoder.layers[0]))
    assert "the layers are sharded" in why_not_captured(decoder, OFAConfig(), 40)


def test_the_cpu_is_no_place_for_graphs(problem):
    with pytest.raises(ValueError, match=r"can't be captured: the model is on cpu.*cuda_graph=None"):
        run(*problem, replace(OFA, cuda_graph=True))
    assert len(run(*problem, replace(OFA, cuda_graph=None), max_steps=1)[0]) == 1


def test_a_batch_in_parts_is_not_captured(problem, monkeypatch):
    stand_in(monkeypatch)
    monkeypatch.setattr(memory, "ACTIVATION_BYTES", 2**16)
    with pytest.raises(ValueError, match=r"may take more than .* GiB and be run in parts"):
        run(*problem, replace(OFA, cuda_graph=True))


def test_only_none_true_and_false_are_known():
    with pytest.raises(ValueError, match="cuda_graph must be None, True or False, got 'yes'"):
        OFAConfig(cuda_graph="yes")


def test_how_steps_are_run_is_no_setting_of_the_run():
    assert OFAConfig(cuda_graph=True).settings() == OFAConfig(cuda_graph=False).settings()
    assert OFAConfig(lr=1e-2).settings() != OFAConfig().settings()
