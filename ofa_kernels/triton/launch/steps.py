"""The calls that allocate and launch the kernels of the step lengths."""

from torch import Tensor

from ofa_kernels.dtypes import accumulation_dtype
from ofa_kernels.triton import step_lengths as kernels
from ofa_kernels.triton.cached import launch
from ofa_kernels.triton.plan import PLAIN_BLOCK, PLAIN_WARPS, acc, cdiv, dense, dense_like, strided, unit_of


def step_lengths(states: Tensor) -> Tensor:
    """‖Z_t - Z_{t-1}‖ as [T, B] in the accumulation type, for states [T+1, B, D]."""
    n_states, n_rows, n_cols = states.shape
    out = states.new_empty((n_states - 1, n_rows), dtype=accumulation_dtype(states))
    if out.numel():
        states, strides = strided(states, n_states, n_rows)
        launch(
            kernels.step_lengths,
            (out.numel(), 1),
            (states, out),
            (*strides, n_rows, n_cols),
            ACC=acc(states),
            BLOCK_N=PLAIN_BLOCK,
            UNIT=unit_of(n_cols, states),
            num_warps=PLAIN_WARPS,
        )
    return out


def step_lengths_backward(states: Tensor, lengths: Tensor, dlengths: Tensor) -> Tensor:
    """The gradient of ⟨dlengths, `step_lengths`⟩ in the states; zero where a length is."""
    n_states, n_rows, n_cols = states.shape
    out = dense_like(states)
    if out.numel():
        states, strides = strided(states, n_states, n_rows)
        launch(
            kernels.step_lengths_backward,
            (n_rows, cdiv(n_cols, PLAIN_BLOCK)),
            (states, dense(lengths), dense(dlengths), out),
            (*strides, n_states - 1, n_rows, n_cols),
            ACC=acc(states),
            BLOCK_N=PLAIN_BLOCK,
            UNIT=unit_of(n_cols, states),
            num_warps=2 * PLAIN_WARPS,  # with half as many, ptxas of Triton 3.6 spills for sm_100
        )
    return out
