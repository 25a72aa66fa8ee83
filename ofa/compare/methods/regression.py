"""What the methods share that classify vectors by logistic regression."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ofa.compare.methods.base import Setting


def class_labels(setting: Setting) -> list[int]:
    """The shots' class numbers.

    Raises:
        ValueError: an unknown label, or a class without a shot, which a regression could never predict.
    """
    task, shots = setting.task, setting.shots
    task.check_labels(shots)
    labels = [shot["label"] for shot in shots]
    missing = [word for label, word in enumerate(task.label_words) if label not in labels]
    if missing:
        raise ValueError(
            f"a logistic regression needs an example of every class, got none of {', '.join(missing)}"
        )
    return labels


def log_probs(classifier: Any, vectors: np.ndarray) -> Tensor:
    """Log-probabilities [n, classes] in float32 of vectors [n, D], by a fitted classifier of scikit-learn."""
    return torch.from_numpy(classifier.predict_log_proba(vectors)).float()


def n_weights(regression: Any) -> int:
    """Numbers that a fitted `LogisticRegression` has learned."""
    return regression.coef_.size + regression.intercept_.size
