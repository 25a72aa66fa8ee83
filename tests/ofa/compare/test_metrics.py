import pytest
import torch
from sklearn.metrics import f1_score, log_loss

from ofa.compare.metrics import calibration_error, metrics
from ofa.scoring import Scores


def slow_calibration_error(probabilities, labels):
    total = 0.0
    for low in range(10):
        members = []
        for row, label in zip(probabilities.tolist(), labels.tolist(), strict=True):
            confidence = max(row)
            if low / 10 <= confidence < (low + 1) / 10 or (low == 9 and confidence == 1):
                members.append((confidence, row.index(confidence) == label))
        if members:
            accuracy = sum(right for _, right in members) / len(members)
            confidence = sum(c for c, _ in members) / len(members)
            total += len(members) / len(labels) * abs(accuracy - confidence)
    return total


def test_calibration_error_is_its_definition():
    torch.manual_seed(0)
    probabilities = (2 * torch.randn(200, 3, dtype=torch.float64)).softmax(-1)
    labels = torch.randint(0, 3, (200,))
    expected = slow_calibration_error(probabilities, labels)
    assert calibration_error(probabilities, labels) == pytest.approx(expected)
    sure = torch.eye(2)[[0, 1, 1]]
    assert calibration_error(sure, torch.tensor([0, 1, 1])) == 0


def test_metrics_of_scores():
    log_probs = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]]).log()
    found = metrics(Scores(log_probs, 0), [0, 1, 1, 0])
    assert found["accuracy"] == 0.75
    assert found["macro_f1"] == pytest.approx(f1_score([0, 1, 1, 0], [0, 1, 0, 0], average="macro"))
    assert found["log_loss"] == pytest.approx(log_loss([0, 1, 1, 0], log_probs.exp().numpy()))
