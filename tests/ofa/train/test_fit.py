import math

import pytest
import torch

import ofa
from ofa.config import OFAConfig
from ofa.decoder.view import Decoder
from ofa.loss.objective import Objective, objective
from ofa.train import fit as trainer
from ofa.train import memory
from ofa.train.loop import NonFiniteError
from tests.ofa.conftest import build_llama

CONFIG = OFAConfig(epochs=4, batch_size=3, lr=1e-2, lambda_step=1e-2, lambda_sharp=1e-3)


@pytest.fixture
def model():
    return build_llama(torch.float32)


def gammas(model):
    return [norm.module.weight.detach().clone() for norm in ofa.patch_model(model).norms]


def test_the_loss_falls_and_only_gamma_moves(model, tokenizer, task, shots):
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    result = ofa.fit(model, tokenizer, task, shots, CONFIG, progress=False)
    losses = [row["loss"] for row in result.history]
    assert len(losses) == 4 * 2 and sum(losses[-2:]) < sum(losses[:2])
    assert result.seconds > 0 and result.n_truncated == 0
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == ("norm" not in name), name


def test_history_holds_the_terms_and_the_schedule(model, tokenizer, task, shots):
    config = OFAConfig(epochs=20, batch_size=4, lr=1e-3, lambda_step=0.1, lambda_sharp=0.1, sharpness_every=2)
    history = ofa.fit(model, tokenizer, task, shots, config, progress=False).history
    assert [row["step"] for row in history] == list(range(40))
    assert [row["epoch"] for row in history] == [i // 2 for i in range(40)]
    warmup = 2  # 5 % of 40
    expected = [
        i / warmup if i < warmup else (1 + math.cos(math.pi * (i - warmup) / (40 - warmup))) / 2
        for i in range(40)
    ]
    assert [row["lr"] for row in history] == pytest.approx([1e-3 * e for e in expected])
    assert [row["sharpness"] is None for row in history] == [i % 2 == 1 for i in range(40)]
    row = history[0]
    assert row["loss"] == pytest.approx(
        row["cross_entropy"] + 0.1 * row["step_ratio"] + 0.2 * row["sharpness"], rel=1e-5
    )


def test_the_seed_decides_everything(tokenizer, task, shots):
    def run(seed):
        model = build_llama(torch.float32)
        ofa.fit(model, tokenizer, task, shots, OFAConfig(epochs=2, batch_size=2, seed=seed), progress=False)
        return torch.cat(gammas(model))

    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))


def test_only_the_prediction_tokens_logits_are_computed(model, tokenizer, task, shots):
    rows = []
    model.lm_head.register_forward_hook(lambda _, args, __: rows.append(args[0].shape[:-1].numel()))
    ofa.fit(model, tokenizer, task, shots, CONFIG, progress=False)
    assert rows == [3, 3] * 4


def test_frozen_parameters_get_no_gradient(model, tokenizer, task, shots):
    ofa.fit(model, tokenizer, task, shots, CONFIG, progress=False)
    assert all(p.grad is None for p in model.parameters())
    assert model.model.layers[0].mlp.up_proj.weight.requires_grad is False


def test_mode_is_restored(model, tokenizer, task, shots):
    model.train()
    ofa.fit(model, tokenizer, task, shots, OFAConfig(epochs=1), progress=False)
    assert model.training


def test_undo_after_training_brings_the_model_back(model, tokenizer, task, shots):
    before = {name: p.detach().clone() for name, p in model.state_dict().items()}
    ofa.fit(model, tokenizer, task, shots, CONFIG, progress=False)
    ofa.patch_model(model).undo()
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


@pytest.mark.parametrize("term", ["cross_entropy", "step_ratio", "sharpness", "gradient"])
def test_nan_stops_with_the_last_good_gamma(model, tokenizer, task, shots, term, monkeypatch):
    seen = []

    def breaking(model, batch, cfg, step):
        terms = objective(model, batch, cfg, step)
        if step < 3:
            seen.append(gammas(model))
            return terms
        if term == "gradient":
            loss = terms.loss + sum((g * 0).sqrt().sum() for g in [model.model.norm.weight])
            return Objective(loss, terms.cross_entropy, terms.step_ratio, terms.sharpness)
        values = {**vars(terms), term: getattr(terms, term) * float("nan")}
        values["loss"] = values["loss"] + values[term]
        return Objective(**values)

    monkeypatch.setattr(trainer, "objective", breaking)
    with pytest.raises(NonFiniteError, match=f"step 3: the term {term} is (nan|inf)"):
        ofa.fit(model, tokenizer, task, shots, CONFIG, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(gammas(model), seen[2], strict=True))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([], "at least one labelled example"),
        ([{"text": "fine", "label": 2}], "example 0 has the unknown label 2; known are 0 to 1 for bad, good"),
        ([{"text": "fine", "label": "good"}], "unknown label 'good'"),
        ([{"text": "fine", "label": True}], "unknown label True"),
        ([{"text": "  ", "label": 1}], "a text is empty"),
    ],
)
def test_bad_shots_are_refused_before_the_model_is_touched(model, tokenizer, task, bad, message):
    with pytest.raises(ValueError, match=message):
        ofa.fit(model, tokenizer, task, bad, progress=False)
    assert all(p.requires_grad for p in model.parameters())


def test_long_texts_are_cut_and_counted(model, tokenizer, task, shots):
    long = {"text": "word " * 200, "label": 1}
    with pytest.warns(UserWarning, match="1 of 7 texts were longer than the context"):
        result = ofa.fit(model, tokenizer, task, [*shots, long], OFAConfig(epochs=1), progress=False)
    assert result.n_truncated == 1


def test_the_bar_shows_the_terms(model, tokenizer, task, shots, capsys):
    ofa.fit(model, tokenizer, task, shots, CONFIG, progress=True)
    shown = capsys.readouterr().err
    assert "adapting" in shown and "8/8" in shown and "CE" in shown and "J" in shown and "H" in shown


def test_every_epoch_sees_every_shot_in_an_order_of_its_own(model, tokenizer, task, shots, monkeypatch):
    seen = []

    def spy(model, batch, cfg, step):
        assert not model.training
        words = [shots[i]["label"] for i in batch["example_ids"].tolist()]
        assert batch["labels"].tolist() == [task.label_ids(tokenizer)[word] for word in words]
        seen.append(batch["example_ids"].tolist())
        return objective(model, batch, cfg, step)

    monkeypatch.setattr(trainer, "objective", spy)
    model.train()
    ofa.fit(model, tokenizer, task, shots, OFAConfig(epochs=3, batch_size=4), progress=False)
    epochs = [seen[i] + seen[i + 1] for i in (0, 2, 4)]
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_weight_decay_is_applied(tokenizer, task, shots):
    norms = []
    for decay in (0.0, 1.0):
        model = build_llama(torch.float32)
        config = OFAConfig(epochs=4, lr=1e-2, weight_decay=decay, lambda_sharp=0)
        ofa.fit(model, tokenizer, task, shots, config, progress=False)
        norms.append(torch.cat(gammas(model)).norm())
    assert norms[1] < norms[0]


def test_a_batch_too_large_to_run_at_once_gives_the_same(tokenizer, task, shots, monkeypatch):
    config = OFAConfig(epochs=3, batch_size=None, lr=1e-2, lambda_step=0.1, lambda_sharp=0.1)

    def run():
        model = build_llama()
        result = ofa.fit(model, tokenizer, task, shots, config, progress=False)
        return result.history, torch.cat(gammas(model))

    history, weights = run()
    assert len(history) == 3, "None takes all shots in one step"
    sizes = []

    def spy(model, batch, cfg, step):
        sizes.append(len(batch["labels"]))
        return objective(model, batch, cfg, step)

    monkeypatch.setattr(trainer, "objective", spy)
    longest = 60  # tokens: two or three of the prompts
    monkeypatch.setattr(
        memory, "ACTIVATION_BYTES", longest * memory.bytes_per_token(Decoder.of(build_llama()))
    )
    in_parts, split = run()
    assert max(sizes) < 6 and sum(sizes) == 3 * 6
    torch.testing.assert_close(split, weights, rtol=1e-10, atol=1e-12)
    for found, expected in zip(in_parts, history, strict=True):
        assert found == pytest.approx(expected, rel=1e-10)


def test_max_steps_ends_a_run_early(model, tokenizer, task, shots):
    result = ofa.fit(model, tokenizer, task, shots, CONFIG, progress=False, max_steps=3)
    full = ofa.fit(build_llama(torch.float32), tokenizer, task, shots, CONFIG, progress=False)
    assert [row["lr"] for row in result.history] == [row["lr"] for row in full.history[:3]]
