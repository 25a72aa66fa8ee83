import json

import pytest
import torch

from benchmarks import step_cost
from benchmarks.step_cost import AUTHORS, CE, CONTENDERS, OFA_8, PEFT


@pytest.fixture
def data(tmp_path):
    """SST-2's form: rows of 3 to 40 words."""
    folder = tmp_path / "sst2"
    folder.mkdir()
    rows = [{"text": " ".join(["fine"] * (3 + i)), "label": i % 2} for i in range(38)]
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_batches_are_padded_as_they_say(data, tokenizer):
    (real, padded), (full, whole) = step_cost.batches("sst2", data, tokenizer).items()
    assert padded["input_ids"].shape[0] == whole["input_ids"].shape[0] == step_cost.ROWS
    assert whole["attention_mask"].all() and whole["input_ids"].shape[1] == 44 and "0% padding" in full
    share = 1 - padded["attention_mask"].float().mean()
    assert share > 0 and f"{share:.0%} padding" in real and padded["input_ids"].shape[1] <= 44


def test_every_contender_steps_and_takes_its_turn(data, tokenizer, model_folder):
    batch = next(iter(step_cost.batches("sst2", data, tokenizer).values()))
    order = []

    def spied(name):
        step = step_cost.make_step(name, step_cost.load(model_folder, torch.float32))
        return lambda batch: (order.append(name), step(batch))

    times = step_cost.time_in_turns({name: spied(name) for name in CONTENDERS}, batch, 2)
    assert all(len(values) == 2 for values in times.values())
    first, second = order[-2 * len(CONTENDERS) : -len(CONTENDERS)], order[-len(CONTENDERS) :]
    assert set(first) == set(second) == set(CONTENDERS)


def test_ratios_are_to_the_right_rows():
    times = {PEFT: [4.0] * 3, CE: [2.0] * 3, OFA_8: [3.0] * 3, AUTHORS: [6.0] * 3}
    rows = {row[0]: row[3:] for row in step_cost.rows_of(times)}
    assert rows[OFA_8] == ("0.75", "1.50", "0.50") and rows[PEFT] == ("1.00", "2.00", "0.67")


def test_memory_is_measured_above_the_weights(data, tokenizer, model_folder):
    batch = next(iter(step_cost.batches("sst2", data, tokenizer).values()))
    assert 2**18 < step_cost.peak_bytes(CE, model_folder, torch.float32, batch) < 2**28
