"""The RMSNorms that are compared: ours, what a model uses without it, and other fused ones.

A model in bfloat16 holds its γ in bfloat16, and so do its norms here; ours takes γ in float32. γ's values are
exact in x's type, so that all of them compute the same numbers.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from ofa_kernels import add_rms_norm, reference, rms_norm

EPS = 1e-6
COMPILERS = ("c++", "g++", "clang++")


class UnavailableError(Exception):
    """A contender can't run here, and why."""


def _as_is(function: Callable) -> Callable:
    return function


@dataclass(frozen=True)
class Norm:
    """One implementation, with its own weight.

    Attributes:
        weight: [N], a leaf.
        norm: x -> y.
        add: (x, residual) -> (y, s).
        ready: what makes a function of tensors the one to be timed; `torch.compile` or nothing.
        of: (x, weight) -> y, where K tangents of the backward can be taken by one call of `torch.func.vmap`.
    """

    weight: Tensor
    norm: Callable[[Tensor], Tensor]
    add: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    ready: Callable[[Callable], Callable] = _as_is
    of: Callable[[Tensor, Tensor], Tensor] | None = None


def _then_norm(norm: Callable[[Tensor], Tensor]) -> Callable:
    def add(x, residual):
        s = x + residual
        return norm(s), s

    return add


def _leaf(gamma: Tensor, dtype: torch.dtype) -> Tensor:
    return gamma.to(dtype, copy=True).requires_grad_()


def llama(gamma: Tensor, dtype: torch.dtype) -> Norm:
    """transformers' module in eager mode, the baseline of every ratio."""
    module = LlamaRMSNorm(gamma.numel(), EPS).to(gamma.device, dtype)
    module.weight.data.copy_(gamma)
    return Norm(module.weight, module, _then_norm(module))


def compiled(gamma: Tensor, dtype: torch.dtype) -> Norm:
    """The same under Inductor, for one shape."""
    if not gamma.is_cuda and not any(map(shutil.which, COMPILERS)):
        raise UnavailableError("torch.compile needs a C++ compiler")
    # after 8 shapes Dynamo stops recompiling and runs eager code without a word
    torch._dynamo.reset()
    eager = llama(gamma, dtype)

    def ready(function):
        return torch.compile(function, fullgraph=True, dynamic=False)

    return Norm(eager.weight, eager.norm, eager.add, ready)


def functional(gamma: Tensor, dtype: torch.dtype) -> Norm:
    """PyTorch's own."""
    weight = _leaf(gamma, dtype)

    def norm(x):
        return F.rms_norm(x, weight.shape, weight, EPS)

    return Norm(weight, norm, _then_norm(norm))


def liger(gamma: Tensor, dtype: torch.dtype) -> Norm:
    """Liger-Kernel's, which is Triton: a GPU only."""
    if not gamma.is_cuda:
        raise UnavailableError("Liger-Kernel needs a GPU")
    try:
        # it is installed beside a card only
        from liger_kernel.transformers.fused_add_rms_norm import (  # pyright: ignore[reportMissingImports]
            LigerFusedAddRMSNorm,
        )
        from liger_kernel.transformers.rms_norm import LigerRMSNorm  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UnavailableError(f"Liger-Kernel is not installed ({error})") from None
    # by default its backward writes into dy, which the next round reads again
    module = LigerRMSNorm(gamma.numel(), EPS, in_place=False).to(gamma.device, dtype)
    fused = LigerFusedAddRMSNorm(gamma.numel(), EPS, in_place=False).to(gamma.device, dtype)
    module.weight.data.copy_(gamma)
    fused.weight = module.weight
    return Norm(module.weight, module, fused)


def composed(gamma: Tensor, dtype: torch.dtype) -> Norm:
    """`ofa_kernels.reference`, differentiated by PyTorch."""
    weight = _leaf(gamma, torch.float32)
    return Norm(
        weight,
        lambda x: reference.rms_norm(x, weight, EPS),
        lambda x, residual: reference.add_rms_norm(x, residual, weight, EPS),
    )


def ours(gamma: Tensor, dtype: torch.dtype) -> Norm:
    """The public operators, by the backend that `OFA_BACKEND` or the machine chooses."""
    weight = _leaf(gamma, torch.float32)
    return Norm(
        weight,
        lambda x: rms_norm(x, weight, EPS),
        lambda x, residual: add_rms_norm(x, residual, weight, EPS),
        of=lambda x, weight: rms_norm(x, weight, EPS),
    )


EAGER = "LlamaRMSNorm"
COMPILED = "torch.compile(LlamaRMSNorm)"
FUNCTIONAL = "F.rms_norm"
LIGER = "Liger-Kernel"
COMPOSED = "PyTorch composition"
OURS = "ofa_kernels"
KERNELS_ALONE = "ofa_kernels, kernels alone"
NORMS: dict[str, Callable[[Tensor, torch.dtype], Norm]] = {
    EAGER: llama,
    COMPILED: compiled,
    FUNCTIONAL: functional,
    LIGER: liger,
    COMPOSED: composed,
    OURS: ours,
}
