"""The real model on real data: what the tiny random one can't show."""

import copy
import os
from pathlib import Path

import pytest
import torch

import ofa
from ofa.data.draws import draw_shots, number_labels, read_rows
from ofa.download import SourceError
from ofa.scoring import score

DATA = Path(os.environ.get("OFA_DATA", Path(__file__).parents[3] / "shared" / "data"))
TREC = ofa.Task(
    "trec",
    "Question: {text}\nAnswer Type:",
    ("Abbreviation", "Entity", "Description", "Person", "Location", "Number"),
)
SENTENCE = (
    "Norms are read as preconditioners of a descent; of these twenty-odd tokens each has its own noise."
)
pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def smollm2():
    try:
        return ofa.models.load("smollm2-135m-instruct-q4")
    except SourceError as error:
        pytest.skip(f"no model: {error}")


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def model_and_inputs(smollm2, request):
    """A copy in the type, and a sentence for it."""
    model, tokenizer = smollm2
    return copy.deepcopy(model).to(request.param), tokenizer(SENTENCE, return_tensors="pt")


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


def test_patching_keeps_every_bit_on_the_reference_backend(model_and_inputs, reference_backend):
    model, inputs = model_and_inputs
    with torch.no_grad():
        before = model(**inputs).logits
        report = ofa.patch_model(model)
        assert report.n_trainable == 35_136 and torch.equal(model(**inputs).logits, before)
        report.undo()
        assert torch.equal(model(**inputs).logits, before)


def test_logits_of_the_fused_norms_are_as_near_to_float64_as_the_models_own(model_and_inputs):
    """Eager's rstd isn't rounded correctly, ours may differ in its last bit: only luck makes one nearer."""
    model, inputs = model_and_inputs
    with torch.no_grad():
        truth = copy.deepcopy(model).double()(**inputs).logits
        own = (model(**inputs).logits - truth).norm()
        ofa.patch_model(model)
        fused = (model(**inputs).logits - truth).norm()
    assert fused <= 2 * own


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
