"""The step ratio: how fast the states of successive layers converge."""

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_batchedtensor, is_functorch_wrapped_tensor

from ofa_kernels import boundary, reference
from ofa_kernels.arguments import check_tensor
from ofa_kernels.boundary import ready
from ofa_kernels.composed import Composed, first_order, plain_call, recorded
from ofa_kernels.dispatch import kernels_for
from ofa_kernels.dtypes import accumulation_dtype


class _StepLengths(Composed):
    """states [T+1, B, D] -> ‖Z_t - Z_{t-1}‖ [T, B]."""

    @staticmethod
    def formula(options):
        return reference.step_lengths

    @staticmethod
    def forward(states, options):
        (kernels,) = options
        return ready(kernels, states).step_lengths(states)

    @classmethod
    def setup_context(cls, ctx, inputs, output):
        super().setup_context(ctx, inputs, output)
        ctx.lengths = output.detach()  # for the first order only

    @classmethod
    def backward(cls, ctx, dlengths):
        if dlengths is None or not first_order():
            return super().backward(ctx, dlengths)
        (states,), lengths = ctx.saved_tensors, ctx.lengths
        kernels = ready(ctx.options[0], states, lengths, dlengths)
        dtype = accumulation_dtype(states)  # hooks on saved tensors may have changed the states'
        return kernels.step_lengths_backward(states, lengths.to(dtype), dlengths.to(dtype)), None


def _step_lengths(states: Tensor) -> Tensor:
    kernels = kernels_for(states)
    if kernels is None:
        return reference.step_lengths(states)
    if not plain_call():
        return _StepLengths.apply(states, (kernels,))
    return _StepLengths.record(states, (kernels,)) if recorded(states) else kernels.step_lengths(states)


def _has_value(t: Tensor) -> bool:
    """Whether it is a number by now, of one call."""
    if torch.compiler.is_compiling() or boundary.tracing() or boundary.dispatch_modes():
        return False
    while is_functorch_wrapped_tensor(t):
        if is_batchedtensor(t):
            return False
        t = get_unwrapped(t)
    return True


def _check_lengths(lengths: Tensor) -> None:
    """Refuse steps of nothing among those that are divided by; a GPU is not waited for."""
    if lengths.is_cuda:
        reason = "step_ratio: two successive states are equal, a ratio divides by 0"
        torch._assert_async(lengths.all(), reason)  # pyright: ignore[reportPrivateImportUsage] - not in the stubs
    elif not lengths.all():
        step, row = (lengths == 0).nonzero()[0].tolist()
        raise ValueError(
            f"step_ratio: Z_{step + 1} equals Z_{step} in example {row}, so the ratio at t={step + 1} "
            "divides by zero; a layer that changes nothing has no step ratio"
        )


def step_ratio(states: Tensor, per_step: bool = False) -> Tensor | tuple[Tensor, Tensor]:
    """How fast the states of successive layers converge (OFA, step-ratio term J).

    J = mean over B of Σ_{t=1}^{T-1} ‖Z_t - Z_{t+1}‖ / ‖Z_t - Z_{t-1}‖.

    Args:
        states: [T+1, B, D], Z_0 (the embedding) to Z_T (the last layer's output before the final norm).
        per_step: also return the single ratios.

    Returns:
        J, a scalar in the accumulation type; with `per_step`, (J, ratios [T-1, B]).

    Raises:
        ValueError: for another shape, or where two successive states are equal (a zero denominator). On a GPU
            such states fail an assertion on the device, which a later call reports as a RuntimeError and
            after which the process can't use the GPU: waiting for it would cost more than J. Under
            `torch.compile`, `torch.func.vmap` and tracers nothing is checked: J is then infinite or NaN.
        TypeError: the states are of another type than float64, float32, bfloat16 or float16.
    """
    check_tensor("step_ratio", "states", states)
    if states.dim() != 3 or states.shape[0] < 2 or 0 in states.shape:
        raise ValueError(
            f"step_ratio: states must be [T+1, B, D] with T, B, D >= 1, got {tuple(states.shape)}"
        )
    lengths = _step_lengths(states.resolve_neg())  # [T, B]; PyTorch has no views of a negated dual number
    if _has_value(lengths):
        _check_lengths(lengths[:-1])
    ratios = lengths[1:] / lengths[:-1]
    value = ratios.sum(0).mean()
    return (value, ratios) if per_step else value
