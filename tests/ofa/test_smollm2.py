"""The real model on real data: what the tiny random one can't show."""

import os
from pathlib import Path

import pytest
import torch

import ofa
from ofa.download import SourceError
from ofa.fewshot.protocol import draw_shots, number_labels, read_rows
from ofa.scoring import score

DATA = Path(os.environ.get("OFA_DATA", Path(__file__).parents[3] / "shared" / "data"))
TREC = ofa.Task(
    "trec",
    "Question: {text}\nAnswer Type:",
    ("Abbreviation", "Entity", "Description", "Person", "Location", "Number"),
)
pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def smollm2():
    try:
        return ofa.models.load("smollm2-135m-instruct-q4")
    except SourceError as error:
        pytest.skip(f"no model: {error}")


def rows(split):
    path = DATA / "trec" / f"{split}.jsonl"
    if not path.is_file():
        pytest.skip(f"no data at {path}; OFA_DATA names the folder")
    return number_labels(read_rows(str(path)), TREC.label_words)[0]


def test_zero_shot_accuracy_is_that_of_an_independent_pipeline(smollm2):
    """Another program measured .240 in float32 on the same 500 questions; 4 of them may round otherwise."""
    test = rows("test")
    accuracy = score(*smollm2, TREC, [row["text"] for row in test]).accuracy([row["label"] for row in test])
    assert accuracy == pytest.approx(0.240, abs=0.008)


def test_patching_keeps_every_bit(smollm2):
    model, tokenizer = smollm2
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        before = model(**inputs).logits
        report = ofa.patch_model(model)
        after = model(**inputs).logits
    report.undo()
    assert report.n_trainable == 35_136 and torch.equal(after, before)


def test_thirty_shots_teach_it_question_types(smollm2):
    model, tokenizer = smollm2
    shots, _ = draw_shots(rows("train"), 5, 0, TREC.label_words)
    test = rows("test")[:100]
    texts, labels = [row["text"] for row in test], [row["label"] for row in test]
    before = score(model, tokenizer, TREC, texts).accuracy(labels)
    ofa.fit(model, tokenizer, TREC, shots, ofa.OFAConfig(epochs=4, batch_size=6), progress=False)
    after = score(model, tokenizer, TREC, texts).accuracy(labels)
    ofa.patch_model(model).undo()
    assert after > before + 0.1
