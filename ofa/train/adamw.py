"""AdamW's update with what depends on the step in memory: to be captured, or for many adapters at once."""

# PyTorch's stubs lack the operators for lists of tensors
# pyright: reportPrivateImportUsage=false

from collections.abc import Sequence

import torch
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")  # in the state of PyTorch's optimiser
BETAS, EPS = (0.9, 0.999), 1e-8  # which PyTorch's optimiser has unless told otherwise


def step_numbers(
    count: float, lr: float, weight_decay: float, betas: tuple[float, float] = BETAS
) -> tuple[float, float, float]:
    """What of an update depends on its number, counted from 1, and on the learning rate.

    The weights' factor of decay, and of the two corrections for moments that began at zero: the square root
    of the squares' one, and the negative learning rate over the means' one.
    """
    beta1, beta2 = betas
    return 1 - lr * weight_decay, (1 - beta2**count) ** 0.5, -lr / (1 - beta1**count)


class AdamWUpdate:
    """The update of PyTorch's AdamW (Loshchilov & Hutter 2019), operation by operation, and so to the bit.

    Three numbers of it depend on the step. They are computed on the host in double precision, as PyTorch's
    own uncaptured update does; the one of PyTorch that can be captured computes them on the device in the
    weights' precision, where in float32 the size of the first steps is off by 1e-5.

    Args:
        optimizer: whose weights are updated, in place; its moments and counts are used and go on.
    """

    def __init__(self, optimizer: torch.optim.AdamW):
        (group,) = optimizer.param_groups
        weights, state = group["params"], optimizer.state
        for weight in weights:
            if not state[weight]:
                moments = {name: torch.zeros_like(weight, requires_grad=False) for name in MOMENTS}
                state[weight] = {"step": torch.tensor(0.0), **moments}
        self._options = group
        self._weights = [weight.detach() for weight in weights]
        self._means, self._squares = ([state[weight][name] for weight in weights] for name in MOMENTS)
        self._counts = [state[weight]["step"] for weight in weights]  # on the host
        self._one = torch.tensor(1.0)  # made once: a number would be wrapped for every weight
        self._dtype = max((weight.dtype for weight in weights), key=lambda dtype: dtype.itemsize)

    def numbers(self, lr: float) -> Tensor:
        """What the next update is told (see `step_numbers`), [3] on the host."""
        options = self._options
        count = self._counts[0].item() + 1
        return torch.tensor(
            step_numbers(count, lr, options["weight_decay"], options["betas"]), dtype=self._dtype
        )

    def apply(self, gradients: Sequence[Tensor], numbers: Tensor) -> None:
        """Update weights and moments; `numbers` lie where the weights do."""
        factor, root, rate = numbers.unbind()
        (beta1, beta2), eps = self._options["betas"], self._options["eps"]
        gradients = list(gradients)
        torch._foreach_mul_(self._weights, factor)
        torch._foreach_lerp_(self._means, gradients, 1 - beta1)
        torch._foreach_mul_(self._squares, beta2)
        torch._foreach_addcmul_(self._squares, gradients, gradients, 1 - beta2)
        sizes = torch._foreach_sqrt(self._squares)
        torch._foreach_div_(sizes, root)
        torch._foreach_add_(sizes, eps)
        change = torch._foreach_mul(self._means, rate)
        torch._foreach_div_(change, sizes)
        torch._foreach_add_(self._weights, change)

    def count(self) -> None:
        """Note that an update was applied."""
        torch._foreach_add_(self._counts, self._one, alpha=1.0)


def update_rows(
    weights: Tensor, means: Tensor, squares: Tensor, gradients: Tensor, numbers: Sequence[Sequence[float]]
) -> None:
    """The same update of many adapters at once, each at a step of its own.

    Args:
        weights: [..., A, N], changed in place, as are their moments.
        means: [..., A, N].
        squares: [..., A, N].
        gradients: [..., A, N].
        numbers: of each of the A adapters, from `step_numbers`.
    """
    columns = torch.tensor(numbers, dtype=weights.dtype, device=weights.device)
    factor, root, rate = columns.T[..., None]  # [A, 1] each
    beta1, beta2 = BETAS
    weights.mul_(factor)
    means.lerp_(gradients, 1 - beta1)
    squares.mul_(beta2).addcmul_(gradients, gradients, value=1 - beta2)
    sizes = squares.sqrt().div_(root).add_(EPS)
    weights.add_((means * rate).div_(sizes))
