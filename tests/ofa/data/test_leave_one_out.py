"""Each shot's training prompt stands behind the other shots, in an order of the epoch."""

import random

import pytest

from ofa.config import Schedule
from ofa.data.batch import encoded
from ofa.data.leave_one_out import leave_one_out, order_of, training_prompts
from ofa.data.task import Task
from ofa_kernels import mix

SCHEDULE = Schedule(lr=1e-2, weight_decay=0.0, epochs=3, batch_size=4, seed=7)


def prompts_of(tokenizer, task, shots, schedule=SCHEDULE, max_tokens=512):
    return training_prompts(tokenizer, task, shots, max_tokens, schedule, demonstrations=True)


def test_seed_and_epoch_shuffle_the_demonstrations():
    for seed, epoch in ((0, 0), (0, 1), (3, 0), (2**70, 29)):
        expected = list(range(6))
        random.Random(mix(seed, epoch)).shuffle(expected)
        assert order_of(6, seed, epoch) == expected
    orders = [tuple(order_of(6, seed, epoch)) for seed in range(3) for epoch in range(5)]
    assert len(set(orders)) == len(orders)


@pytest.mark.parametrize("epoch", range(4))
def test_no_shot_stands_before_its_own_prompt_and_all_others_do(task, shots, epoch):
    order = order_of(len(shots), 7, epoch)
    for i, before in enumerate(leave_one_out(task, shots, 7, epoch)):
        words = ["bad", "good"]
        lines = [f"Review: {s['text']}\nSentiment: {words[s['label']]}\n" for s in shots]
        assert shots[i]["text"] not in before
        assert before == "".join(lines[j] for j in order if j != i)


def test_every_epoch_has_prompts_of_its_own(tokenizer, task, shots):
    examples, steps = prompts_of(tokenizer, task, shots)
    assert len(examples.prompts) == len(examples.words) == 3 * len(shots)
    for (epoch, rows, lr), (bare_epoch, bare_rows, bare_lr) in zip(
        steps, SCHEDULE.steps(len(shots)), strict=True
    ):
        assert (epoch, lr) == (bare_epoch, bare_lr)
        assert [row % len(shots) for row in rows] == bare_rows
        assert {row // len(shots) for row in rows} == {epoch}
        for row, i in zip(rows, bare_rows, strict=True):
            text = leave_one_out(task, shots, 7, epoch)[i] + task.render(shots[i]["text"])
            assert list(examples.prompts[row]) == tokenizer(text)["input_ids"]
            assert examples.words[row] == [task.label_ids(tokenizer)[shots[i]["label"]]]


def test_without_demonstrations_prompts_are_bare(tokenizer, task, shots):
    examples, steps = training_prompts(tokenizer, task, shots, 512, SCHEDULE, demonstrations=False)
    assert steps == SCHEDULE.steps(len(shots))
    assert examples == encoded(tokenizer, task, shots, 512)


def test_only_epochs_that_are_reached_are_encoded(tokenizer, task, shots):
    """Six shots in steps of four: the third step is the first of the second epoch."""
    for max_steps, n_epochs in ((1, 1), (2, 1), (3, 2), (0, 1)):
        capped = Schedule(1e-2, 0.0, epochs=100, batch_size=4, max_steps=max_steps)
        examples, steps = prompts_of(tokenizer, task, shots, capped)
        assert len(examples.prompts) == n_epochs * len(shots) and len(steps) == max_steps


def test_a_token_takes_four_bytes(tokenizer, task, shots):
    examples, _ = prompts_of(tokenizer, task, shots)
    assert {memoryview(prompt).itemsize for prompt in examples.prompts} == {4}


def test_one_shot_alone_has_nothing_before_it(tokenizer, task, shots):
    examples, _ = prompts_of(tokenizer, task, shots[:1])
    assert [*map(list, examples.prompts)] == [tokenizer(task.render(shots[0]["text"]))["input_ids"]] * 3


def test_one_shot_a_class_stands_behind_that_of_the_other(tokenizer, task, shots):
    examples, _ = prompts_of(tokenizer, task, shots[:2])
    good, bad = (
        "Review: a bright and moving evening\nSentiment:",
        "Review: the second half never ends\nSentiment:",
    )
    texts = [f"{bad} bad\n{good}", f"{good} good\n{bad}"]
    assert [*map(list, examples.prompts)] == [tokenizer(text)["input_ids"] for text in texts] * 3


def test_a_text_is_cut_where_the_demonstrations_leave_little_room(tokenizer, task, shots):
    whole, _ = prompts_of(tokenizer, task, shots[:2])
    shorter = min(whole.lengths) - 2
    with pytest.warns(UserWarning, match="2 of 2 texts were longer"):
        examples, _ = prompts_of(tokenizer, task, shots[:2], max_tokens=shorter)
    assert examples.n_truncated == 2, "texts, however many epochs"
    assert max(examples.lengths) <= shorter
    kept = task.demonstrations(shots[1:2])
    assert tokenizer.decode(list(examples.prompts[0])).startswith(kept)


def test_demonstrations_that_fill_the_context_are_refused(tokenizer, task, shots):
    with pytest.raises(ValueError, match="what precedes it fill the context of 60 tokens"):
        prompts_of(tokenizer, task, shots, max_tokens=60)


@pytest.mark.parametrize(
    ("shot", "kind", "message"),
    [
        ({"text": "fine", "label": 2}, ValueError, "unknown label 2"),
        ({"text": " ", "label": 1}, ValueError, "a text is empty"),
        ({"text": 3, "label": 1}, TypeError, "text 6 is 3"),
    ],
)
def test_what_is_no_shot_is_refused(tokenizer, task, shots, shot, kind, message):
    with pytest.raises(kind, match=message):
        prompts_of(tokenizer, task, [*shots, shot])


def test_all_tokens_of_whole_words_are_trained_on(tokenizer, shots):
    task = Task("words", "Review: {text}\nSentiment:", ("very good", "bad"), whole_words=True)
    examples, _ = prompts_of(tokenizer, task, shots)
    words = task.word_ids(tokenizer)
    assert examples.words == [words[shot["label"]] for shot in shots] * 3
