"""The kinds of tensors, and of what is none, that people hand to an operator, as a table."""

from collections.abc import Callable
from functools import partial

import torch


class Plain(torch.Tensor):
    """A subclass that adds nothing."""


def _wrapped(t):
    from torch.testing._internal.two_tensor import TwoTensor

    return TwoTensor(t, t.clone())


def _freed(t):
    t = t.clone()
    t.untyped_storage().resize_(0)
    return t


def _fake(t):
    return torch._subclasses.FakeTensorMode().from_tensor(t)


def _made_in_inference(t):
    with torch.inference_mode():
        return t.clone()


# name -> what it makes of a tensor; the values stay the same where they can
KINDS: dict[str, Callable] = {
    **{
        str(dtype).removeprefix("torch."): partial(torch.Tensor.to, dtype=dtype)
        for dtype in (
            torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool,
            torch.complex64, torch.float8_e4m3fn,
        )
    },
    "negated view": lambda t: torch._neg_view(-t),  # as .conj().imag gives, and contiguous
    "zeros never written": lambda t: torch._efficientzerotensor(t.shape, dtype=t.dtype),
    "expanded": lambda t: t[..., :1].expand(t.shape),
    "every second column": lambda t: torch.stack([t, t], -1).flatten(-2)[..., ::2],
    "a subclass": lambda t: t.as_subclass(Plain),
    "a parameter": torch.nn.Parameter,
    "a wrapper": _wrapped,
    "fake": _fake,
    "meta": partial(torch.Tensor.to, device="meta"),
    "sparse": torch.Tensor.to_sparse,
    "freed": _freed,
    "inference": _made_in_inference,
    "short": lambda t: t[..., :-1],
    "no rows": lambda t: t[..., :0, :] if t.dim() > 1 else t[:0],
    "a scalar": lambda t: t.flatten()[0],
    "None": lambda t: None,
    "a list": torch.Tensor.tolist,
    "numpy": torch.Tensor.numpy,
    "a float": lambda t: 0.5,
}  # fmt: skip
