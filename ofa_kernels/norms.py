"""The norms as functions: what a caller may pass, and which backend takes it."""

import torch
from torch import Tensor

from ofa_kernels import reference
from ofa_kernels.arguments import check_norm, check_tensor, norm_arguments
from ofa_kernels.autograd import AddRMSNorm, LayerNorm, RMSNorm, RMSNormJvp
from ofa_kernels.boundary import tracing
from ofa_kernels.composed import plain_call, recorded
from ofa_kernels.dispatch import kernels_for
from ofa_kernels.weight_index import indexed_kernels

ROUNDINGS = ("hf", "fp32")


def rms_norm(
    x: Tensor,
    weight: Tensor | None,
    eps: float = 1e-6,
    offset: float = 0.0,
    rounding: str = "hf",
    weight_index: Tensor | None = None,
) -> Tensor:
    """Root-mean-square norm over the last dimension: y = (weight + offset) x / sqrt(mean(x²) + eps).

    Zhang & Sennrich 2019, equation 4. Differentiable at every order by `backward`, forward AD and every
    `torch.func` transform; first and second order are fused. Under `torch.compile` the PyTorch composition is
    used, which Inductor fuses. The backend is chosen by `OFA_BACKEND`, else by what runs best.

    Args:
        x: [..., N], float64, float32, bfloat16 or float16; any strides.
        weight: [N], of any of these types, on x's device (float32 on a bfloat16 x is the normal case); None
            for ones. With a `weight_index`, [A, N].
        eps: added to the mean square.
        offset: added to the weight (1.0 for Gemma).
        rounding: `"hf"` rounds where transformers' class does: without an offset the normalised x is rounded
            to x's type before the product (`LlamaRMSNorm`), with one there is a single rounding at the end
            (`GemmaRMSNorm`); `"fp32"` always rounds once, at the end. float64 is never rounded.
        weight_index: [...] int64, for a weight [A, N]: row r has weight[weight_index[r]]. Rows that are
            sorted by it take no more time than those of one weight; in any order, equal calls give equal
            bits.

    Returns:
        [..., N] in x's type.

    Raises:
        ValueError: shapes, devices or `rounding` don't fit.
        IndexError: an index is not from 0 to A - 1. On a GPU that is looked at where `OFA_DEBUG=1` is set;
            else the results of such a row are NaN, and it adds nothing to the weight's gradient.
        TypeError: x or weight is not of these types, or eps or offset is no number.
        RuntimeError: `OFA_BACKEND` forces a backend that can't serve x.
    """
    weight, eps, offset, index = norm_arguments("rms_norm", x, weight, eps, offset, weight_index)
    if rounding not in ROUNDINGS:
        raise ValueError(f"rms_norm: rounding must be one of {ROUNDINGS}, got {rounding!r}")
    kernels = kernels_for(x, weight) if index is None else indexed_kernels("rms_norm", weight, index, x)
    if kernels is None:
        return reference.rms_norm(x, weight, eps, offset, rounding, index)
    if not plain_call():
        return RMSNorm.apply(x, weight, index, (kernels, eps, offset, rounding, None))
    if recorded(x, weight):
        return RMSNorm.record(x, weight, index, (kernels, eps, offset, rounding, []))
    return kernels.rms_norm_forward(x, weight, eps, offset, rounding, index=index)


def add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    eps: float = 1e-6,
    offset: float = 0.0,
    rounding: str = "hf",
    weight_index: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(`rms_norm` of s, s) with s = x + residual, in one pass over memory.

    Args:
        x: [..., N], float64, float32, bfloat16 or float16; any strides.
        residual: of x's shape and type.
        weight: [N], of any of these types, on x's device; None for ones.
        eps: added to the mean square.
        offset: added to the weight (1.0 for Gemma).
        rounding: as for `rms_norm`; s is rounded to x's type before it is normalised.
        weight_index: [...] int64, for a weight [A, N], as in `rms_norm`.

    Returns:
        (y, s), both [..., N] in x's type.

    Raises:
        ValueError: shapes, devices or `rounding` don't fit.
        IndexError: an index is not from 0 to A - 1, as in `rms_norm`.
        TypeError: x or weight is not of these types, the residual has another type than x, or eps or offset
            is no number.
        RuntimeError: `OFA_BACKEND` forces a backend that can't serve x.
    """
    weight, eps, offset, index = norm_arguments("add_rms_norm", x, weight, eps, offset, weight_index)
    if rounding not in ROUNDINGS:
        raise ValueError(f"add_rms_norm: rounding must be one of {ROUNDINGS}, got {rounding!r}")
    check_tensor("add_rms_norm", "residual", residual)
    if residual.dtype != x.dtype:
        raise TypeError(f"add_rms_norm: residual must have x's type {x.dtype}, got {residual.dtype}")
    if residual.shape != x.shape or residual.device != x.device:
        raise ValueError(
            f"add_rms_norm: residual must be like x, {tuple(x.shape)} on {x.device}, got "
            f"{tuple(residual.shape)} on {residual.device}"
        )
    if index is None:
        kernels = kernels_for(x, residual, weight)
    else:
        kernels = indexed_kernels("add_rms_norm", weight, index, x, residual)
    if kernels is None:
        return reference.add_rms_norm(x, residual, weight, eps, offset, rounding, index)
    if not plain_call():
        return AddRMSNorm.apply(x, residual, weight, index, (kernels, eps, offset, rounding, None))
    if recorded(x, residual, weight):
        return AddRMSNorm.record(x, residual, weight, index, (kernels, eps, offset, rounding, []))
    return kernels.add_rms_norm_forward(x, residual, weight, eps, offset, rounding, index=index)


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Layer norm over the last dimension: y = weight (x - mean) / sqrt(var + eps) + bias.

    Ba, Kiros & Hinton 2016, equation 4. Value and reverse mode are PyTorch's `layer_norm`, to the bit; under
    forward AD and the transforms of `torch.func` every derivative is composed from the formula, so that all
    orders are right. PyTorch's own tangent can't be differentiated: a gradient or a tangent of its jvp is
    wrong in silence (torch 2.13).

    Args:
        x: [..., N], float64, float32, bfloat16 or float16; any strides.
        weight: [N], of any of these types, on x's device; None for ones.
        bias: [N], likewise; None for none.
        eps: added to the variance.

    Returns:
        [..., N] in x's type, rounded once.

    Raises:
        ValueError: shapes or devices don't fit.
        TypeError: x, weight or bias is not of these types, or eps is no number.
    """
    weight, eps, *_ = norm_arguments("layer_norm", x, weight, eps, 0.0)
    check_tensor("layer_norm", "x", x)
    check_tensor("layer_norm", "weight", weight)
    if bias is not None:
        check_norm("layer_norm", x, bias)
    if torch.compiler.is_compiling() or tracing():
        return reference.layer_norm(x, weight, bias, eps)
    parameters = (weight,) if bias is None else (weight, bias)
    norm = LayerNorm.forward if plain_call() and not recorded(x, *parameters) else LayerNorm.apply
    return norm(x, weight, bias, (eps, []))


def rms_norm_jvp(
    x: Tensor,
    weight: Tensor | None,
    x_dot: Tensor,
    eps: float = 1e-6,
    offset: float = 0.0,
    weight_index: Tensor | None = None,
) -> Tensor:
    """The directional derivatives of `rms_norm` along K tangents that share one primal, which is read once.

    ẏ = w r (ẋ - x̂ mean(x̂ ẋ)) with r = (mean(x²) + eps)^(-1/2) and x̂ = r x: what `torch.func.jvp` gives,
    without its host time. Differentiable in x, weight and x_dot; first order is fused.

    Args:
        x: [..., N], float64, float32, bfloat16 or float16; any strides.
        weight: [N], of any of these types, on x's device; None for ones.
        x_dot: [*K, ..., N], tangents of x, in its type.
        eps: added to the mean square.
        offset: added to the weight (1.0 for Gemma).
        weight_index: [...] int64, for a weight [A, N], as in `rms_norm`.

    Returns:
        [*K, ..., N] in x's type.

    Raises:
        ValueError: shapes or devices don't fit.
        IndexError: an index is not from 0 to A - 1, as in `rms_norm`.
        TypeError: x or weight is not of these types, x_dot has another type than x, or eps or offset is no
            number.
        RuntimeError: `OFA_BACKEND` forces a backend that can't serve x.
    """
    weight, eps, offset, index = norm_arguments("rms_norm_jvp", x, weight, eps, offset, weight_index)
    check_tensor("rms_norm_jvp", "x_dot", x_dot)
    if x_dot.dtype != x.dtype:
        raise TypeError(f"rms_norm_jvp: x_dot must have x's type {x.dtype}, got {x_dot.dtype}")
    if x_dot.dim() < x.dim() or x_dot.shape[x_dot.dim() - x.dim() :] != x.shape or x_dot.device != x.device:
        raise ValueError(
            f"rms_norm_jvp: x_dot must be [*K, *{tuple(x.shape)}] on {x.device}, got "
            f"{tuple(x_dot.shape)} on {x_dot.device}"
        )
    if index is None:
        kernels = kernels_for(x, x_dot, weight)
    else:
        kernels = indexed_kernels("rms_norm_jvp", weight, index, x, x_dot)
    if kernels is None:
        return reference.rms_norm_jvp(x, weight, x_dot, None, eps, offset, index)
    if not plain_call():
        return RMSNormJvp.apply(x, weight, x_dot, None, index, (kernels, eps, offset, False))
    if recorded(x, weight, x_dot):
        return RMSNormJvp.record(x, weight, x_dot, None, index, (kernels, eps, offset, True))
    return kernels.rms_norm_jvp(x, weight, x_dot, None, eps, offset, index=index)
