"""The tokens of all label words, as batches have them."""

from dataclasses import replace

import torch

from ofa.data.batch import collate, encoded, features, padded

CPU = torch.device("cpu")


def test_rows_are_filled_up_with_what_no_loss_looks_at():
    assert padded([[1, 2], [3], []]).tolist() == [[1, 2], [3, -100], [-100, -100]]
    assert padded([[], []]).shape == (2, 0) and padded([[]]).dtype == torch.int64


def test_every_example_has_the_tokens_of_all_label_words(tokenizer, task, shots):
    tokens, rows = task.label_ids(tokenizer), features(tokenizer, task, shots, 64)
    assert [row["classes"] for row in rows] == [tokens] * len(shots)
    examples = encoded(tokenizer, task, shots, 64)
    for batch in (collate(rows[:3]), examples.batch([0, 1, 2], CPU)):
        assert batch["classes"].tolist() == [tokens] * 3
    rows[1]["classes"] = tokens[:1]  # of another task
    assert collate(rows[:2])["classes"].tolist() == [tokens, [tokens[0], -100]]
    del rows[1]["classes"]  # of an earlier version
    assert "classes" not in collate(rows[:2])


def test_words_of_several_tokens_are_told_from_no_classes(tokenizer, task, shots):
    several = replace(task, label_words=("very good", "bad"), whole_words=True)
    rows = features(tokenizer, several, shots, 64)
    assert all(row["classes"] == [] for row in rows)
    assert collate(rows)["classes"].shape == (len(shots), 0)
    assert encoded(tokenizer, several, shots, 64).batch([1], CPU)["classes"].shape == (1, 0)
