"""What a bank refuses, and that it is unchanged then."""

import json
from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from ofa import AdapterBank, FewShotClassifier, OFAConfig, Task
from ofa.decoder.patch import set_gammas
from ofa.scoring import score
from tests.ofa.banks import (
    TASKS,
    assert_same_state,
    filled,
    random_gammas,
    state,
)
from tests.ofa.conftest import LABELS, TEXTS, build_llama
from tests.ofa.decoder.test_families import build
from tests.ofa.save.test_adapter import DAMAGE


def with_gamma(place, change):
    def spoil(arguments):
        gammas = arguments["gammas"]
        gammas[place] = change(gammas[place])

    return spoil


FAULTS = {
    "name": (lambda a: a.update(name=3), TypeError, "name must be a string, got 3"),
    "name taken": (lambda a: a.update(name="films"), ValueError, "there is an adapter 'films' already"),
    "task": (lambda a: a.update(task="films"), TypeError, "task must be an ofa.Task, got 'films'"),
    "too few": (lambda a: a["gammas"].pop(), ValueError, "has 7 norms, and got γ for 6"),
    "shape": (
        with_gamma(1, lambda g: g[:-1]),
        ValueError,
        r"γ of layers\.0\.post_attention_layernorm has shape \(23,\), and the model needs \(24,\)",
    ),
    "a matrix": (with_gamma(6, lambda g: g[None]), ValueError, r"γ of norm has shape \(1, 24\)"),
    "NaN": (with_gamma(6, lambda g: g * float("nan")), ValueError, "γ of norm holds NaN"),
    "infinite": (with_gamma(0, lambda g: g / 0), ValueError, r"layers\.0\.input_layernorm holds NaN or inf"),
    "too large": (with_gamma(0, lambda g: g * 1e300), ValueError, "or such that torch.float32 can't hold"),
    "integers": (with_gamma(0, lambda g: g.long()), TypeError, "of a floating type, got torch.int64"),
    "lists": (with_gamma(0, lambda g: g.tolist()), TypeError, "of a floating type, got list"),
    "too few labels": (lambda a: a.update(labels=[1]), ValueError, "a label of its own, got \\(1,\\)"),
    "equal labels": (lambda a: a.update(labels=[1, 1]), ValueError, "a label of its own, got \\(1, 1\\)"),
    "a missing label": (lambda a: a.update(labels=[1, None]), ValueError, "label 1 is missing"),
    "unhashable": (lambda a: a.update(labels=[1, []]), TypeError, "can't be hashed"),
    "colliding words": (
        lambda a: a.update(task=replace(TASKS["films"], label_words=("very good", "very bad"))),
        ValueError,
        "start with the same token",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_refused_adapter_changes_nothing(fault, tokenizer):
    spoil, error, message = FAULTS[fault]
    model = build_llama(torch.float32)
    before, bank = state(model), filled(model, tokenizer)
    answers = bank.predict_proba(TEXTS, "films")
    arguments = {"name": "new", "gammas": random_gammas(model, 9), "task": TASKS["films"], "labels": None}
    spoil(arguments)
    with pytest.raises(error, match=message):
        bank.add(**arguments)
    assert bank.names == tuple(TASKS) and bank.predict_proba(TEXTS, "films") == answers
    assert_same_state(model, before)


def change_record(change):
    def spoil(folder):
        path = folder / "ofa_config.json"
        record = json.loads(path.read_text())
        change(record)
        path.write_text(json.dumps(record))

    return spoil


FILE_FAULTS = {
    **DAMAGE,
    "no folder": (
        lambda f: [p.unlink() for p in f.iterdir()],
        FileNotFoundError,
        "ofa_config.json is missing",
    ),
    "no task": (change_record(lambda r: r.pop("task")), ValueError, "γ but no template and label words"),
    "half a task": (
        change_record(lambda r: r["task"].pop("template")),
        ValueError,
        "ofa_config.json is damaged",
    ),
    "no place for the text": (
        change_record(lambda r: r["task"].update(template="Text:")),
        ValueError,
        "ofa_config.json is damaged.*must hold {text} exactly once",
    ),
    "no labels": (change_record(lambda r: r.pop("labels")), ValueError, "ofa_config.json is damaged"),
    "labels of another kind": (
        change_record(lambda r: r.update(labels="letters")),
        ValueError,
        "ofa_config.json is damaged",
    ),
    "equal labels": (change_record(lambda r: r.update(labels=[1, 1])), ValueError, "stands for two words"),
    "colliding words": (
        change_record(lambda r: r["task"].update(label_words=["very good", "very bad"])),
        ValueError,
        "start with the same token",
    ),
    "record cut short": (
        lambda f: (f / "ofa_config.json").write_text('{"model": '),
        ValueError,
        "ofa_config.json is damaged",
    ),
}


@pytest.fixture(scope="module")
def adapter_files(tmp_path_factory, tokenizer):
    """What a classifier's `save` writes, by the files' names."""
    folder = tmp_path_factory.mktemp("adapter")
    model = build_llama(torch.float32)
    classifier = FewShotClassifier(
        model, ["bad", "good"], tokenizer=tokenizer, config=OFAConfig(epochs=1), progress=False
    )
    classifier.fit(TEXTS, LABELS).save(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def folder(adapter_files, tmp_path):
    for name, content in adapter_files.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.mark.parametrize("fault", FILE_FAULTS)
def test_a_refused_file_changes_nothing(fault, folder, tokenizer):
    spoil, error, message = FILE_FAULTS[fault]
    model = build_llama(torch.float32)
    before, bank = state(model), filled(model, tokenizer)
    spoil(folder)
    with pytest.raises(error, match=message):
        bank.load(folder, "new")
    assert bank.names == tuple(TASKS)
    assert_same_state(model, before)


def test_a_file_of_another_model_is_refused(folder, tokenizer):
    bank = AdapterBank(build_llama(torch.float32, n_layers=2), tokenizer)
    with pytest.raises(ValueError, match="wrong base model"):
        bank.load(folder, "new")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        bank.load(folder / "nowhere", "new")
    assert len(bank) == 0


REQUESTS = {
    "no name": (["a", "b"], ["films"], ValueError, "same length, got 2 and 1"),
    "unknown": (["a", "b"], ["films", "plays"], KeyError, "text 1 asks for the adapter 'plays'"),
    "unknown to all": (["a"], "plays", KeyError, "text 0 asks for the adapter 'plays'"),
    "an empty text": (["a", "b", " "], "films", ValueError, "text 2: a text is empty"),
    "no string": (["a", None], "films", TypeError, "text 1 is None"),
    "one string": ("a", "films", TypeError, "texts must be a list"),
    "no room": (["a", "b"], ["films", "long"], ValueError, "text 1: a text of .* can't be cut to fit"),
}


@pytest.mark.parametrize("request_", REQUESTS)
def test_what_a_request_lacks_is_named(request_, llama, tokenizer):
    texts, names, error, message = REQUESTS[request_]
    bank = filled(llama, tokenizer)
    bank.add("long", random_gammas(llama, 3), Task("t", "no end " * 60 + "{text}:", ("bad", "good")))
    for ask in (bank.predict, bank.predict_proba):
        with pytest.raises(error, match=message):
            ask(texts, names)


def test_the_window_of_a_model_is_kept_and_the_text_named(tokenizer):
    model = build("mistral", sliding_window=24)
    bank = filled(model, tokenizer)
    with pytest.raises(ValueError, match=r"text 1: a prompt of \d+ tokens is longer .* window of 24"):
        bank.predict(["short", "long " * 20], "films")


def test_no_texts_no_answers(llama, tokenizer):
    bank = filled(llama, tokenizer)
    for names in ([], "films"):
        assert bank.predict([], names) == [] and bank.predict_proba([], names) == []


def test_long_texts_are_cut_as_score_does(llama, tokenizer):
    llama = llama.float()
    bank, long = filled(llama, tokenizer), "long " * 100
    for name in ("films", "words"):
        with pytest.warns(UserWarning, match="1 of 2 texts were longer than the context"):
            found = bank.predict_proba(["short", long], name)
        model = deepcopy(llama)
        set_gammas(model, random_gammas(model, list(TASKS).index(name)))
        with pytest.warns(UserWarning, match="1 of 2 texts"):
            expected = score(model, tokenizer, TASKS[name], ["short", long]).log_probs.exp()
        torch.testing.assert_close(
            torch.tensor([[*row.values()] for row in found]), expected, rtol=1e-4, atol=1e-5
        )


def test_nan_is_no_prediction_and_the_text_is_named(llama, tokenizer):
    llama = llama.float()
    bank = filled(llama, tokenizer)
    bank.add("too large", [gamma * 1e37 for gamma in random_gammas(llama, 1)], TASKS["films"])
    with pytest.raises(FloatingPointError, match="text 2: the model's logits are NaN or infinite"):
        bank.predict(TEXTS, ["films", "words", "too large", "films", "moods", "too large"])


def test_a_model_comes_by_its_folder_or_with_its_tokenizer(model_folder, folder, llama, tokenizer):
    bank = AdapterBank(model_folder, dtype=torch.float32)
    bank.load(folder, "mine")
    assert set(bank.predict(TEXTS, "mine")) <= {0, 1}
    with pytest.raises(ValueError, match="needs its tokenizer, and keeps its own dtype"):
        AdapterBank(llama)
    with pytest.raises(ValueError, match="needs its tokenizer, and keeps its own dtype"):
        AdapterBank(llama, tokenizer, torch.float32)
    with pytest.raises(ValueError, match="brings its own tokenizer"):
        AdapterBank(model_folder, tokenizer)
    with pytest.raises(ValueError, match=r"Linear .* is not supported"):
        AdapterBank(torch.nn.Linear(2, 2), tokenizer)
