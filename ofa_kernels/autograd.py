"""How the operators differentiate: kernels at first order, composed in PyTorch from there on.

Both functions follow `torch.func`'s rules (`setup_context`, `jvp`, `vmap`), so `grad`, `vjp`, `jvp`,
`vmap` and their compositions work; second-order rules are the formulas of `reference.py`, which PyTorch
differentiates again, so third derivatives are right too.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ofa_kernels import reference
from ofa_kernels.dispatch import backend_for

ROUNDINGS = ("hf", "fp32")


def _zeros_where_none(tangents: tuple[Tensor | None, ...], like: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.zeros_like(x) if t is None else t for t, x in zip(tangents, like, strict=True))


def _apply_tangent_rule(rule: Callable, ctx, tangents: tuple[Tensor | None, ...]):
    """Call rule(primals, tangents) so that enclosing forward-mode levels see it.

    PyTorch runs `jvp` with forward AD switched off and the primals still dual at this level; left so, a
    jvp of a jvp silently loses the inner tangent's own tangent.
    """
    primals = tuple(forward_ad.unpack_dual(p).primal for p in ctx.saved_tensors)
    tangents = _zeros_where_none(tangents, primals)
    with forward_ad._set_fwd_grad_enabled(True):
        return rule(*primals, *tangents, ctx.eps, ctx.offset)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(x, weight, eps, offset, rounding):
        from ofa_kernels.triton import launch

        return launch.rms_norm_forward(x, weight, eps, offset, rounding)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, ctx.eps, ctx.offset, ctx.rounding = inputs
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, dy):
        if dy is None:
            return (None,) * 5
        x, weight = ctx.saved_tensors
        need_dx, need_dw = ctx.needs_input_grad[:2]
        dx, dw = _RMSNormBackward.apply(x, weight, dy, ctx.eps, ctx.offset, need_dw)
        return dx if need_dx else None, dw if need_dw else None, None, None, None

    @staticmethod
    def jvp(ctx, x_dot, weight_dot, *_):
        return _apply_tangent_rule(reference.rms_norm_jvp, ctx, (x_dot, weight_dot))

    @staticmethod
    def vmap(info, in_dims, x, weight, eps, offset, rounding):
        x_dim, weight_dim = in_dims[:2]
        if weight_dim is None:  # rows are independent: a batch of rows is more rows
            return _RMSNorm.apply(x.movedim(x_dim, 0), weight, eps, offset, rounding), 0

        def norm(x, weight):
            return reference.rms_norm(x, weight, eps, offset, rounding)

        return torch.func.vmap(norm, in_dims=(x_dim, weight_dim))(x, weight), 0


class _RMSNormBackward(torch.autograd.Function):
    """(x, w, dy) -> (dx, dw); dw is None where it is not needed."""

    @staticmethod
    def forward(x, weight, dy, eps, offset, need_dw):
        from ofa_kernels.triton import launch

        return launch.rms_norm_backward(x, weight, dy, eps, offset, need_dw)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, dy, ctx.eps, ctx.offset, ctx.need_dw = inputs
        ctx.save_for_backward(x, weight, dy)
        ctx.save_for_forward(x, weight, dy)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, u, v):
        # ⟨dx, u⟩ + ⟨dw, v⟩ = ⟨dy, JVP(x, w; u, v)⟩, and second derivatives commute
        if u is None and v is None:
            return (None,) * 6
        x, weight, dy = ctx.saved_tensors
        u, v = _zeros_where_none((u, v), (x, weight))
        dx, dw = reference.rms_norm_backward_tangent(
            x, weight, dy, u, v, torch.zeros_like(dy), ctx.eps, ctx.offset
        )
        return dx, dw, reference.rms_norm_jvp(x, weight, u, v, ctx.eps, ctx.offset), None, None, None

    @staticmethod
    def jvp(ctx, x_dot, weight_dot, dy_dot, *_):
        tangents = (x_dot, weight_dot, dy_dot)
        dx_dot, dw_dot = _apply_tangent_rule(reference.rms_norm_backward_tangent, ctx, tangents)
        return dx_dot, dw_dot if ctx.need_dw else None

    @staticmethod
    def vmap(info, in_dims, x, weight, dy, eps, offset, need_dw):
        def backward(x, weight, dy):
            return reference.rms_norm_backward(x, weight, dy, eps, offset)

        return torch.func.vmap(backward, in_dims=in_dims[:3])(x, weight, dy), (0, 0)


def rms_norm(
    x: Tensor, weight: Tensor, eps: float = 1e-6, offset: float = 0.0, rounding: str = "hf"
) -> Tensor:
    """Root-mean-square norm over the last dimension: y = (weight + offset) x / sqrt(mean(x²) + eps).

    Zhang & Sennrich 2019, equation 4. Differentiable at first and second order by `backward`, double
    backward, forward AD and every `torch.func` transform. Under `torch.compile` the PyTorch composition is
    used, which Inductor fuses. The backend is chosen by `OFA_BACKEND`, else by what runs best.

    Args:
        x: [..., N], float64, float32, bfloat16 or float16; any strides.
        weight: [N], of any of these types, on x's device (float32 on a bfloat16 x is the normal case).
        eps: added to the mean square.
        offset: added to the weight (1.0 for Gemma).
        rounding: `"hf"` rounds the normalised x to x's type before the product, where `LlamaRMSNorm` does;
            `"fp32"` rounds once, at the end. float64 is never rounded.

    Returns:
        [..., N] in x's type.

    Raises:
        ValueError: shapes, devices or `rounding` don't fit.
        TypeError: x or weight is not floating point.
        RuntimeError: `OFA_BACKEND` forces a backend that can't serve x.
    """
    if not (x.is_floating_point() and weight.is_floating_point()):
        raise TypeError(f"rms_norm: x and weight must be floating point, got {x.dtype} and {weight.dtype}")
    if x.dim() == 0 or x.shape[-1] == 0 or weight.shape != x.shape[-1:]:
        raise ValueError(
            f"rms_norm: weight must be [N] for an x of [..., N] with N >= 1, got {tuple(weight.shape)} "
            f"for {tuple(x.shape)}"
        )
    if x.device != weight.device:
        raise ValueError(f"rms_norm: x is on {x.device} and weight on {weight.device}; move one of them")
    if rounding not in ROUNDINGS:
        raise ValueError(f"rms_norm: rounding must be one of {ROUNDINGS}, got {rounding!r}")
    if torch.compiler.is_compiling() or backend_for(x) == "reference":
        return reference.rms_norm(x, weight, eps, offset, rounding)
    return _RMSNorm.apply(x, weight, eps, offset, rounding)
