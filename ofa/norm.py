"""The module that replaces a model's RMSNorm."""

import torch
from torch import Tensor, nn

import ofa_kernels


class RMSNorm(nn.Module):
    """RMSNorm on `ofa_kernels.rms_norm`, with the attribute and parameter names of `LlamaRMSNorm`.

    The weight may stay float32 inside a bfloat16 model; the output has the input's type.

    Args:
        hidden_size: length of a row.
        eps: added to the mean square.
        device: where the weight lies.
        dtype: the weight's type.
    """

    def __init__(self, hidden_size: int, eps: float = 1e-6, device=None, dtype=None):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size, device=device, dtype=dtype))
        self.variance_epsilon = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalise [..., hidden_size] over its last dimension."""
        return ofa_kernels.rms_norm(hidden_states, self.weight, self.variance_epsilon)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"{tuple(self.weight.shape)}, eps={self.variance_epsilon}, weight={self.weight.dtype}"
