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
def weight_of(w_ptr, index_ptr, i_row, n_weights, o_col, n_cols, ACC: tl.constexpr):
    """What row i_row is scaled by: w, or w's row of that index; NaN where w has none."""
    if index_ptr is None:
        b_w = tl.load(w_ptr + o_col, mask=o_col < n_cols, other=0.0).to(ACC)
    else:
        i_weight = tl.load(index_ptr + i_row)
        known = (i_weight >= 0) & (i_weight < n_weights)
        n_known = tl.where(known, n_cols, 0)
        p_w = w_ptr + tl.where(known, i_weight, 0) * n_cols + o_col
        b_w = tl.load(p_w, mask=o_col < n_known, other=0.0).to(ACC)
        b_w = tl.where(known, b_w, float("nan"))
    return b_w


@triton.jit
def _add_two(a, b, more_a, more_b):
    return a + more_a, b + more_b


@triton.jit
def _add_three(a, b, c, more_a, more_b, more_c):
    return a + more_a, b + more_b, c + more_c


@triton.jit
def _add_pairs(a, rest, more_a, more_rest):
    """The sum of two pairs; `lost` is what rounding a + more_a takes away, exactly (Knuth's two-sum)."""
    total = a + more_a
    added = total - a
    lost = (a - (total - added)) + (more_a - added)
    return total, rest + more_rest + lost


@triton.jit
def _add_pairs_and_one(a, rest, b, more_a, more_rest, more_b):
    total, rest = _add_pairs(a, rest, more_a, more_rest)
    return total, rest, b + more_b


@triton.jit
def _square_as_pair(b):
    """b² as two float32: the square of b's 12 leading bits, which is exact, and what that leaves.

    An exact product stays what it is where the compiler makes one operation of it and an addition.
    """
    b_high = (b.to(tl.int32, bitcast=True) & -4096).to(tl.float32, bitcast=True)
    return b_high * b_high, (b + b_high) * (b - b_high)


@triton.jit
def _sum_of_float64_squares(b):
    b = b.to(tl.float64)
    return tl.sum(b * b)


@triton.jit
def _total_of_pair(total, rest, b):
    """Their sum in float64; Σ b² anew where it is too large or too small for its squares to be exact."""
    squares = total.to(tl.float64) + rest.to(tl.float64)
    if not ((total > 2.0**-100) & (total < 2.0**100)):
        squares = _sum_of_float64_squares(b)
    return squares


@triton.jit
def sum_of_squares(b, SUM_F64: tl.constexpr):
    """Σ b² in float64, to 2^-28 of itself at least: the sum whose error reaches every output.

    With SUM_F64 it is added up in float64, where squares of float32 are exact. On most cards that takes as
    long as reading the row: there pairs of float32 are added up, and float64 is for rows whose squares
    float32 has no room for.
    """
    if SUM_F64:
        squares = _sum_of_float64_squares(b)
    else:
        total, rest = tl.reduce(_square_as_pair(b), None, _add_pairs)
        squares = _total_of_pair(total, rest, b)
    return squares


@triton.jit
def sum_of_squares_and(b, b_other, SUM_F64: tl.constexpr):
    """(`sum_of_squares` of b, Σ b_other) by one reduction, which is what threads wait for."""
    # of several sums the interpreter can't reduce more than one dimension
    b, b_other = tl.ravel(b), tl.ravel(b_other)
    if SUM_F64:
        b = b.to(tl.float64)
        squares, other = tl.reduce((b * b, b_other), None, _add_two)
    else:
        b_square, b_rest = _square_as_pair(b)
        total, rest, other = tl.reduce((b_square, b_rest, b_other), None, _add_pairs_and_one)
        squares = _total_of_pair(total, rest, b)
    return squares, other


@triton.jit
def two_sums(b_a, b_b):
    """(Σ b_a, Σ b_b) by one reduction."""
    return tl.reduce((b_a, b_b), None, _add_two)


@triton.jit
def three_sums(b_a, b_b, b_c):
    """(Σ b_a, Σ b_b, Σ b_c) by one reduction."""
    return tl.reduce((b_a, b_b, b_c), None, _add_three)


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
def sum_of_rows(p, n_rows, stride, m_col, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr):
    """The sum [BLOCK_N] of what is at the addresses p [1, BLOCK_N] and n_rows - 1 times a stride after them.

    The order of the additions is fixed.
    """
    o_partial = tl.arange(0, BLOCK_P).to(tl.int64)
    b = tl.zeros([BLOCK_P, BLOCK_N], dtype=p.dtype.element_ty)
    for i in range(0, tl.cdiv(n_rows, BLOCK_P)):
        o_row = i * BLOCK_P + o_partial
        m = (o_row < n_rows)[:, None] & m_col[None, :]
        b += tl.load(p + o_row[:, None] * stride, mask=m, other=0.0)  # [BLOCK_P, BLOCK_N]
    return tl.sum(b, 0)


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
