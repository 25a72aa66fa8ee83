import pytest
import torch

from benchmarks.precision import mcnemar


def test_mcnemar_counts_discordant_pairs():
    first = torch.tensor([True] * 7 + [False] * 2 + [True] * 5)
    second = torch.tensor([False] * 7 + [True] * 2 + [True] * 5)
    a, b, p = mcnemar(first, second)
    assert (a, b) == (7, 2) and p == pytest.approx(2 * (1 + 9 + 36) / 2**9)


def test_mcnemar_without_a_difference_tells_nothing():
    assert mcnemar(torch.ones(3, dtype=torch.bool), torch.ones(3, dtype=torch.bool)) == (0, 0, 1.0)
