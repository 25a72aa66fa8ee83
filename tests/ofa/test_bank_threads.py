"""Threads that ask a bank while others change it."""

import threading

import pytest

from ofa import AdapterBank
from tests.ofa.banks import (
    MANY_TEXTS,
    NAMES,
    TASKS,
    assert_alike,
    filled,
    random_gammas,
)
from tests.ofa.conftest import TEXTS
from tests.ofa.decoder.test_families import build


def test_a_request_is_answered_with_what_was_there_when_it_began(llama, tokenizer):
    bank = filled(llama, tokenizer)
    expected = bank.predict_proba(TEXTS, "films")

    def texts():
        bank.remove("films")
        bank.add("films", random_gammas(llama, 50), TASKS["moods"])
        yield from TEXTS

    assert bank.predict_proba(texts(), "films") == expected
    assert list(bank.predict_proba(TEXTS[:1], "films")[0]) == ["dull", "warm", "funny"]

    def late():
        bank.add("late", random_gammas(llama, 51), TASKS["films"])
        yield TEXTS[0]

    with pytest.raises(KeyError, match="text 0 asks for the adapter 'late'"):
        bank.predict(late(), "late")
    assert len(bank.predict(TEXTS, "late")) == len(TEXTS)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_requests_come_while_adapters_come_and_go(family, tokenizer):
    model = build(family)
    bank = filled(model, tokenizer)
    expected = bank.predict_proba(MANY_TEXTS, NAMES)
    done, problems = threading.Event(), []

    def ask(start):
        texts, names = ([*values[start:], *values[:start]] for values in (list(MANY_TEXTS), list(NAMES)))
        truth = [*expected[start:], *expected[:start]]
        try:
            for _ in range(4):
                assert_alike(bank.predict_proba(texts, names), truth, 1e-5 if family == "gpt2" else 1e-12)
        except BaseException as error:
            problems.append(error)

    def change(own):
        try:
            while not done.is_set():
                bank.add(own, random_gammas(model, 30), TASKS["moods"])
                assert own in bank and "films" in bank.names
                bank.remove(own)
        except BaseException as error:
            problems.append(error)

    asking = [threading.Thread(target=ask, args=(start,)) for start in range(0, 12, 4)]
    changing = [threading.Thread(target=change, args=(f"guest {i}",)) for i in range(2)]
    for thread in (*asking, *changing):
        thread.start()
    for thread in asking:
        thread.join()
    done.set()
    for thread in changing:
        thread.join()
    assert not problems and bank.names == tuple(TASKS)


def test_one_name_is_added_once_however_many_try(llama, tokenizer):
    bank, refused = AdapterBank(llama, tokenizer), []
    start = threading.Barrier(8)

    def add():
        start.wait()
        try:
            bank.add("films", random_gammas(llama, 0), TASKS["films"])
        except ValueError as error:
            refused.append(error)

    threads = [threading.Thread(target=add) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 7 and bank.names == ("films",)
