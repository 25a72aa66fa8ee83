"""The emulated CUDA kernels as calls by name, on a device of any size and in memory that is watched."""

import ctypes
import struct
from dataclasses import dataclass
from math import prod

import torch

from ofa_kernels.structs import STRUCTS, packer

OK, UNSUPPORTED, CUDA_ERROR = 0, 3, 4
GUARD_BYTES, UNTOUCHED = 256, 0xA5


class FaultError(AssertionError):
    """What a device would have stopped at, or worse: not noticed."""


@dataclass(frozen=True)
class Device:
    """A size that the kernels' plans are made for."""

    threads: int  # of a block
    cluster: int = 1  # blocks
    shared: int = 227  # KiB of a block
    multiprocessors: int = 4

    def __str__(self):
        return f"{self.cluster}x{self.threads} threads, {self.shared} KiB"


class Memory:
    """A tensor that starts as NaN, between two guards."""

    def __init__(self, shape, dtype, shift=0):
        """`shift` elements off the alignment that it would have."""
        n_bytes = prod(shape) * dtype.itemsize
        self.begin = GUARD_BYTES + shift * dtype.itemsize
        self.end = self.begin + n_bytes
        self.bytes = torch.full((self.end + GUARD_BYTES,), UNTOUCHED, dtype=torch.uint8)
        self.bytes[self.begin : self.end] = 0xFF
        self.tensor = self.bytes[self.begin : self.end].view(dtype).view(shape)

    def check(self, name):
        around = self.bytes.clone()
        around[self.begin : self.end] = UNTOUCHED
        assert (around == UNTOUCHED).all(), f"a write outside of {name}"


def pointer(t):
    return 0 if t is None else t.data_ptr()


def call_of(operator, sizes, tensors):
    """The bytes of an operator's struct, of sizes by their names and tensors by theirs."""
    members = STRUCTS[operator]
    values = []
    for member in members.split():
        name, _, end = member.rpartition("_")
        if member in sizes:
            values.append(sizes[member])
        elif member in tensors:
            values.append(pointer(tensors[member]))
        elif end in ("stride", "b"):
            values.append(0 if tensors[name] is None else tensors[name].stride(-2))
        else:
            assert end in ("k", "t"), member
            values.append(0 if tensors[name] is None else tensors[name].stride(0))
    return packer(members)(*values)


class Library:
    """The library's functions."""

    def __init__(self, path):
        self.functions = ctypes.CDLL(str(path))
        self.functions.ofa_cuda_last_error.restype = ctypes.c_char_p
        self.functions.ofa_emulation_configure.argtypes = [ctypes.c_int64] * 5

    def configure(self, device, seed):
        """Be a device of this size, on which what may happen in any order happens as the seed decides."""
        sizes = device.multiprocessors, device.threads, device.cluster, device.shared * 1024
        self.functions.ofa_emulation_configure(*sizes, seed)

    def workspace(self, operator, call):
        function = self.functions[f"ofa_cuda_workspace_{operator}"]
        function.restype, function.argtypes = ctypes.c_int64, [ctypes.c_char_p, ctypes.c_int64]
        return function(call, 0)

    def run(self, operator, call, workspace=None, seed=None):
        """Its return code; a fault is an error.

        `workspace` and `seed` are the tensors of `ofa_cuda_launch`, or none.
        """
        function = self.functions[f"ofa_cuda_run_{operator}"]
        function.argtypes = [ctypes.c_char_p, ctypes.c_char_p]
        code = function(call, struct.pack("@4q", 0, 0, *map(pointer, (workspace, seed))))
        if code == CUDA_ERROR:
            raise FaultError(self.functions.ofa_cuda_last_error().decode())
        return code
