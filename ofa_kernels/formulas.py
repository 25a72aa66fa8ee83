"""The kernels' functions, composed in PyTorch from `reference.py`: for where no kernel may be called.

A tensor may have no memory that holds its values (a subclass, the zeros of an absent tangent, a lazily
negated view); PyTorch's own operators know what to do with it.
"""

import torch
from torch import Tensor

from ofa_kernels import reference
from ofa_kernels.dtypes import accumulation_dtype
from ofa_kernels.reference import Seed

rms_norm_forward = reference.rms_norm
add_rms_norm_forward = reference.add_rms_norm
rms_norm_jvp = reference.rms_norm_jvp
rademacher = reference.rademacher_signs
step_lengths = reference.step_lengths
step_lengths_backward = reference.step_lengths_backward


def rms_norm_backward(x, weight, dy, ds, eps, offset, need_dx, need_dw, index=None):
    """dx (plus ds, where given) and dw; each is None where it is not needed."""
    dx, dw = reference.rms_norm_backward(x, weight, dy, eps, offset, index)
    if need_dx and ds is not None:
        dx = dx + ds.to(dx.dtype)
    return dx if need_dx else None, dw if need_dw else None


def rms_norm_backward_tangent(x, weight, dy, x_dot, weight_dot, dy_dot, eps, offset, need_dw, index=None):
    """Tangents of (dx, dw); dw's is None where it is not needed."""
    tangents = x_dot, weight_dot, dy_dot
    dx, dw = reference.rms_norm_backward_tangent(x, weight, dy, *tangents, eps, offset, index)
    return dx, dw if need_dw else None


def rms_norm_jvp_backward(x, weight, dy, x_dot, weight_dot, eps, offset, need_dw, need_dw_dot, index=None):
    """Gradients of ⟨dy, ẏ⟩ in x, w, ẋ, ẇ; in w and ẇ they are None where they are not needed."""
    dx, dw, dx_dot, dw_dot = reference.rms_norm_jvp_backward(
        x, weight, dy, x_dot, weight_dot, eps, offset, index
    )
    return dx, dw if need_dw else None, dx_dot, dw_dot if need_dw_dot else None


def _signs_like(t: Tensor, ids: Tensor, seed: Seed, layer: int, n_probes: int) -> Tensor:
    """ν [n_probes, rows, D] in the accumulation type."""
    layers = torch.full((1,), layer, device=ids.device)
    dtype = accumulation_dtype(t)
    return reference.rademacher_signs(t.shape[-1], ids, n_probes, layers, seed, dtype)[0]


def preconditioned_probes(z, weight, eps, offset, seed, n_probes, example_ids, layer, index=None):
    """(weight + offset) r ν as [n_probes, rows, D]."""
    signs = _signs_like(z, example_ids, seed, layer, n_probes)
    weight = reference.weight_of_rows(weight, index, z)
    return (reference.preconditioner(z, weight, eps, offset) * signs).to(z.dtype)


def preconditioned_probes_backward(z, weight, dp, eps, offset, seed, example_ids, layer, index=None):
    """Gradients (dz, dw) of ⟨dp, `preconditioned_probes`⟩."""
    signs = _signs_like(z, example_ids, seed, layer, dp.shape[0])
    return reference.preconditioned_probes_backward(z, weight, signs, dp, eps, offset, index)


def probe_dot(t, seed, example_ids, layer):
    """Σ_columns ν t as [n_probes, rows]."""
    signs = _signs_like(t, example_ids, seed, layer, t.shape[0])
    return (signs * t.to(signs.dtype)).sum(-1)


def probe_scale(scale, n_cols, seed, example_ids, layer, dtype):
    """Scale ν as [n_probes, rows, n_cols]."""
    if scale.layout is not torch.strided:
        scale = scale.to_dense()  # PyTorch's product with a dense tensor is wrong where it broadcasts
    like = scale.new_empty((0, n_cols), dtype=dtype)
    signs = _signs_like(like, example_ids, seed, layer, scale.shape[0])
    return (scale.to(signs.dtype)[..., None] * signs).to(dtype)
