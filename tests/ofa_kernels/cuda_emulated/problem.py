"""A call as data, and the bound that its results are held to."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from tests.ofa_kernels.bounds import assert_within
from tests.ofa_kernels.cuda_emulated.driver import call_of

PER_ROW = ("weight_index", "seeds")  # members that no CUDA kernel takes


@dataclass
class Problem:
    """What an operator is called with, what it has to write, and what that must be."""

    sizes: dict[str, float]
    inputs: dict[str, torch.Tensor | None]
    outputs: dict[str, tuple]  # name -> shape and type, of those that are wanted
    check: Callable[[dict[str, torch.Tensor]], None]  # of the outputs, by name
    seed: torch.Tensor | None = None  # on the device
    unwanted: tuple[str, ...] = ()

    def call(self, operator, outputs):
        tensors = dict.fromkeys(PER_ROW) | self.inputs | outputs | dict.fromkeys(self.unwanted)
        return call_of(operator, self.sizes, tensors)


def within(got, truth, scale, like, *roundings, sums=1, terms=0):
    """`assert_within`, unless terms that cancel may be infinite in the type of the result."""
    assert not got.isnan().any(), "NaN"
    if not scale.numel() or scale.max() < torch.finfo(got.dtype).max / 8:
        assert_within(got, truth, scale, like, *roundings, sums=sums, terms=terms)
