"""The bytes that each operator can't avoid moving: every input read once, every result written once.

One definition for the tables and the roofline. K counts tangents or probes that share a primal (states, for
the step lengths); it is 1 for the rest. Example ids are left out: 8 bytes a row.
"""

from dataclasses import dataclass

import torch

FLOAT32 = torch.float32.itemsize


@dataclass(frozen=True)
class Traffic:
    """Tensors of each size that are read or written, as (constant, times K).

    Attributes:
        rows: of x's size and type, [rows, columns].
        weights: of γ's size and type, [columns].
        sums: of one float32 number a row, [rows].
    """

    rows: tuple[int, int]
    weights: tuple[int, int] = (0, 0)
    sums: tuple[int, int] = (0, 0)

    def bytes(self, rows: int, columns: int, dtype: torch.dtype, k: int = 1) -> int:
        """All of them at one size, with γ in float32."""

        def count(part: tuple[int, int]) -> int:
            return part[0] + part[1] * k

        return (
            count(self.rows) * rows * columns * dtype.itemsize
            + count(self.weights) * columns * FLOAT32
            + count(self.sums) * rows * FLOAT32
        )

    def __str__(self) -> str:
        """The row passes: `2 + 3K`."""
        constant, times_k = self.rows
        terms = [str(constant)] * bool(constant) + [f"{times_k}K" if times_k > 1 else "K"] * bool(times_k)
        return " + ".join(terms)


# named as the functions of `ofa_kernels.native` and `ofa_kernels.triton.launch`
KERNELS = {
    "rms_norm_forward": Traffic((2, 0), (1, 0)),  # x | y
    "add_rms_norm_forward": Traffic((4, 0), (1, 0)),  # x, residual | s, y
    "rms_norm_backward": Traffic((3, 0), (2, 0)),  # x, dy | dx, dw
    "rms_norm_jvp": Traffic((1, 2), (1, 1)),  # x, ẋ, ẇ | ẏ
    "rms_norm_backward_tangent": Traffic((2, 3), (1, 2)),  # x, dy, ẋ, ẇ, dẏ | dẋ, dẇ
    "rms_norm_jvp_backward": Traffic((2, 3), (2, 2)),  # x, dy, ẋ, ẇ | dx, dw, dẋ, dẇ
    "rademacher": Traffic((0, 1)),
    "preconditioned_probes": Traffic((1, 1), (1, 0)),  # z | p
    "preconditioned_probes_backward": Traffic((2, 1), (2, 0)),  # z, dp | dz, dw
    "probe_dot": Traffic((0, 1), sums=(0, 1)),
    "probe_scale": Traffic((0, 1), sums=(0, 1)),
    "step_lengths": Traffic((0, 1), sums=(-1, 1)),  # K states make K - 1 steps
    "step_lengths_backward": Traffic((0, 2), sums=(-2, 2)),
}

# what a caller asks for in one go
OPERATORS = {
    "forward": KERNELS["rms_norm_forward"],
    "backward": KERNELS["rms_norm_backward"],
    "forward + backward": Traffic((5, 0), (3, 0)),
    "add + norm": KERNELS["add_rms_norm_forward"],
    "add + norm, forward + backward": Traffic((8, 0), (3, 0)),  # backward: s, dy, ds | dx (both inputs'), dw
    "JVP": Traffic((4, 0), (1, 0)),  # x, ẋ | y, ẏ
    "JVP, forward + backward": Traffic((3, 5), (3, 0)),  # K of ẏ, then the gradients of x, w, ẋ
    "double backward": Traffic((9, 0), (4, 0)),  # forward 2, backward 3, then x, dy, u | dx, dw
    "tangent-backward": Traffic((2, 2), (1, 2)),  # dy fixed: x, dy, ẋ, ẇ | dẋ, dẇ
    "tangent-backward with dẏ": KERNELS["rms_norm_backward_tangent"],
    "rademacher": KERNELS["rademacher"],
    "preconditioned probes": KERNELS["preconditioned_probes"],
    "preconditioned probes, forward + backward": Traffic((3, 2), (3, 0)),
    "probe dot": KERNELS["probe_dot"],
    "probe dot, forward + backward": Traffic((0, 2), sums=(0, 2)),
    "step ratio, forward + backward": Traffic((0, 3), sums=(-3, 3)),
}
