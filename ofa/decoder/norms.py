"""The modules that replace a model's norms."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

import ofa_kernels

# a module of transformers or PEFT, whose parts are found by their names
Foreign: TypeAlias = Any


def epsilon(norm: Foreign) -> float:
    """What a norm adds to the mean square, under either of its names in transformers."""
    return norm.eps if hasattr(norm, "eps") else norm.variance_epsilon


def active_norm(module: Foreign) -> Foreign:
    """The norm that computes: inside PEFT's LN-tuning wrapper that is the active copy, not the base."""
    if not hasattr(module, "ln_tuning_layers"):
        return module
    if module.disable_adapters or module.merged or not module.active_adapters:
        return module.base_layer
    return module.ln_tuning_layers[module.active_adapters[0]]


@dataclass(frozen=True)
class RMSNormFunction:
    """An RMSNorm's numbers and what is computed with them, whether its module is patched or not.

    Attributes:
        weight: [N], or [A, N] where the rows have weights of their own.
        eps: added to the mean square.
        offset: added to the weight.
        rounding: where a 16-bit result is rounded, as in `ofa_kernels.rms_norm`.
        weight_index: for x of a leading shape, which of the A weights each of its rows has; None for one
            weight of all rows.
    """

    weight: Tensor
    eps: float
    offset: float
    rounding: str
    weight_index: Mapping[torch.Size, Tensor] | None = None

    def index_of(self, x: Tensor) -> Tensor | None:
        """Which of the weights each row of x [..., N] has, int64 [...]; None for one weight of all rows."""
        return None if self.weight_index is None else self.weight_index[x.shape[:-1]]

    def __call__(self, x: Tensor) -> Tensor:
        """The norm of x [..., N]."""
        return ofa_kernels.rms_norm(
            x, self.weight, self.eps, self.offset, self.rounding, weight_index=self.index_of(x)
        )

    def of_sum(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The norm of x + residual, and the sum."""
        return ofa_kernels.add_rms_norm(
            x, residual, self.weight, self.eps, self.offset, self.rounding, weight_index=self.index_of(x)
        )

    def jvp(self, x: Tensor, x_dot: Tensor) -> Tensor:
        """Tangents [K, ..., N] of the norm, for tangents of x."""
        return ofa_kernels.rms_norm_jvp(
            x, self.weight, x_dot, self.eps, self.offset, weight_index=self.index_of(x)
        )


class RMSNorm(nn.Module):
    """RMSNorm on `ofa_kernels.rms_norm`, with the attribute and parameter names of `LlamaRMSNorm`.

    The weight may stay float32 inside a bfloat16 model; the output has the input's type.

    Args:
        hidden_size: length of a row.
        eps: added to the mean square.
        device: where the weight lies.
        dtype: the weight's type.

    Attributes:
        offset: added to the weight.
        rounding: where a 16-bit result is rounded, as in `ofa_kernels.rms_norm`.
    """

    offset = 0.0
    rounding = "hf"

    def __init__(self, hidden_size: int, eps: float = 1e-6, device=None, dtype=None):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size, device=device, dtype=dtype))
        self.variance_epsilon = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalise [..., hidden_size] over its last dimension."""
        return ofa_kernels.rms_norm(hidden_states, self.weight, epsilon(self), self.offset, self.rounding)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"{tuple(self.weight.shape)}, eps={epsilon(self)}, weight={self.weight.dtype}"


class Olmo2RMSNorm(RMSNorm):
    """As `Olmo2RMSNorm` of transformers: rounded once, at the end."""

    rounding = "fp32"


class GemmaRMSNorm(RMSNorm):
    """As `Gemma2RMSNorm` of transformers: γ is 1 + weight, rounded once."""

    offset = 1.0


class LayerNorm(nn.LayerNorm):
    """LayerNorm on `ofa_kernels.layer_norm`; the weight may stay float32 inside a bfloat16 model."""

    offset = 0.0

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalise [..., hidden_size] over its last dimension."""
        return ofa_kernels.layer_norm(hidden_states, self.weight, self.bias, self.eps)
