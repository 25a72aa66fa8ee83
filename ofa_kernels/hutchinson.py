"""Batched Hutchinson trace estimation of any map, with its standard error."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ofa_kernels.arguments import check_tensor
from ofa_kernels.boundary import check_memory
from ofa_kernels.composed import jvp_by_pullbacks
from ofa_kernels.probes import probe_dot, probe_signs

METHODS = ("jvp", "fd")


@dataclass(frozen=True)
class TraceEstimate:
    """A trace for every row, estimated from random probes (Hutchinson 1990); `hutchinson_trace` returns it.

    All three are float64 for float64 states, else float32.

    Attributes:
        value: [rows], the mean over the probes; differentiable.
        stderr: [rows], the standard error of that mean, detached; NaN for a single probe, whose spread is
            not known.
        per_probe: [n_probes, rows], each probe's own estimate.
    """

    value: Tensor
    stderr: Tensor
    per_probe: Tensor

    @classmethod
    def from_probes(cls, per_probe: Tensor) -> "TraceEstimate":
        """The estimate from the single estimates [n_probes, rows], n_probes at least 1."""
        n = per_probe.shape[0]
        if n > 1:
            stderr = per_probe.detach().std(0) / n**0.5
        else:
            stderr = torch.full_like(per_probe[0], float("nan"))
        return cls(per_probe.mean(0), stderr, per_probe)


def hutchinson_trace(
    fn: Callable[[Tensor], Tensor],
    z: Tensor,
    preconditioner: Tensor,
    n_probes: int,
    seed: int | Tensor,
    method: str = "jvp",
    fd_eps: float = 1e-3,
    example_ids: Tensor | None = None,
    layer: int = 0,
) -> TraceEstimate:
    """+tr(J_fn(z) diag(preconditioner)) per row, by Rademacher probes (Hutchinson 1990).

    E[νᵀ J P ν] = tr(J P) for E[ννᵀ] = I; OFA's sharpness H is its negative. One vectorised pass serves
    all probes. Differentiable in z, the preconditioner and whatever `fn` closes over.

    Args:
        fn: maps [rows, D] to [rows, D], each row by itself; must allow `torch.func.vmap` and, for `"jvp"`,
            forward AD.
        z: [rows, D], where to take the Jacobian.
        preconditioner: [rows, D] or [D], the diagonal of P.
        n_probes: how many, at least 1.
        seed: 0 to 2^64 - 1, or an int64 tensor of one element on z's device that holds the 64 bits.
        method: `"jvp"`, exact directional derivatives; `"fd"`, the one-sided difference
            (fn(z + h Pν) - fn(z)) / h, which loses half the digits or more.
        fd_eps: h of `"fd"`.
        example_ids: [rows] integers that select the probes; default 0, 1, 2, …
        layer: the layer's number in the probe counter.

    Returns:
        A `TraceEstimate`: `.value` [rows], `.stderr` [rows], `.per_probe` [n_probes, rows].

    Raises:
        ValueError: shapes, `method`, `n_probes` or the seed don't fit.
        TypeError: a tensor has another type, `fn` returns no tensor, or the seed is no integer.
    """
    check_tensor("hutchinson_trace", "z", z)
    check_tensor("hutchinson_trace", "preconditioner", preconditioner)
    check_memory(z)
    check_memory(preconditioner)
    if z.dim() != 2 or z.shape[-1] == 0:
        raise ValueError(f"hutchinson_trace: z must be [rows, D] with D >= 1, got {tuple(z.shape)}")
    if preconditioner.shape not in (z.shape, z.shape[-1:]):
        raise ValueError(
            f"hutchinson_trace: preconditioner must be [rows, D] or [D] for z {tuple(z.shape)}, got "
            f"{tuple(preconditioner.shape)}"
        )
    if method not in METHODS:
        raise ValueError(f"hutchinson_trace: method must be one of {METHODS}, got {method!r}")
    z = z.contiguous()  # PyTorch makes no dual number of a tensor whose elements share memory
    directions = preconditioner * probe_signs(z, seed, n_probes, example_ids, layer)  # [N, rows, D]
    directions = directions.to(z.dtype)

    def checked(z: Tensor) -> Tensor:
        out = fn(z)
        if not isinstance(out, Tensor):
            raise TypeError(
                f"hutchinson_trace: fn must return a tensor like z, got {type(out).__name__}; wrap it, for "
                "example lambda z: fn(z)[0]"
            )
        return out

    def product(v: Tensor) -> Tensor:
        if forward_ad._current_level >= 0:  # dual numbers do not nest
            return jvp_by_pullbacks(checked, (z,), (v,))
        return torch.func.jvp(checked, (z,), (v,))[1]

    if method == "jvp":
        products = torch.func.vmap(product)(directions)
    else:
        products = (torch.func.vmap(checked)(z + fd_eps * directions) - checked(z)) / fd_eps
    if products.shape != directions.shape:
        raise ValueError(
            f"hutchinson_trace: fn must keep z's shape {tuple(z.shape)}, got {tuple(products.shape[1:])}"
        )
    return TraceEstimate.from_probes(probe_dot(products, seed, example_ids, layer))
