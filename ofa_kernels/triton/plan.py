"""Launch choices as data, and what every launcher needs: views of rows, scratch, the launch itself."""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, overload

import torch
import triton
import triton.language as tl
from torch import Tensor

from ofa_kernels.triton.cached import Builds
from ofa_kernels.triton.rms_norm import sum_partials

MIN_BLOCK = 128  # the columns of one Philox call
MAX_WARPS = 32  # of a program; they leave a thread 64 registers, which only the forward needs no more than
REGISTER_FILE = 65536  # of a multiprocessor
# rows of x and dy that a loop has in flight, the one in use included, by the bytes of an element: more spill.
# Those that wait take 64 KiB of shared memory at most, so that it holds two programs. Only vectors are copied
# there without passing through registers
IN_FLIGHT = {2: 3, 4: 2}
RESIDENT_WARPS = 2112  # 16 on each of an H100's 132 multiprocessors
MAX_PROGRAMS = 528  # adding up their partial sums stays a small part of the work
VECTOR_BYTES = 16  # the widest load
WHOLE, BLOCKS = ("row",), ("sums", "apply")  # stages; row.py says what they are
# kernels without a plan: 16 values a thread; reductions loop over such blocks, the rest takes one a program
PLAIN_BLOCK, PLAIN_WARPS = 1024, 2
PARTIALS_BLOCK = (256, 16)  # partial sums by columns: an H100's 264 take two rounds, 576 columns 36 programs
PARTIALS_PER_WARP = 512  # 16 values a thread


@dataclass(frozen=True, eq=False)
class Residency:
    """What one program of a kernel holds in registers; half of it where rows don't start at 16 bytes.

    Such rows are loaded value by value, each with its own address. The numbers are the largest without
    spills; the compile gate holds them to it.

    Args:
        whole: the longest row, in columns.
        block: the columns of one block of a longer row.
        per_warp: columns of one warp; 512 are 16 values a thread, two 128-bit loads of bfloat16.
        registers: the most a thread may have. 128 let 16 warps fill a multiprocessor; left to itself, ptxas
            spills a little to fit more.
        sum_f64: whether squares are added up in float64 on every card. Where tangents or probes are read as
            well, that takes no longer than reading; and pairs of float32 take registers.
    """

    whole: int
    block: int
    per_warp: int
    registers: int = 128
    sum_f64: bool = False


FORWARD = Residency(16384, 4096, 512)  # x alone lives across the sum: 32 values a thread fit
BACKWARD = Residency(8192, 4096, 512)  # x, dy, w and dw
JVP = Residency(8192, 4096, 512)  # x, w and one tangent
TANGENT = Residency(4096, 2048, 256, sum_f64=True)  # x, dy, w, three tangents and two sums: 8 values a thread
PROBES = Residency(8192, 4096, 512)  # w / σ and the words of signs
PROBES_BACKWARD = Residency(8192, 4096, 512, sum_f64=True)  # z, w, dw and the sum over probes
# every kernel in float64, where speed matters least: 4 values a thread
DOUBLE = Residency(1024, 1024, 128, 255, sum_f64=True)


@dataclass(frozen=True)
class Plan:
    """One launch where a program holds a row, two where rows are cut into blocks (row.py has the stages)."""

    block: int
    n_blocks: int
    n_blocks_padded: int  # a power of two, and no less than 16: most lengths share one build
    num_warps: int
    registers: int
    stages: tuple[str, ...]
    max_programs: int  # the most that share rows where each leaves a partial sum
    unit: int  # what `unit_of` said of the rows
    sum_f64: bool = False  # whether squares are added up in float64 wherever the launch goes
    partials: tuple[int, int] = PARTIALS_BLOCK
    pipeline: int = 1  # rows that the backward's loop has in flight
    builds: Builds = field(default_factory=Builds, init=False, repr=False, compare=False)

    def programs(self, n_rows: int) -> int:
        """How many programs share n_rows where each leaves a partial sum."""
        return max(1, min(n_rows, self.max_programs))

    def scratch(self, x: Tensor, n_rows: int, n_sums: int) -> Tensor | None:
        """Where stage "sums" leaves n_sums sums a row and block."""
        if self.stages == WHOLE:
            return None
        return x.new_empty((n_rows, n_sums, self.n_blocks), dtype=torch.float64)

    def launch(
        self,
        kernel,
        n_programs: int,
        pointers: tuple[Tensor | None, ...],
        integers: tuple[int, ...],
        **constants: float,
    ) -> None:
        """Run every stage of a kernel; the first pointer is x."""
        grid, values = (n_programs, self.n_blocks), constants.values()
        for stage in self.stages:
            self.builds.launch(
                kernel,
                grid,
                pointers,
                integers,
                (stage, *values),
                lambda stage=stage: {**constants, **self._constants(stage, pointers[0])},
            )

    def _constants(self, stage: str, x: Tensor | None) -> dict[str, Any]:
        assert x is not None
        return {
            "ACC": acc(x),
            "STAGE": stage,
            "BLOCK_N": self.block,
            "BLOCK_S": self.n_blocks_padded,
            "SUM_F64": self.sum_f64 or float64_is_fast(x.get_device()),
            "UNIT": self.unit,
            "num_warps": self.num_warps,
            "maxnreg": self.registers,
        }

    def finish(self, partials: Tensor, out: Tensor) -> Tensor:
        """`out`, into which the sum over the first dimension of partials is written, in a fixed order."""
        n_cols = out.numel()
        block_p, block_n = self.partials
        if n_cols:
            unit = common_unit(n_cols, partials.element_size())
            self.builds.launch(
                sum_partials,
                (cdiv(n_cols, block_n), 1),
                (partials, out),
                (partials.shape[0], n_cols),
                (unit,),
                lambda: {
                    "BLOCK_P": block_p,
                    "BLOCK_N": block_n,
                    "UNIT": unit,
                    "num_warps": max(block_p * block_n // PARTIALS_PER_WARP, 1),
                },
            )
        return out


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up; Triton's own takes microseconds."""
    return -(-a // b)


def common_unit(counts: int, element_size: int) -> int:
    """8, 4 or 1: what divides all the numbers whose bitwise or is `counts`; 4 fills no vector of halves."""
    if counts % 8 == 0:
        return 8
    return 4 if counts % 4 == 0 and element_size > 2 else 1


def unit_of(n_cols: int, *rows: Tensor | None) -> int:
    """The columns that rows and their strides are multiples of; 1 where rows don't start at 16 bytes."""
    counts, addresses = n_cols, 0
    for t in rows:
        if t is not None:
            addresses |= t.data_ptr()
            if not t.is_contiguous():  # the quicker question; where it is, strides are multiples of n_cols
                for stride in t.stride()[:-1]:
                    counts |= stride
    if addresses % VECTOR_BYTES:
        return 1
    assert rows[0] is not None  # the others may be absent
    return common_unit(counts, rows[0].element_size())


@lru_cache(maxsize=4096)
def plan(residency: Residency, n_cols: int, dtype: torch.dtype, unit: int) -> Plan:
    """The launch for rows of n_cols of dtype, laid out in units of `unit_of`."""
    residency = DOUBLE if dtype == torch.float64 else residency
    share = 2 if unit == 1 else 1
    block = max(triton.next_power_of_2(n_cols), MIN_BLOCK)
    if block > residency.whole // share:
        block = residency.block // share
    n_blocks = cdiv(n_cols, block)
    warps = min(max(block * share // residency.per_warp, 1), MAX_WARPS)
    registers = min(residency.registers, REGISTER_FILE // (32 * warps))
    stages = WHOLE if n_blocks == 1 else BLOCKS
    padded = max(triton.next_power_of_2(n_blocks), 16)
    programs = max(1, min(MAX_PROGRAMS, RESIDENT_WARPS // (warps * n_blocks)))
    pipeline = 1 if unit == 1 else IN_FLIGHT.get(dtype.itemsize, 1)
    return Plan(
        block,
        n_blocks,
        padded,
        warps,
        registers,
        stages,
        programs,
        unit,
        residency.sum_f64,
        pipeline=pipeline,
    )


@lru_cache(maxsize=64)
def float64_is_fast(device: int) -> bool:
    """Whether a card has half of float32's speed in float64, as 8.0, 9.0 and 10.0 do; others have a 32nd."""
    if not torch.cuda.is_available():  # interpreted, or compiled for another machine
        return True
    major, minor = torch.cuda.get_device_capability(device)
    return major <= 10 and minor == 0


def acc(x: Tensor):
    """The type that kernels compute in."""
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def as_rows(x: Tensor, *sizes: int) -> Tensor:
    """x as [*sizes, N] with unit column stride; a view where strides allow it."""
    shape = x.shape
    if shape != (*sizes, shape[-1]):
        x = x.reshape(*sizes, shape[-1])
    return x if x.stride()[-1] == 1 else x.contiguous()  # stride(-1) takes thrice as long


@overload
def strided(x: Tensor, *sizes: int) -> tuple[Tensor, tuple[int, ...]]: ...


@overload
def strided(x: Tensor | None, *sizes: int) -> tuple[Tensor | None, tuple[int, ...]]: ...


def strided(x: Tensor | None, *sizes: int) -> tuple[Tensor | None, tuple[int, ...]]:
    """What to read x from as [*sizes, N] with unit column stride, and its other strides; 0 for None.

    A contiguous x is returned as it is, in its own shape: a view would take longer than the rest of a call.
    """
    if x is None:
        return None, (0,) * len(sizes)
    if x.is_contiguous():
        n_cols = x.shape[-1]
        return x, (n_cols,) if len(sizes) == 1 else (sizes[-1] * n_cols, n_cols)
    x = as_rows(x, *sizes)
    return x, x.stride()[:-1]


def dense(x: Tensor) -> Tensor:
    """x, copied where it isn't contiguous; the question alone is quicker than a call that finds it is."""
    return x if x.is_contiguous() else x.contiguous()


def dense_like(x: Tensor) -> Tensor:
    """Unwritten, contiguous, of x's shape and type."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)
