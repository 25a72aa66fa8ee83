"""What stands between a caller's tensors and a kernel that reads memory by address.

Asked at every call, not only in the forward pass: gradients and tangents are whatever PyTorch or a user hands
over, and who watches may have changed since.
"""

from types import ModuleType
from typing import overload

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor

from ofa_kernels import formulas

KERNEL_DTYPES = frozenset((torch.float64, torch.float32, torch.bfloat16, torch.float16))
_CLASSES = frozenset((Tensor, torch.nn.Parameter))

dispatch_modes = torch._C._len_torch_dispatch_stack
tracing = torch._C._is_tracing  # by torch.jit.trace
transforming = torch._C._are_functorch_transforms_active


def ready(kernels: ModuleType, *tensors: Tensor | None) -> ModuleType:
    """The kernels where every tensor is memory and nobody watches; else the module that can stand in.

    What is no memory has no address: subclasses, wrappers of transforms, fake tensors, zeros that were never
    written, sparse ones. Lazily negated views have one, at which the values are not.
    """
    return _ready(kernels, tensors)


def _ready(kernels: ModuleType, tensors: tuple[Tensor | None, ...]) -> ModuleType:
    try:
        for t in tensors:
            if t is not None and (type(t) not in _CLASSES or not t.data_ptr() or t.is_neg()):
                return _stand_in(kernels, tensors)
    except RuntimeError:  # there is no storage to have an address
        return _stand_in(kernels, tensors)
    return _stand_in(kernels, tensors) if dispatch_modes() or tracing() else kernels


def _is_memory(t: Tensor) -> bool:
    try:
        return type(t) in _CLASSES and not t.is_neg() and (t.data_ptr() != 0 or _is_freed_or_empty(t))
    except RuntimeError:
        return False


def _is_freed_or_empty(t: Tensor) -> bool:
    if t.device.type not in ("cpu", "cuda") or t._is_zerotensor():
        return False
    return not torch._is_functional_tensor(t)  # pyright: ignore[reportPrivateImportUsage] - not in the stubs


def value_of(t: Tensor) -> Tensor | None:
    """The numbers of a tensor below its wrappers of torch.func, or None where there are none to be read."""
    if torch.compiler.is_compiling() or tracing() or dispatch_modes():
        return None
    while is_functorch_wrapped_tensor(t):
        t = get_unwrapped(t)
    return t if _is_memory(t) else None


def check_memory(t: Tensor) -> None:
    """Raise RuntimeError where a tensor's storage was freed, which PyTorch itself dies of."""
    if _is_memory(t) and not t.data_ptr() and t.numel():
        raise RuntimeError(f"the memory of a tensor of {tuple(t.shape)} was freed; fill it again")


def _stand_in(kernels: ModuleType, tensors: tuple[Tensor | None, ...]) -> ModuleType:
    """Registered operators for who records or fakes them, and what PyTorch composes for the rest.

    `torch.jit.trace` gets the composition: its programs are to run elsewhere.
    """
    from torch._subclasses import FakeTensor

    from ofa_kernels import operators

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


def at_call(kernels: ModuleType, tensors: tuple[Tensor, ...]) -> ModuleType | None:
    """The kernels for a call of a public operator; None where PyTorch composes all of it.

    Within a transform of torch.func every tensor is a wrapper; the Functions look at what is inside.
    """
    if transforming():
        return None if kernels is formulas else kernels
    found = _ready(kernels, tensors)
    if found is not formulas:
        return found
    for t in tensors:
        if t.layout is not torch.strided:
            raise TypeError(f"tensors must be dense, got one that is {t.layout}; use .to_dense()")
    return None


@overload
def matching(kernels: ModuleType, t: Tensor, like: Tensor) -> Tensor: ...


@overload
def matching(kernels: ModuleType, t: None, like: Tensor) -> None: ...


def matching(kernels: ModuleType, t: Tensor | None, like: Tensor) -> Tensor | None:
    """A gradient or tangent [*K, *like.shape] in the type of what it belongs to, where kernels need it so.

    PyTorch gives gradients the type of the forward's result, but hooks on saved tensors may change these.

    Raises:
        ValueError: it is of other sizes or on another device.
        TypeError: its values are complex.
    """
    if t is None or (t.dtype == like.dtype and t.shape == like.shape and t.device == like.device):
        return t
    if kernels is formulas:
        return t
    if t.shape[max(t.dim() - like.dim(), 0) :] != like.shape or t.device != like.device:
        raise ValueError(
            f"a gradient or tangent must end in {tuple(like.shape)} and be on {like.device}, got "
            f"{tuple(t.shape)} on {t.device}"
        )
    if t.is_complex():
        raise TypeError(f"a gradient or tangent of a {like.dtype} tensor must be real, got {t.dtype}")
    return t if t.dtype == like.dtype else t.to(like.dtype)
