"""What stands between a caller's tensors and a kernel that reads memory by address.

Asked at every call, not only in the forward pass: gradients and tangents are whatever PyTorch or a user hands
over, and who watches may have changed since.
"""

from types import ModuleType

import torch
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet, _dispatch_keys

KERNEL_DTYPES = frozenset((torch.float64, torch.float32, torch.bfloat16, torch.float16))
_CLASSES = frozenset((Tensor, torch.nn.Parameter))
# what PyTorch knows of a tensor that is nothing but memory; every other mark (lazily negated, zeros that were
# never written, a wrapper of a transform, sparse, …) means that its values are not what lies at its address
_MEMORY = (
    "Dense", "CPU", "CUDA", "ADInplaceOrView", "AutogradCPU", "AutogradCUDA", "AutocastCPU", "AutocastCUDA",
)  # fmt: skip
_FOREIGN = ~0
for _key in _MEMORY:
    _FOREIGN &= ~DispatchKeySet(getattr(DispatchKey, _key)).raw_repr()

_FORMULAS = "ofa_kernels.formulas"

dispatch_modes = torch._C._len_torch_dispatch_stack
tracing = torch._C._is_tracing  # by torch.jit.trace
_transforming = torch._C._are_functorch_transforms_active


class _Checked:
    """Kernels that look at their tensors themselves: within a transform of torch.func all are wrappers."""

    def __init__(self, kernels: ModuleType):
        self._kernels = kernels

    def __getattr__(self, name: str):
        def call(*arguments):
            tensors = (a for a in arguments if isinstance(a, Tensor))
            return getattr(ready(self._kernels, *tensors), name)(*arguments)

        return call


def check_memory(t: Tensor) -> None:
    """Raise RuntimeError where a tensor's storage was freed, which PyTorch itself dies of."""
    if _is_memory(t) and not t.data_ptr() and t.numel():
        raise RuntimeError(f"the memory of a tensor of {tuple(t.shape)} was freed; fill it again")


def _is_memory(t: Tensor) -> bool:
    return type(t) in _CLASSES and not _dispatch_keys(t).raw_repr() & _FOREIGN


def ready(kernels: ModuleType, *tensors: Tensor | None) -> ModuleType:
    """The kernels where every tensor is memory and nobody watches; else the module that can stand in."""
    for t in tensors:
        if t is not None and not (_is_memory(t) and t.data_ptr()):
            return _stand_in(kernels, tensors)
    return _stand_in(kernels, tensors) if dispatch_modes() or tracing() else kernels


def _stand_in(kernels: ModuleType, tensors: tuple[Tensor | None, ...]) -> ModuleType:
    """Registered operators for who records or fakes them, and what PyTorch composes for the rest.

    `torch.jit.trace` gets the composition: its programs are to run elsewhere.
    """
    from torch._subclasses import FakeTensor

    from ofa_kernels import formulas, operators

    faked = composed = False
    for t in tensors:
        if t is None:
            continue
        if _is_memory(t):
            check_memory(t)
        elif type(t) is FakeTensor and t.layout is torch.strided and not t.is_neg():
            faked = True
        else:
            composed = True
    if composed or tracing():
        return formulas
    return operators if faked or dispatch_modes() else kernels


def at_call(kernels: ModuleType, *tensors: Tensor) -> ModuleType | None:
    """The kernels for a call of a public operator; None where PyTorch composes all of it."""
    if _transforming():
        return None if kernels.__name__ == _FORMULAS else _Checked(kernels)
    found = ready(kernels, *tensors)
    return None if _FORMULAS in (found.__name__, kernels.__name__) else found


def matching(t: Tensor | None, like: Tensor) -> Tensor | None:
    """A gradient, tangent or residual [*K, *like.shape] in the type of what it belongs to.

    Raises:
        ValueError: its shape is another one.
        TypeError: its values are complex.
    """
    if t is None or (t.dtype == like.dtype and t.shape == like.shape):
        return t
    if t.shape[max(t.dim() - like.dim(), 0) :] != like.shape:
        raise ValueError(
            f"a gradient or tangent of a tensor of {tuple(like.shape)} must end in these sizes, got "
            f"{tuple(t.shape)}"
        )
    if t.is_complex():
        raise TypeError(f"a gradient or tangent of a {like.dtype} tensor must be real, got {t.dtype}")
    return t if t.dtype == like.dtype else t.to(like.dtype)
