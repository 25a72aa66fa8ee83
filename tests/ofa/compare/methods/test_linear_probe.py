import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler

from ofa.compare.methods import linear_probe
from ofa.compare.methods.linear_probe import LinearProbe, choose_layer, rounds
from tests.ofa.compare.methods.test_lora import setting_of, state_of
from tests.ofa.conftest import TEXTS

FRESH = ("a bright second half", "dull and never funny", "its own place in the evening", "jokes well played")


@pytest.fixture
def setting(llama, tokenizer, task, shots):
    llama.config.max_position_embeddings = 256
    return setting_of(llama, tokenizer, task, shots)


def slow_states(setting, text, demonstrations=()) -> np.ndarray:
    """[layers, D]: one prompt through transformers, every block's last output."""
    found = []
    blocks = setting.model.model.layers
    hooks = [b.register_forward_hook(lambda *seen: found.append(seen[2][0, -1].clone())) for b in blocks]
    ids = setting.tokenizer(setting.task.demonstrations(demonstrations) + setting.task.render(text))
    with torch.no_grad():
        setting.model(torch.tensor([ids["input_ids"]]))
    for hook in hooks:
        hook.remove()
    return torch.stack(found).numpy()


def regression(x, labels):
    scaler = StandardScaler().fit(x)
    fitted = LogisticRegression(max_iter=1000).fit(scaler.transform(x), labels)
    return lambda tested: fitted.predict_proba(scaler.transform(tested))


def slow_layer(z, labels, seed, n_folds) -> int:
    """Of z [layers, shots, D], fold by fold."""
    losses, labels = [], np.array(labels)
    for x in z:
        predicted = np.empty((len(labels), 2))
        for train, held in StratifiedKFold(n_folds, shuffle=True, random_state=seed).split(x, labels):
            predicted[held] = regression(x[train], labels[train])(x[held])
        losses.append(log_loss(labels, predicted))
    assert len(set(losses)) == len(losses), "a tie would hide which is chosen"
    return losses.index(min(losses))


@pytest.mark.parametrize("seed", [0, 1])
def test_agrees_with_a_slow_version(setting, shots, seed):
    labels = [shot["label"] for shot in shots]
    z = np.stack([slow_states(setting, shot["text"]) for shot in shots], axis=1)
    layer = slow_layer(z, labels, seed, 3)
    tested = np.stack([slow_states(setting, text)[layer] for text in FRESH])
    expected = torch.from_numpy(np.log(regression(z[layer], labels)(tested))).float()
    seeded = setting_of(setting.model, setting.tokenizer, setting.task, shots, seed=seed)
    with LinearProbe().fit(seeded) as fitted:
        assert fitted.notes == {"layer": layer, "labels_for_layer": 6}
        assert fitted.n_trainable == 24 + 1 and fitted.n_steps == 0
        scores = fitted.score(FRESH)
        single = torch.cat([fitted.score([text]).log_probs for text in FRESH])
    assert scores.n_truncated == 0
    torch.testing.assert_close(scores.log_probs, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(single, expected, rtol=1e-4, atol=1e-4)


def test_in_protocol_b_shots_are_read_after_the_other_rounds_and_tests_after_all(setting, shots):
    turns = [(0, 1), (2, 3), (4, 5)]  # the classes alternate
    labels, z = [shot["label"] for shot in shots], np.empty((3, 6, 24))
    for turn in turns:
        before = [shots[i] for i in range(6) if i not in turn]
        for i in turn:
            z[:, i] = slow_states(setting, shots[i]["text"], before)
    layer = slow_layer(z, labels, 0, 3)
    tested = np.stack([slow_states(setting, text, shots)[layer] for text in FRESH])
    expected = torch.from_numpy(np.log(regression(z[layer], labels)(tested))).float()
    with LinearProbe().fit(
        setting_of(setting.model, setting.tokenizer, setting.task, shots, protocol="B")
    ) as fitted:
        assert fitted.notes["layer"] == layer
        torch.testing.assert_close(fitted.score(FRESH).log_probs, expected, rtol=1e-4, atol=1e-4)


def test_rounds_hold_one_of_each_class():
    assert rounds([1, 0, 1, 1, 0, 2]) == [[0, 1, 5], [2, 4], [3]]


@pytest.mark.parametrize("protocol", ["A", "B"])
def test_one_shot_of_a_class_leaves_the_layer_at_three_quarters(setting, shots, protocol):
    few = setting_of(setting.model, setting.tokenizer, setting.task, shots[:4:3], protocol=protocol)
    assert [shot["label"] for shot in few.shots] == [1, 0]
    with LinearProbe().fit(few) as fitted:
        assert fitted.notes == {"layer": 2, "labels_for_layer": 0}
        assert fitted.score(TEXTS).log_probs.shape == (6, 2)
    z = torch.zeros(30, 2, 4)
    assert choose_layer(z, [0, 1], 0) == (22, 0), "the 23rd of 30"


def test_the_most_telling_layer_is_chosen_by_at_most_five_folds(monkeypatch):
    folds = []

    def spy(n, **options):
        folds.append((n, options["random_state"]))
        return StratifiedKFold(n, **options)

    monkeypatch.setattr(linear_probe, "StratifiedKFold", spy)
    generator = torch.Generator().manual_seed(0)
    labels = [0, 1, 2] * 8
    z = torch.randn(4, 24, 6, generator=generator, dtype=torch.float64)
    z[2, torch.arange(24), labels] += 3
    assert choose_layer(z, labels, 0) == (2, 24)
    assert choose_layer(z[:, :9], labels[:9], 7)[0] == 2
    assert folds == [(5, 0), (3, 7)]


def test_the_model_stays_as_it_is(setting, llama):
    llama.train()
    state, bits = state_of(llama), {name: value.clone() for name, value in llama.state_dict().items()}
    generator, numbers = torch.get_rng_state(), np.random.get_state()[1].copy()
    with pytest.raises(RuntimeError), LinearProbe().fit(setting) as fitted:
        fitted.score(TEXTS)
        raise RuntimeError
    assert state_of(llama) == state
    assert all(torch.equal(value, bits[name]) for name, value in llama.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator) and (np.random.get_state()[1] == numbers).all()


def test_cut_texts_are_counted(llama, tokenizer, task, shots):
    fitting = LinearProbe().fit(setting_of(llama, tokenizer, task, shots))
    with fitting as fitted, pytest.warns(UserWarning, match="1 of 2 texts"):
        scores = fitted.score(["bright", "moving " * 80])
    assert scores.n_truncated == 1


def test_bad_shots_and_states_are_refused(llama, tokenizer, task, shots):
    one_class = [shot for shot in shots if shot["label"] == 1]
    with pytest.raises(ValueError, match=r"an example of every class, got none of bad$"):
        LinearProbe().fit(setting_of(llama, tokenizer, task, one_class)).__enter__()
    with pytest.raises(ValueError, match="unknown label 5"):
        LinearProbe().fit(setting_of(llama, tokenizer, task, [*shots, {"text": "x", "label": 5}])).__enter__()
    llama.model.layers[1].input_layernorm.weight.data[0] = float("nan")
    with pytest.raises(FloatingPointError, match="states are NaN"):
        LinearProbe().fit(setting_of(llama, tokenizer, task, shots)).__enter__()
