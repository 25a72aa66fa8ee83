"""The tensors that a case is timed on."""

from functools import cached_property

import torch
from torch import Tensor

from ofa_kernels import reference

SEED = 0x5EED_0FA0_0000_0001  # of probes: 64 bits, so that nothing can drop the upper half
DRAW_SEED = 0  # of PyTorch's random numbers: inputs and models


class Inputs:
    """Random tensors of one size, made when they are first asked for.

    Args:
        rows: of x.
        columns: of x.
        dtype: x's type; γ and its tangents are float32.
        k: how many tangents, probes or states.
        device: where they are; "meta" for sizes without memory.
    """

    def __init__(self, rows: int, columns: int, dtype: torch.dtype, k: int = 1, device: str = "cpu"):
        self.rows, self.columns, self.dtype, self.k, self.device = rows, columns, dtype, k, device
        # tensors of the device "meta" have no values to draw
        self._draw = None if device == "meta" else torch.Generator(device).manual_seed(DRAW_SEED)

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=self.dtype, device=self.device, generator=self._draw)

    @property
    def dtype_name(self) -> str:
        """Such as `bfloat16`."""
        return str(self.dtype).removeprefix("torch.")

    @cached_property
    def gamma(self) -> Tensor:
        """[columns] in float32, the values exact in x's type."""
        return self._random(self.columns).float()

    @cached_property
    def x(self) -> Tensor:
        """[rows, columns], a leaf that requires a gradient."""
        return self._random(self.rows, self.columns).requires_grad_()

    @cached_property
    def residual(self) -> Tensor:
        """Like x."""
        return self._random(self.rows, self.columns).requires_grad_()

    @cached_property
    def dy(self) -> Tensor:
        """[rows, columns]: the cotangent of y."""
        return self._random(self.rows, self.columns)

    @cached_property
    def ds(self) -> Tensor:
        """[rows, columns]: the cotangent of x + residual."""
        return self._random(self.rows, self.columns)

    @cached_property
    def x_dot(self) -> Tensor:
        """[k, rows, columns], a leaf that requires a gradient."""
        return self._random(self.k, self.rows, self.columns).requires_grad_()

    @cached_property
    def dy_dot(self) -> Tensor:
        """[k, rows, columns]."""
        return self._random(self.k, self.rows, self.columns)

    @cached_property
    def ids(self) -> Tensor:
        """[rows]: the rows' numbers."""
        return torch.arange(self.rows, device=self.device)

    @cached_property
    def signs(self) -> Tensor:
        """[k, rows, columns]: the probes of `SEED` and layer 0."""
        layers = torch.zeros(1, dtype=torch.int64, device=self.device)
        return reference.rademacher_signs(self.columns, self.ids, self.k, layers, SEED, self.dtype)[0]

    @cached_property
    def weight_dot(self) -> Tensor:
        """[k, columns] in float32, the values exact in x's type."""
        return self._random(self.k, self.columns).float()
