"""How the norms differentiate: fused kernels at first and second order, composed PyTorch from there on.

Every function follows `torch.func`'s rules (`setup_context`, `jvp`, `vmap`), so `grad`, `vjp`, `jvp`, `vmap`
and their nestings work. The derivative of a norm's derivative is a kernel again; the derivative of that is
taken of the formulas in `reference.py`, so every order is right. `kernels` is the backend's module (`native`,
`cuda` or `triton.launch`), chosen in the forward pass; whether it may be called is asked again at every call.

A list in the options of a norm is there where a plain call is recorded (`Operator.record`): its tensors are
memory, and a backend that saves rstd leaves it in the list for the first order. In the options of a tangent,
`asked` says the same.
"""

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from ofa_kernels import reference
from ofa_kernels.boundary import matching, ready
from ofa_kernels.composed import Composed, Operator, first_order, in_forward_mode, legacy_batched
from ofa_kernels.dtypes import accumulation_dtype

# elements of x; with fewer, the memory for rstd takes the host longer than the backward gains
RSTD_FROM = 1 << 20


def _batch_in_front(info, in_dims, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The tensors with the batch as their first dimension, expanded where they have none."""
    return [
        t if t is None else t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
        for t, dim in zip(tensors, in_dims, strict=True)
    ]


def _make_room(rstd: list[Tensor], kernels: ModuleType, x: Tensor) -> None:
    """Append [rows] to the list, where the backend fills it and the backward gains by it."""
    if x.numel() >= RSTD_FROM and getattr(kernels, "SAVES_RSTD", False):
        rstd.append(x.new_empty(x.numel() // x.size(-1), dtype=accumulation_dtype(x)))


def _saved_rstd(ctx) -> list[Tensor]:
    """The list of a recorded forward, if x is what it was then.

    PyTorch refuses what was changed in place, unless hooks on saved tensors have handled it: they may return
    anything.
    """
    rstd = ctx.options[4]
    if not rstd:
        return []
    # a PyTorch that doesn't tell may have one
    hook = getattr(ctx._raw_saved_tensors[0], "unpack_hook", "unknown")
    return rstd if hook is None else []


class RMSNorm(Operator):
    """(x, w, index) -> y; the index says which weight a row has, and is None where all have the one."""

    @staticmethod
    def formula(options):
        return lambda x, weight, index: reference.rms_norm(x, weight, *options[1:4], index=index)

    @staticmethod
    def forward(x, weight, index, options):
        kernels, eps, offset, rounding, rstd = options
        if rstd is None:
            kernels = ready(kernels, x, weight, index)
            return kernels.rms_norm_forward(x, weight, eps, offset, rounding, index=index)
        _make_room(rstd, kernels, x)
        return kernels.rms_norm_forward(x, weight, eps, offset, rounding, *rstd, index=index)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, index, ctx.options = inputs
        ctx.save_for_backward(x, weight, index)
        ctx.set_materialize_grads(False)
        if ctx.options[4] is None:
            ctx.save_for_forward(x, weight, index)

    @staticmethod
    def backward(ctx, dy):
        if dy is None:
            return None, None, None, None
        need_dx, need_dw, _, _ = ctx.needs_input_grad
        return *_backward(ctx, dy, None, need_dx, need_dw), None, None

    @staticmethod
    def jvp(ctx, x_dot, weight_dot, *_):
        def rule(primals, tangents):
            x, weight, index = primals
            return RMSNormJvp.apply(x, weight, *tangents, index, (*ctx.options[:3], False))

        return in_forward_mode(ctx, rule, (x_dot, weight_dot))

    @staticmethod
    def vmap(info, in_dims, x, weight, index, options):
        if in_dims[1] is None and index is None:  # rows are independent: a batch of rows is more rows
            return RMSNorm.apply(x.movedim(in_dims[0], 0), weight, None, (*options[:4], None)), 0
        return torch.func.vmap(RMSNorm.formula(options), in_dims=in_dims[:3])(x, weight, index), 0


class AddRMSNorm(Operator):
    """(x, residual, w, index) -> (y, s) with s = x + residual."""

    @staticmethod
    def formula(options):
        def formula(x, residual, weight, index):
            return reference.add_rms_norm(x, residual, weight, *options[1:4], index=index)

        return formula

    @staticmethod
    def forward(x, residual, weight, index, options):
        kernels, eps, offset, rounding, rstd = options
        if rstd is None:
            kernels = ready(kernels, x, residual, weight, index)
            return kernels.add_rms_norm_forward(x, residual, weight, eps, offset, rounding, index=index)
        _make_room(rstd, kernels, x)
        return kernels.add_rms_norm_forward(x, residual, weight, eps, offset, rounding, *rstd, index=index)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, residual, weight, index, ctx.options = inputs
        ctx.save_for_backward(output[1], weight, index)
        ctx.set_materialize_grads(False)
        if ctx.options[4] is None:
            ctx.save_for_forward(x, residual, weight, index)

    @staticmethod
    def backward(ctx, dy, ds):
        need_x, need_residual, need_dw, *_ = ctx.needs_input_grad
        if dy is None:
            return ds, ds, None, None, None
        dx, dw = _backward(ctx, dy, ds, need_x or need_residual, need_dw)
        return dx if need_x else None, dx if need_residual else None, dw, None, None

    @staticmethod
    def jvp(ctx, x_dot, residual_dot, weight_dot, *_):
        def rule(primals, tangents):
            x, residual, weight, index = primals
            x_dot, residual_dot, weight_dot = tangents
            given = [matching(ctx.options[0], t, x) for t in (x_dot, residual_dot) if t is not None]
            s_dot = sum(given[1:], given[0]) if given else None
            options = *ctx.options[:3], False
            y_dot = RMSNormJvp.apply(x + residual, weight, s_dot, weight_dot, index, options)
            return y_dot, torch.zeros_like(x) if s_dot is None else s_dot

        return in_forward_mode(ctx, rule, (x_dot, residual_dot, weight_dot))

    @staticmethod
    def vmap(info, in_dims, x, residual, weight, index, options):
        if in_dims[2] is None and index is None:
            x, residual = _batch_in_front(info, in_dims[:2], (x, residual))
            return AddRMSNorm.apply(x, residual, weight, None, (*options[:4], None)), (0, 0)
        norm = AddRMSNorm.formula(options)
        return torch.func.vmap(norm, in_dims=in_dims[:4])(x, residual, weight, index), (0, 0)


class LayerNorm(Composed):
    """(x, w, b) -> y by PyTorch's kernel; a list in the options takes the mean and rstd for the first order.

    PyTorch's own derivatives stop early: the gradient of its tangent is wrong in silence, and so is the third
    order of reverse mode, since it takes mean and rstd for constants.
    """

    @staticmethod
    def formula(options):
        return lambda x, weight, bias: reference.layer_norm(x, weight, bias, options[0])

    @staticmethod
    def forward(x, weight, bias, options):
        eps, moments = options
        w, b = [None if t is None else t.to(_common(x, weight, bias)) for t in (weight, bias)]
        y, *found = torch.native_layer_norm(x.to(_common(x, weight, bias)), weight.shape, w, b, eps)
        moments[:] = found
        return y.to(x.dtype)

    @classmethod
    def backward(cls, ctx, dy):
        saved, (_, moments) = ctx.saved_tensors, ctx.options
        x, weight, bias = saved
        if dy is None or not moments or not first_order() or legacy_batched(dy):
            return super().backward(ctx, dy)
        inputs = [None if t is None else t.to(_common(x, weight, bias)) for t in (dy, x, weight, bias)]
        wanted = [*ctx.needs_input_grad[:2], bias is not None and ctx.needs_input_grad[2]]
        gradients = torch.ops.aten.native_layer_norm_backward(
            *inputs[:2], weight.shape, *moments, *inputs[2:], wanted
        )
        like = zip(gradients, saved, strict=True)
        return *(None if g is None else g.to(t.dtype) for g, t in like), None


def _common(x: Tensor, *parameters: Tensor | None) -> torch.dtype:
    """The one type that PyTorch's kernel takes."""
    same = all(t is None or t.dtype == x.dtype for t in parameters)
    return x.dtype if same else accumulation_dtype(x)


def _backward(ctx, dy, ds, need_dx, need_dw) -> tuple[Tensor | None, Tensor | None]:
    """(dx + ds, dw) for saved (x, weight, index), by the kernel alone where nothing watches."""
    (x, weight, index), (chosen, eps, offset, *_) = ctx.saved_tensors, ctx.options
    if first_order():
        kernels = ready(chosen, x, weight, dy, ds, index)
        dy, ds = matching(kernels, dy, x), matching(kernels, ds, x)
        rstd = _saved_rstd(ctx) if kernels is chosen else []
        return kernels.rms_norm_backward(x, weight, dy, ds, eps, offset, need_dx, need_dw, *rstd, index=index)
    dx, dw = RMSNormBackward.apply(x, weight, dy, index, (chosen, eps, offset, need_dx, need_dw))
    if not need_dx:
        return None, dw
    return dx if ds is None else dx + ds, dw


class RMSNormBackward(Composed):
    """(x, w, dy, index) -> (dx, dw); each is None where it is not needed."""

    @staticmethod
    def formula(options):
        _, eps, offset, *_ = options
        return lambda x, weight, dy, index: reference.rms_norm_backward(x, weight, dy, eps, offset, index)

    @staticmethod
    def wanted(options):
        return options[3:]

    @staticmethod
    def forward(x, weight, dy, index, options):
        kernels, eps, offset, need_dx, need_dw = options
        kernels = ready(kernels, x, weight, dy, index)
        dy = matching(kernels, dy, x)
        return kernels.rms_norm_backward(x, weight, dy, None, eps, offset, need_dx, need_dw, index=index)

    @classmethod
    def backward(cls, ctx, u, v):
        # ⟨dx, u⟩ + ⟨dw, v⟩ = ⟨dy, JVP(x, w; u, v)⟩, and second derivatives commute
        if u is None and v is None:
            return super().backward(ctx, u, v)
        (x, weight, dy, index), (kernels, eps, offset, *_) = ctx.saved_tensors, ctx.options
        need_x, need_weight, need_dy = ctx.needs_input_grad[:3]
        tangent, jvp = RMSNormBackwardTangent.apply, RMSNormJvp.apply
        if first_order():
            tangent, jvp = RMSNormBackwardTangent.forward, RMSNormJvp.forward
        dx = dw = ddy = None
        if need_x or need_weight:
            dx, dw = tangent(x, weight, dy, u, v, None, index, (kernels, eps, offset, need_weight))
        if need_dy:
            ddy = jvp(x, weight, u, v, index, (kernels, eps, offset, False))
        return dx, dw, ddy, None, None

    @classmethod
    def jvp(cls, ctx, x_dot, weight_dot, dy_dot, *_):
        kernels, eps, offset, need_dx, need_dw = ctx.options

        def rule(primals, tangents):
            *primals, index = primals
            out = RMSNormBackwardTangent.apply(*primals, *tangents, index, (kernels, eps, offset, need_dw))
            return out[0] if need_dx else None, out[1]

        return in_forward_mode(ctx, rule, (x_dot, weight_dot, dy_dot))

    @classmethod
    def vmap(cls, info, in_dims, *arguments):
        x, weight, dy, index, options = arguments
        if in_dims[1] is None and index is None and not options[-1]:  # dw is not needed
            x, dy = _batch_in_front(info, in_dims[0:3:2], (x, dy))
            return cls.apply(x, weight, dy, None, options), cls.out_dims(options)
        return super().vmap(info, in_dims, *arguments)


class RMSNormJvp(Composed):
    """(x, w, ẋ, ẇ, index) -> ẏ, for tangents [*K, ...] that share one primal; one of ẋ and ẇ may be None."""

    @staticmethod
    def formula(options):
        _, eps, offset, _ = options

        def formula(x, weight, x_dot, weight_dot, index):
            return reference.rms_norm_jvp(x, weight, x_dot, weight_dot, eps, offset, index)

        return formula

    @staticmethod
    def forward(x, weight, x_dot, weight_dot, index, options):
        kernels, eps, offset, asked = options
        if not asked:
            kernels = ready(kernels, x, weight, x_dot, weight_dot, index)
            x_dot, weight_dot = matching(kernels, x_dot, x), matching(kernels, weight_dot, weight)
        return kernels.rms_norm_jvp(x, weight, x_dot, weight_dot, eps, offset, index=index)

    @classmethod
    def backward(cls, ctx, dy):
        if dy is None:
            return super().backward(ctx, dy)
        x, weight, x_dot, weight_dot, index = ctx.saved_tensors
        _, need_dw, _, need_dw_dot, *_ = ctx.needs_input_grad
        options = *ctx.options[:3], need_dw, need_dw_dot
        gradients = RMSNormJvpBackward.forward if first_order() else RMSNormJvpBackward.apply
        dx, dw, dx_dot, dw_dot = gradients(x, weight, dy, x_dot, weight_dot, index, options)
        return dx, dw, None if x_dot is None else dx_dot, dw_dot, None, None

    @classmethod
    def vmap(cls, info, in_dims, *arguments):
        x, weight, *tangents, index, options = arguments
        if in_dims[0] is None and in_dims[1] is None and in_dims[4] is None:  # one more dimension of tangents
            tangents = _batch_in_front(info, in_dims[2:4], tangents)
            return cls.apply(x, weight, *tangents, index, (*options[:3], False)), 0
        return super().vmap(info, in_dims, *arguments)


class RMSNormBackwardTangent(Composed):
    """(x, w, dy, ẋ, ẇ, dẏ, index) -> tangents of (dx, dw), [*K, ...]; dw's is None where it is not needed."""

    @staticmethod
    def formula(options):
        _, eps, offset, _ = options

        def formula(x, weight, dy, x_dot, weight_dot, dy_dot, index):
            tangents = x_dot, weight_dot, dy_dot
            return reference.rms_norm_backward_tangent(x, weight, dy, *tangents, eps, offset, index)

        return formula

    @staticmethod
    def wanted(options):
        return True, options[3]

    @staticmethod
    def forward(x, weight, dy, x_dot, weight_dot, dy_dot, index, options):
        kernels, eps, offset, need_dw = options
        kernels = ready(kernels, x, weight, dy, x_dot, weight_dot, dy_dot, index)
        dy, x_dot, dy_dot = (matching(kernels, t, x) for t in (dy, x_dot, dy_dot))
        tangents = x_dot, matching(kernels, weight_dot, weight), dy_dot
        return kernels.rms_norm_backward_tangent(x, weight, dy, *tangents, eps, offset, need_dw, index=index)

    @classmethod
    def vmap(cls, info, in_dims, *arguments):
        if all(dim is None for dim in (*in_dims[:3], in_dims[6])):
            tangents = _batch_in_front(info, in_dims[3:6], arguments[3:6])
            return cls.apply(*arguments[:3], *tangents, *arguments[6:]), cls.out_dims(arguments[7])
        return super().vmap(info, in_dims, *arguments)


class RMSNormJvpBackward(Composed):
    """(x, w, dy, ẋ, ẇ, index) -> gradients of ⟨dy, ẏ⟩ in x, w, ẋ, ẇ; in w and ẇ None where not needed."""

    @staticmethod
    def formula(options):
        _, eps, offset, *_ = options

        def formula(x, weight, dy, x_dot, weight_dot, index):
            return reference.rms_norm_jvp_backward(x, weight, dy, x_dot, weight_dot, eps, offset, index)

        return formula

    @staticmethod
    def wanted(options):
        return True, options[3], True, options[4]

    @staticmethod
    def forward(x, weight, dy, x_dot, weight_dot, index, options):
        kernels, eps, offset, *needs = options
        kernels = ready(kernels, x, weight, dy, x_dot, weight_dot, index)
        inputs = matching(kernels, dy, x), matching(kernels, x_dot, x), matching(kernels, weight_dot, weight)
        return kernels.rms_norm_jvp_backward(x, weight, *inputs, eps, offset, *needs, index=index)
