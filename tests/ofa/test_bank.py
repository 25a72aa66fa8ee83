"""A bank's mixed batches against every adapter alone, in float64."""

from copy import deepcopy

import pytest
import torch

import ofa
from ofa import AdapterBank, FewShotClassifier, OFAConfig, mixed_scoring, scoring
from ofa.data.batch import labelled
from ofa.decoder.patch import set_gammas
from ofa.decoder.view import Decoder
from ofa.passes.own_layers import token_states
from ofa.passes.shared_packing import SharedPacking
from ofa.scoring import score
from tests.ofa.banks import (
    MANY_TEXTS,
    NAMES,
    TASKS,
    assert_alike,
    assert_same_state,
    filled,
    random_gammas,
    state,
)
from tests.ofa.conftest import LABELS, TEXTS, build_llama
from tests.ofa.decoder.test_families import OPTIONS, WITHOUT_STACKED_FORM, build, in_float64


def alone(model, tokenizer, name, text):
    """{word: probability} by the model's own layers, with the adapter's γ in a copy of it."""
    model, task = deepcopy(model), TASKS[name]
    set_gammas(model, random_gammas(model, list(TASKS).index(name)))
    prompt, totals = tokenizer(task.render(text))["input_ids"], []
    for word in task.target_ids(tokenizer):
        with torch.no_grad():
            states = token_states(Decoder.of(model), labelled([prompt], [word], torch.device("cpu")))
        logits = [states.logits[0], *(() if states.following is None else states.following[0])]
        totals.append(sum(row.log_softmax(-1)[token] for row, token in zip(logits, word, strict=True)))
    return dict(zip(task.label_words, torch.stack(totals).softmax(-1).tolist(), strict=True))


@pytest.mark.parametrize("family", [family for family in OPTIONS if family not in WITHOUT_STACKED_FORM])
def test_a_mixed_batch_is_what_every_adapter_answers_alone(family, tokenizer):
    model = in_float64(build(family))
    bank = filled(model, tokenizer)
    mixed = bank.predict_proba(MANY_TEXTS, NAMES)
    one_by_one = [bank.predict_proba([text], name)[0] for text, name in zip(MANY_TEXTS, NAMES, strict=True)]
    assert_alike(mixed, one_by_one, 1e-12)
    slow = [alone(model, tokenizer, name, text) for text, name in zip(MANY_TEXTS, NAMES, strict=True)]
    assert_alike(mixed, slow, 1e-10)
    assert bank.predict(MANY_TEXTS, NAMES) == [max(row, key=row.get) for row in mixed]
    assert len({label for row in mixed for label in row}) == 8, "each adapter has its own labels"
    assert len({tuple(row.values()) for row in mixed}) == len(mixed), "the adapters differ"


@pytest.mark.parametrize(("rows", "tokens"), [(1, 16384), (3, 16384), (32, 60)])
def test_how_texts_are_batched_changes_nothing(llama, tokenizer, monkeypatch, rows, tokens):
    bank = filled(llama, tokenizer)
    expected = bank.predict_proba(MANY_TEXTS, NAMES)
    monkeypatch.setattr(scoring, "ROWS_PER_BATCH", rows)
    monkeypatch.setattr(scoring, "TOKENS_PER_BATCH", tokens)
    assert_alike(bank.predict_proba(MANY_TEXTS, NAMES), expected, 1e-12)


def test_batches_keep_to_the_limits_with_an_adapters_rows_side_by_side(llama, tokenizer, monkeypatch):
    bank, seen = filled(llama, tokenizer), []
    of_prompts = SharedPacking.of_prompts

    def noted(prompts, words, groups, device):
        packing = of_prompts(prompts, words, groups, device)
        seen.append((groups, packing.real.numel()))
        return packing

    monkeypatch.setattr(mixed_scoring.SharedPacking, "of_prompts", noted)
    monkeypatch.setattr(scoring, "ROWS_PER_BATCH", 5)
    texts = sorted(MANY_TEXTS, key=lambda text: len(tokenizer(text)["input_ids"]))
    for limit in range(60, 140, 8):
        monkeypatch.setattr(scoring, "TOKENS_PER_BATCH", limit)
        bank.predict(texts, ["words", "films", "other films"] * 4)
        assert max(len(groups) for groups, _ in seen) > 1
        for groups, n_places in seen:
            assert len(groups) == 1 or (len(groups) <= 5 and n_places <= limit)
            assert groups == sorted(groups)
        seen.clear()


def test_an_adapters_prompts_share_their_beginning_and_nobody_elses(llama, tokenizer, monkeypatch):
    bank, embedded = filled(llama, tokenizer), []
    llama.model.embed_tokens.register_forward_hook(lambda _, args, __: embedded.append(args[0].numel()))
    names = ["films"] * 3 + ["words"] * 3
    found = bank.predict_proba(TEXTS, names)
    of_prompts = SharedPacking.of_prompts

    def apart(prompts, words, groups, device):
        return of_prompts(prompts, words, range(len(prompts)), device)

    monkeypatch.setattr(mixed_scoring.SharedPacking, "of_prompts", apart)
    assert_alike(found, bank.predict_proba(TEXTS, names), 1e-12)
    ids = [tokenizer(TASKS[name].render(text))["input_ids"] for name, text in zip(names, TEXTS, strict=True)]
    words = [word for word in TASKS["words"].target_ids(tokenizer) if len(word) > 1]
    assert len(words) > 1
    further = sum(len(word) - 1 for word in words)
    films, others = sum(map(len, ids[:3])), sum(map(len, ids[3:]))
    assert embedded[1] == films + len(words) * others + 3 * further

    def distinct(rows):
        return len({tuple(row[:n]) for row in rows for n in range(1, len(row))})

    # every example has its own prediction token; what stands before it is there once
    assert embedded[0] == 3 + distinct(ids[:3]) + 3 * len(words) + distinct(ids[3:]) + 3 * further


def test_a_words_score_is_read_in_as_few_examples_as_can_be(llama, tokenizer):
    adapter = mixed_scoring.Adapter(torch.empty(0), [[5], [6, 7], [8], [6, 9, 4]])
    assert adapter.readings == [([6, 7], [1, 0, 2]), ([6, 9, 4], [3])] and adapter.longest == 3
    assert mixed_scoring.Adapter(torch.empty(0), [[5], [6]]).readings == [([5], [0, 1])]


def test_a_classifiers_adapter_answers_as_the_classifier(tokenizer, tmp_path, llama):
    words = {"no": "bad", "yes": "good"}
    classifier = FewShotClassifier(
        llama, words, tokenizer=tokenizer, config=OFAConfig(epochs=2), progress=False
    ).fit(TEXTS, [["no", "yes"][label] for label in LABELS])
    classifier.save(tmp_path)
    bank = filled(llama, tokenizer)
    bank.load(tmp_path, "mine")
    set_gammas(llama, None)
    names = ["films", "mine"] * 3
    found = bank.predict_proba(TEXTS, names)
    expected = classifier.predict_proba(TEXTS)
    for i in (1, 3, 5):
        assert list(found[i]) == ["no", "yes"]
        torch.testing.assert_close(torch.tensor([*found[i].values()]), torch.tensor(expected[i]).float())
    assert bank.predict(TEXTS, "mine") == classifier.predict(TEXTS).tolist()


def test_the_scores_are_those_of_score(llama, tokenizer):
    llama = llama.float()
    found = filled(llama, tokenizer).predict_proba(MANY_TEXTS, "words")
    set_gammas(llama, random_gammas(llama, list(TASKS).index("words")))
    expected = score(llama, tokenizer, TASKS["words"], MANY_TEXTS).log_probs.exp()
    torch.testing.assert_close(
        torch.tensor([[*row.values()] for row in found]), expected, rtol=1e-4, atol=1e-5
    )


def test_labels_may_be_anything_that_can_be_hashed(llama, tokenizer):
    bank = AdapterBank(llama, tokenizer)
    bank.add("numbers", random_gammas(llama, 0), TASKS["films"], range(2))
    bank.add("pairs", random_gammas(llama, 0), TASKS["films"], [("a", 1), ("b", 2)])
    numbers, pairs = bank.predict_proba(TEXTS[:1] * 2, ["numbers", "pairs"])
    assert list(numbers) == [0, 1] and list(pairs) == [("a", 1), ("b", 2)]
    assert [*numbers.values()] == pytest.approx([*pairs.values()], rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gamma_of_a_16_bit_model_is_float32(dtype, tokenizer):
    bank = filled(build_llama(dtype), tokenizer)
    exact = filled(build_llama(torch.float32), tokenizer)
    assert (
        bank.nbytes == exact.nbytes == 4 * len(TASKS) * sum(g.numel() for g in random_gammas(exact.model, 0))
    )
    assert_alike(bank.predict_proba(TEXTS, "films"), exact.predict_proba(TEXTS, "films"), 0.1)


@pytest.mark.parametrize("patched", [False, True])
@pytest.mark.parametrize("family", ["llama", *WITHOUT_STACKED_FORM])
def test_the_model_stays_as_it_is_bit_for_bit(family, patched, tokenizer):
    model = build(family, torch.float32)
    if patched:
        ofa.patch_model(model)
        set_gammas(model, random_gammas(model, 77))
        model.get_input_embeddings().weight.requires_grad_(True)
    before = state(model)
    bank = filled(model, tokenizer)
    bank.predict(TEXTS, NAMES[: len(TEXTS)])
    assert_same_state(model, before)


@pytest.mark.parametrize("family", WITHOUT_STACKED_FORM)
@pytest.mark.parametrize("patched", [False, True])
def test_without_a_stacked_form_the_adapters_take_turns(family, patched, tokenizer):
    model = build(family)
    slow = [alone(model, tokenizer, name, text) for text, name in zip(MANY_TEXTS, NAMES, strict=True)]
    if patched:
        ofa.patch_model(model)
        set_gammas(model, random_gammas(model, 77))
    found = filled(model, tokenizer).predict_proba(MANY_TEXTS, NAMES)
    assert_alike(found, slow, 1e-5)  # `prompt_log_probs` takes logits as float32


def test_a_model_in_training_mode_drops_nothing(tokenizer):
    model = build_llama(attention_dropout=0.5)
    expected = filled(model, tokenizer).predict_proba(MANY_TEXTS, NAMES)
    before = state(model.train())
    assert_alike(filled(model, tokenizer).predict_proba(MANY_TEXTS, NAMES), expected, 1e-5)
    assert_same_state(model, before)
    assert all(module.training for module in model.modules())


def test_a_pass_that_fails_gives_the_model_back(tokenizer, monkeypatch):
    model = build("gpt2", torch.float32)
    before, bank = state(model), filled(model, tokenizer)

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(mixed_scoring, "prompt_log_probs", fail)
    with pytest.raises(MemoryError):
        bank.predict(TEXTS, "films")
    assert_same_state(model, before)
    monkeypatch.undo()
    assert len(bank.predict(TEXTS, "films")) == len(TEXTS), "the next request is served"


def test_a_bank_knows_its_adapters(llama, tokenizer):
    bank = filled(llama, tokenizer)
    one = 8 * sum(gamma.numel() for gamma in random_gammas(llama, 0))
    assert bank.names == tuple(TASKS) and len(bank) == 4 and bank.nbytes == 4 * one
    bank.remove("moods")
    assert bank.names == ("films", "words", "other films") and bank.nbytes == 3 * one
    assert "films" in bank and "moods" not in bank
    with pytest.raises(KeyError, match="there is no adapter 'moods'"):
        bank.remove("moods")
    bank.add("moods", random_gammas(llama, 5), TASKS["moods"])
    assert bank.names[-1] == "moods"


def test_a_thousand_adapters(tokenizer):
    model = build_llama(torch.float32, n_layers=1)
    bank = AdapterBank(model, tokenizer)
    gammas = torch.rand(1000, 3, 24, generator=torch.Generator().manual_seed(0)) + 0.5
    for i, own in enumerate(gammas):
        bank.add(f"customer {i}", own.unbind(), TASKS["films"])
    assert len(bank) == 1000 and bank.nbytes == gammas.nbytes
    names = [f"customer {i}" for i in range(0, 1000, 25)]
    found = bank.predict_proba(TEXTS[:1] * 40, names)
    assert len({tuple(row.values()) for row in found}) == 40
    assert_alike(found[3:4], bank.predict_proba(TEXTS[:1], "customer 75"), 1e-5)


def test_gamma_is_copied(llama, tokenizer):
    bank, gammas = AdapterBank(llama, tokenizer), random_gammas(llama, 0)
    bank.add("films", gammas, TASKS["films"])
    before = bank.predict_proba(TEXTS, "films")
    for gamma in gammas:
        gamma.zero_()
    ofa.patch_model(llama)
    set_gammas(llama, random_gammas(llama, 9))
    assert bank.predict_proba(TEXTS, "films") == before, "nor does the model's own γ matter"


def test_autocast_changes_nothing(llama, tokenizer):
    llama = llama.float()
    bank = filled(llama, tokenizer)
    expected = bank.predict_proba(TEXTS, "films")
    with torch.autocast("cpu", torch.bfloat16):
        assert bank.predict_proba(TEXTS, "films") == expected
