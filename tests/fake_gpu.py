"""A GPU for machines that have none: tensors in the CPU's memory that say they are on "cuda".

Where a card would refuse, so does it: tensors of two devices in one call, Triton kernels that are handed the
host's memory, NumPy. What a card waits for, or can't put into a CUDA graph, is written down: copies between
the devices and values that the host asks for.

A tensor is on the fake GPU if its storage is marked True. What PyTorch makes by itself, such as the zeros of
an absent gradient, is marked None and fits either device. One mode sees what Python calls, answers for the
device and takes "cuda" out of the arguments; the other sees the kernels, and marks what they make.
"""

import contextlib
from unittest import mock

import torch
import torch.utils.checkpoint
from torch import Tensor
from torch._C import _functorch
from torch._ops import HigherOrderOperator, _compute_keyset
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

from ofa_kernels import boundary

HOST, GPU = torch.device("cpu"), torch.device("cuda", 0)
# kernels that may be given tensors of both devices
MIXING = {"copy_", "_to_copy", "index", "index_put", "index_put_", "_index_put_impl_"}
# kernels whose result, or its size, the host has to see
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "bincount"}
FROM_PYTHON = {torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy}


def _storage(t: Tensor):
    """The memory of a tensor, or of the one that a transform has wrapped in it."""
    while _functorch.is_functorch_wrapped_tensor(t):
        t = _functorch.get_unwrapped(t)
    return t.untyped_storage()


def _mark(t: Tensor) -> bool | None:
    # the vmap of `is_grads_batched` lets nobody look inside
    return None if _functorch.is_legacy_batchedtensor(t) else getattr(_storage(t), "on_fake_gpu", False)


def _put(t: Tensor, mark: bool | None) -> None:
    if not _functorch.is_legacy_batchedtensor(t):
        _storage(t).on_fake_gpu = mark


def is_on_gpu(t: Tensor) -> bool:
    """Whether a tensor is on the fake GPU."""
    return bool(_mark(t))


def _tensors(tree) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _names_a_device(argument) -> bool:
    return isinstance(argument, torch.device | str)


class _Calls(TorchFunctionMode):
    """What Python calls."""

    def __init__(self, traffic: list[str]):
        self.traffic = traffic

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, getattr(function, "__name__", "")
        if name == "__get__" or name == "get_device":
            return self._look_up(function, args)
        if name in ("to", "cpu", "cuda"):
            return self._move(function, name, args, kwargs)
        if name in ("numpy", "__array__") and is_on_gpu(args[0]):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
        if name == "tolist" and is_on_gpu(args[0]):
            self.traffic.append("tolist")
        if isinstance(function, HigherOrderOperator):  # a Function under a transform: Python, which we watch
            key = _compute_keyset(args, kwargs, function.non_fallthrough_keys).highestPriorityTypeId()
            with self:
                return function.dispatch(key, *args, **kwargs)
        if kwargs.get("device") is None:
            made = function(*args, **kwargs)
            if isinstance(made, Tensor) and not _tensors((args, kwargs)) and _mark(made) is None:
                _put(made, False)
            return made
        on_gpu = torch.device(kwargs["device"]).type == "cuda"
        if on_gpu and function in FROM_PYTHON:
            self.traffic.append(f"{name} of host memory")
        made = function(*args, **{**kwargs, "device": HOST if on_gpu else kwargs["device"]})
        _put(made, on_gpu)
        return made

    def _look_up(self, function, args):
        if is_on_gpu(args[0]):
            if function is Tensor.get_device:
                return 0
            attribute = function.__self__
            if attribute is Tensor.device:
                return GPU
            if attribute is Tensor.is_cuda:
                return True
        return function(*args)

    def _move(self, function, name, args, kwargs):
        t, *rest = args
        wanted = {"cpu": HOST, "cuda": GPU}.get(name)
        for argument in (*rest, *kwargs.values()):
            if _names_a_device(argument):
                wanted = torch.device(argument)
            elif isinstance(argument, Tensor):
                wanted = GPU if is_on_gpu(argument) else argument.device
        if wanted is None or wanted.type == "meta":
            return function(*args, **kwargs)
        rest = [HOST if _names_a_device(argument) else argument for argument in rest]
        kwargs = {key: HOST if key == "device" else argument for key, argument in kwargs.items()}
        moved = Tensor.cpu(t) if name == "cuda" else function(t, *rest, **kwargs)
        on_gpu = wanted.type == "cuda"
        if on_gpu != is_on_gpu(t):
            self.traffic.append(f"copy to {wanted.type}")
            moved = moved.clone() if moved.data_ptr() == t.data_ptr() else moved
            _put(moved, on_gpu)
        return moved


class _Kernels(TorchDispatchMode):
    """What runs."""

    def __init__(self, traffic: list[str]):
        super().__init__()
        self.traffic = traffic

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = {id(t): (_mark(t), t) for t in _tensors((args, kwargs))}.values()
        marks = {mark for mark, _ in given}
        if True in marks:
            self._check(function._schema.name.removeprefix("aten::"), given, args, kwargs)
        made = function(*args, **kwargs)
        if not function._schema.is_mutable:
            mark = True if True in marks else False if False in marks else None
            for t in _tensors(made):
                _put(t, mark)
        return made

    def _check(self, name, given, args, kwargs):
        # a single number is passed by value
        if any(mark is False and t.dim() for mark, t in given):
            if name not in MIXING:
                raise RuntimeError(f"{name}: expected all tensors to be on the same device, cuda:0 and cpu")
            self.traffic.append(f"{name} of host memory")
        counted = name == "repeat_interleave" and kwargs.get("output_size") is None
        masked = name.startswith(("index", "_index")) and any(
            t.dtype in (torch.bool, torch.uint8) for t in _tensors(args[1])
        )
        if name in WAITING or counted or masked:
            self.traffic.append(name)


@contextlib.contextmanager
def _without_modes():
    with torch._C.DisableTorchFunction(), _disable_current_modes():
        yield


def _real(function, refuse_host: bool):
    """`function` of the CPU's tensors, as they are."""

    def call(*args, **kwargs):
        with _without_modes():
            given = _tensors((args, kwargs))
            on_gpu = any(map(is_on_gpu, given))
            if refuse_host and not all(map(is_on_gpu, given)):
                raise ValueError("Pointer argument cannot be accessed from Triton (cpu tensor?)")
            made = function(*args, **kwargs)
            tree_map_only(Tensor, lambda t: _put(t, on_gpu), made)
        return made

    return call


@contextlib.contextmanager
def fake_gpu():
    """While it is entered, "cuda" is a device; yields the list of what a card would have waited for."""
    traffic: list[str] = []
    compiler, autocast = torch.compile, torch.autocast
    with contextlib.ExitStack() as stack:

        def replace(owner, name, value):
            stack.enter_context(mock.patch.object(owner, name, value))

        replace(torch.cuda, "current_device", lambda: 0)
        replace(torch.cuda, "is_current_stream_capturing", lambda: False)
        replace(torch, "compile", lambda *args, **options: _real(compiler(*args, **options), False))
        replace(torch, "autocast", lambda _, *args, **options: autocast("cpu", *args, **options))
        with contextlib.suppress(ImportError):
            from triton.runtime.interpreter import GridExecutor

            launch = GridExecutor.__call__
            replace(GridExecutor, "__call__", _real(launch, True))
        # the mode below is no tracer, for which the kernels would have to become operators
        modes = boundary.dispatch_modes
        replace(boundary, "dispatch_modes", lambda: max(0, modes() - 1))
        calls = stack.enter_context(_Calls(traffic))
        stack.enter_context(_Kernels(traffic))
        engine = torch.autograd._engine_run_backward

        def backward(outputs, *args, **kwargs):
            with calls:  # PyTorch has put the mode aside, but there is Python in a backward pass
                gradients = engine(outputs, *args, **kwargs)
            inputs = args[3]
            for gradient, leaf in zip(gradients or (), inputs, strict=True):
                if gradient is not None:
                    _put(gradient, _mark(leaf))  # a compiled function's backward leaves no marks
            return gradients

        replace(torch.autograd, "_engine_run_backward", backward)
        # recomputed tensors are compared where the mode is on, with saved ones of where it is put aside
        checks = torch.utils.checkpoint._allowed_determinism_checks_to_fns
        stack.enter_context(mock.patch.dict(checks, default=lambda t: (t.shape, t.dtype)))
        yield traffic
