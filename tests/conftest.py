"""Fixtures for every test; importing this file decides whether Triton interprets its kernels."""

import ctypes
import importlib.util
import os
from unittest import mock

import pytest
import torch

if not torch.cuda.is_available():
    # Triton reads it when it is first imported, so it has to be set before any test module is
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True, scope="session")
def quick_reductions():
    """Let the interpreter combine half of a block with the other, as a GPU does, not value by value."""
    with pytest.MonkeyPatch.context() as patch:
        if not torch.cuda.is_available() and importlib.util.find_spec("triton") is not None:
            from triton.runtime.interpreter import ReduceOps

            def reduce(self, inputs):
                values = [(t.handle.data.reshape(-1), t.dtype) for t in inputs]
                while len(values[0][0]) > 1:
                    size = len(values[0][0])
                    halves = [
                        self.to_tensor(data[half], dtype)
                        for half in (slice(size // 2), slice(size // 2, size))
                        for data, dtype in values
                    ]
                    values = [(t.handle.data.reshape(-1), t.dtype) for t in self.combine_fn.fn(*halves)]
                return tuple(self.to_tensor(data[0], dtype) for data, dtype in values)

            original = ReduceOps.generic_reduce

            def choose(self, inputs):
                whole = self.axis is None and not self.keep_dims and len(inputs) > 1
                return reduce(self, inputs) if whole else original(self, inputs)

            patch.setattr(ReduceOps, "generic_reduce", choose)
        yield


# the tensors here are tiny: a second thread only adds waiting
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def emulated_library():
    """The file of the library that runs the CUDA kernels on the CPU; there is none without a C++ compiler."""
    from tools import emulation

    try:
        return emulation.library()
    except emulation.UnavailableError as reason:
        pytest.skip(str(reason))


# multiprocessors, threads of a block, blocks of a cluster, bytes of shared memory, seed of the order of warps
EMULATED_DEVICE = (4, 64, 16, 227 * 1024, 1)


@pytest.fixture
def emulated_cuda(emulated_library):
    """The CUDA kernels on the CPU: a backend for tensors of the host, and of the fake GPU."""
    from ofa_kernels import cuda, dispatch

    # another test may have made the device smaller
    configure = ctypes.CDLL(str(emulated_library)).ofa_emulation_configure
    configure(*map(ctypes.c_int64, EMULATED_DEVICE))
    with mock.patch.dict(os.environ, {cuda.ENVIRONMENT_VARIABLE: str(emulated_library)}):
        dispatch.look_again()
        yield
    dispatch.look_again()


# a module whose tests are to run with other backends has a constant of this name; the emulation, which takes
# up to a millisecond a row, is for those with few rows
BACKENDS = ("reference", "native", "triton")
WITH_CUDA = (*BACKENDS, "cuda")


def pytest_generate_tests(metafunc):
    """Run every test that takes `backend` with all of its module's, unless it names its own."""
    own = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    if "backend" in metafunc.fixturenames and not any(
        "backend" in (names.split(",") if isinstance(names, str) else names) for names in own
    ):
        metafunc.parametrize("backend", getattr(metafunc.module, "BACKENDS", BACKENDS), indirect=True)


@pytest.fixture
def backend(request, monkeypatch):
    """The name of the backend that `OFA_BACKEND` forces during the test."""
    on_host = bool(request.node.get_closest_marker("host"))
    if request.param == "triton" and importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    if request.param == "triton" and on_host and torch.cuda.is_available():
        pytest.skip("the tensors here are on the host, and Triton's kernels are compiled")
    if request.param == "native":
        from ofa_kernels import native

        if (torch.cuda.is_available() and not on_host) or native.missing():
            pytest.skip(native.missing() or "the tensors here are on a GPU")
    if request.param == "cuda" and torch.cuda.is_available() and not on_host:
        from ofa_kernels import cuda

        if reason := cuda.refuses(0):
            pytest.skip(reason)
    elif request.param == "cuda":
        request.getfixturevalue("emulated_cuda")
    monkeypatch.setenv("OFA_BACKEND", request.param)
    return request.param


@pytest.fixture
def set_threads():
    """`torch.set_num_threads`, undone after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def nan_poisoned_empty(monkeypatch):
    """Uninitialised floats are NaN, so an output that a kernel leaves unwritten can't pass by luck."""

    def poison(make):
        def poisoned(*args, **kwargs):
            out = make(*args, **kwargs)
            # a leaf that requires a gradient can't be written; PyTorch makes some where it checkpoints
            if out.is_floating_point() and not out.requires_grad:
                out.fill_(float("nan"))
            return out

        return poisoned

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poison(getattr(owner, name)))
