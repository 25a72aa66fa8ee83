"""How good scores are: accuracy, macro-F1, calibration error and log-loss."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score

from ofa.scoring import Scores

BINS = 10


def calibration_error(probabilities: torch.Tensor, labels: torch.Tensor) -> float:
    """Expected calibration error (Guo et al. 2017, equation 3) over ten bins of equal width.

    Args:
        probabilities: [n, classes], rows that sum to 1.
        labels: [n] class numbers.
    """
    confidence, predicted = probabilities.max(-1)
    right = (predicted == labels).to(confidence.dtype)
    bins = (confidence * BINS).long().clamp(max=BINS - 1)
    # Σ |B|/n |acc(B) - conf(B)|, where the size of the bin cancels
    gaps = torch.zeros(BINS, dtype=confidence.dtype).index_add(0, bins, right - confidence)
    return (gaps.abs().sum() / len(labels)).item()


def metrics(scores: Scores, labels: Sequence[int]) -> dict[str, float]:
    """`accuracy`, `macro_f1` over the classes that occur, `calibration_error`, and `log_loss` in nats."""
    truth = torch.tensor(labels)
    return {
        "accuracy": scores.accuracy(labels),
        "macro_f1": float(f1_score(truth.numpy(), scores.predictions.numpy(), average="macro")),
        "calibration_error": calibration_error(scores.log_probs.exp(), truth),
        "log_loss": F.nll_loss(scores.log_probs.double(), truth).item(),
    }
