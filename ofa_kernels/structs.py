"""How the C interface of `csrc/include/ofa.h` is packed: each operator's struct, and the numbers of types.

The libraries for the CPU and for CUDA take the same structs.
"""

import struct
from collections.abc import Callable

import torch

DTYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}

# the members of each struct of csrc/include/ofa.h, all of 8 bytes, in their order
STRUCTS = {
    "norm_forward": (
        "dtype weight_dtype threads rows columns weights round_x_hat eps offset x x_stride residual "
        "residual_stride weight weight_index y s rstd"
    ),
    "norm_backward": (
        "dtype weight_dtype threads rows columns weights eps offset x x_stride weight weight_index dy "
        "dy_stride ds ds_stride dx dw rstd"
    ),
    "norm_jvp": (
        "dtype weight_dtype threads rows columns weights tangents eps offset x x_stride weight weight_index "
        "x_dot x_dot_k x_dot_stride weight_dot y_dot"
    ),
    "norm_backward_tangent": (
        "dtype weight_dtype threads rows columns weights tangents eps offset x x_stride weight weight_index "
        "dy dy_stride x_dot x_dot_k x_dot_stride weight_dot dy_dot dy_dot_k dy_dot_stride dx_dot dw_dot"
    ),
    "norm_jvp_backward": (
        "dtype weight_dtype threads rows columns weights tangents eps offset x x_stride weight weight_index "
        "dy dy_k dy_stride x_dot x_dot_k x_dot_stride weight_dot dx dw dx_dot dw_dot"
    ),
    "rademacher": "dtype threads layers probes examples columns seed layer_ids example_ids signs",
    "preconditioned_probes": (
        "dtype weight_dtype threads probes rows columns weights seed layer eps offset seeds example_ids z "
        "z_stride weight weight_index out"
    ),
    "preconditioned_probes_backward": (
        "dtype weight_dtype threads probes rows columns weights seed layer eps offset seeds example_ids z "
        "z_stride weight weight_index dp dp_k dp_stride dz dw"
    ),
    "probe_dot": "dtype threads probes rows columns seed layer seeds example_ids t t_k t_stride dots",
    "probe_scale": "dtype threads probes rows columns seed layer seeds example_ids scale out",
    "step_lengths": "dtype threads steps examples columns states states_t states_b lengths",
    "step_lengths_backward": (
        "dtype threads steps examples columns states states_t states_b lengths dlengths dstates"
    ),
}
# their types as `struct` has them; every other member is an integer or a pointer, q
TYPES = {"eps": "d", "offset": "d", "seed": "Q"}


def struct_format(members: str) -> str:
    """The native layout of a struct with these members, as `struct` writes it: @, then a letter each."""
    return "@" + "".join(TYPES.get(member, "q") for member in members.split())


def packer(members: str) -> Callable[..., bytes]:
    """What makes a struct's bytes of its members' values."""
    return struct.Struct(struct_format(members)).pack
