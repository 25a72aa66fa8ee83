"""Layers by the convention of Hugging Face's `kernels` library: stateless, to stand in for a model's own."""

from torch import Tensor, nn

import ofa_kernels


class RMSNorm(nn.Module):
    """The forward of `LlamaRMSNorm` and its like on `ofa_kernels.rms_norm`.

    `kernels.kernelize` puts the forward into modules that hold `weight` [N] and `variance_epsilon`
    themselves; this class has no constructor and can't be used alone.
    """

    weight: Tensor
    variance_epsilon: float
    can_torch_compile = True
    has_backward = True

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalise [..., N] over its last dimension; the result has the input's type.

        Raises:
            ValueError: shapes or devices don't fit.
            TypeError: the input or the weight is not floating point.
            RuntimeError: `OFA_BACKEND` forces a backend that can't serve the input.
        """
        return ofa_kernels.rms_norm(hidden_states, self.weight, self.variance_epsilon)
