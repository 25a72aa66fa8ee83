"""What every kernel does with a row: sums over its columns, and rstd.

A row that fits registers is handled by one launch, STAGE "row". A longer one is cut into blocks of columns,
one a program, and its kernel is launched twice: STAGE "sums" leaves every block's sums in scratch, STAGE
"apply" adds them up and does the rest. The kernels read the same either way: `row_total` hides the stage.
"""

import inspect
from collections.abc import Callable

import triton
import triton.language as tl
from triton.runtime.jit import KernelInterface


def kernel(body: Callable[..., None]) -> KernelInterface[Callable[..., None]]:
    """`triton.jit` with no integer specialised: what a build may assume of sizes and strides is its UNIT.

    Specialised, an integer of 1 would be no tensor, and one more multiple of 16 one more build.
    """
    parameters = inspect.signature(body).parameters.items()
    integers = [n for n, p in parameters if p.annotation is not tl.constexpr and not n.endswith("_ptr")]
    return triton.jit(do_not_specialize=integers)(body)


@triton.jit
def multiple(n, UNIT: tl.constexpr):
    """n, a multiple of UNIT by the launcher's word: its form tells the compiler, which then loads vectors."""
    # called on offsets where they are used: strides would take registers for as long as a kernel runs
    return n // UNIT * UNIT


@triton.jit
def sum_of_squares(b):
    """Σ b² in float64, where squares of float32 are exact: the sum whose error reaches every output."""
    b = b.to(tl.float64)
    return tl.sum(b * b)


@triton.jit
def row_total(
    total,  # this block's sum
    sums_ptr,  # [sums, n_blocks] float64, None in stage "row"
    i_sum,
    STAGE: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """The sum over the whole row; in stage "sums" it is still the block's, and left in scratch."""
    i_block = tl.program_id(1)
    n_blocks = tl.num_programs(1)

    if STAGE == "sums":
        tl.store(sums_ptr + i_sum * n_blocks + i_block, total.to(tl.float64))
    if STAGE == "apply":
        o_block = tl.arange(0, BLOCK_S)
        b_sums = tl.load(sums_ptr + i_sum * n_blocks + o_block, mask=o_block < n_blocks, other=0.0)
        total = tl.sum(b_sums).to(total.dtype)
    return total


@triton.jit
def rstd_of(squares, n_cols, EPS: tl.constexpr, ACC: tl.constexpr):
    """r = (mean(x²) + eps)^(-1/2) from a float64 sum; the float32 nearest to it, but for the sum's error."""
    n = tl.full([], n_cols, tl.float64)
    total = squares + n * EPS
    if tl.float64 == ACC:
        rstd = 1.0 / tl.sqrt(total / n)
    else:
        n_single = n.to(tl.float32)
        # float32 has no room for squares of what is above 1e19 or, without an eps, below 1e-19
        scale = tl.where(total > 2.0**100, 2.0**-100, tl.where(total < 2.0**-100, 2.0**100, 1.0))
        scale = scale.to(tl.float32)
        scaled = (total * scale * scale).to(tl.float32)
        rstd = tl.sqrt_rn(tl.div_rn(n_single, scaled)) * scale
        # one Newton step, because each of these two roundings can cost half an ULP; its residual alone is
        # float64, in which roots and quotients would be slow
        residual = n - total * (rstd.to(tl.float64) * rstd.to(tl.float64))
        step = 0.5 * rstd * (residual.to(tl.float32) / n_single)
        # 0 and infinity have no residual
        rstd += tl.where(step == step, step, 0.0)
    return rstd
