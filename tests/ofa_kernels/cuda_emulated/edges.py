"""Checks of what a bound on errors does not tell: where values are rounded, and r to the last unit."""

import math

import torch

from ofa_kernels.dtypes import accumulation_dtype
from ofa_kernels.structs import DTYPES
from tests.ofa_kernels.bounds import EPS
from tests.ofa_kernels.cuda_emulated.driver import OK, Device, Memory, call_of
from tests.ofa_kernels.cuda_emulated.norms import check_rstd

DEVICE = Device(64, cluster=8)


def forward(library, x, weight, offset=0.0, round_x_hat=False):
    """(y, rstd) of contiguous tensors."""
    library.configure(DEVICE, 1)
    y = Memory(x.shape, x.dtype).tensor
    rstd = Memory(x.shape[:1], accumulation_dtype(x)).tensor
    sizes = {"dtype": DTYPES[x.dtype], "weight_dtype": DTYPES[weight.dtype], "threads": 1, "rows": x.shape[0]}
    sizes |= {
        "columns": x.shape[1],
        "weights": 1,
        "round_x_hat": int(round_x_hat),
        "eps": EPS,
        "offset": offset,
    }
    tensors = {"x": x, "residual": None, "weight": weight, "weight_index": None}
    tensors |= {"y": y, "s": None, "rstd": rstd}
    assert library.run("norm_forward", call_of("norm_forward", sizes, tensors)) == OK
    return y, rstd


def check_rounding(library, dtype, weight_dtype):
    """x̂ and y are rounded where transformers rounds them, and nowhere else."""
    # sums of a few small integers are exact in any order, so the root is known to the bit
    x, weight = torch.randint(-9, 10, (64, 256)).to(dtype), torch.randn(256).to(weight_dtype)
    acc = accumulation_dtype(x)
    means = x.double().pow(2).sum(1, keepdim=True) / 256 + EPS
    r = means.apply_(lambda mean: 1 / math.sqrt(mean)).to(acc)  # torch's own may be off by a bit
    x_hat = x.to(acc) * r
    for offset in (0.0, 1.0):
        for round_x_hat in (False, True):
            normed = x_hat.to(dtype).to(acc) if round_x_hat else x_hat
            expected = ((weight.to(acc) + offset) * normed).to(dtype)
            y, rstd = forward(library, x, weight, offset, round_x_hat)
            assert torch.equal(rstd, r[:, 0])
            assert torch.equal(y, expected), (offset, round_x_hat)


ROWS = {
    "normal": lambda x: x,
    "one element dominates": lambda x: x.index_fill(1, torch.tensor([x.shape[1] // 2]), 1000.0),
    "two equal elements dominate": lambda x: x.index_fill(
        1, torch.tensor([x.shape[1] // 3, x.shape[1] // 2]), 3000.0
    ),
    "ascending": lambda x: (x * torch.randn(x.shape).mul(3).exp()).abs().sort(1).values,
    "descending": lambda x: (x * torch.randn(x.shape).mul(3).exp()).abs().sort(1, descending=True).values,
    # beside the 1 each square alone is lost in a chain of float32
    "squares of half a unit": lambda x: torch.full(x.shape, 2**-12.5) * (1 - 0.3 * torch.rand(len(x), 1)),
    "equal": lambda x: (0.5 + torch.rand(len(x), 1)).expand(x.shape),
    "huge": lambda x: x * 1e30,
    "tiny": lambda x: x * 1e-30,
    "zero": lambda x: x * 0,
}


def check_root(library, dtype, rows):
    """R is right to one unit in its last place."""
    for size in (1, 2, 33, 576, 4096):
        x = ROWS[rows](torch.randn(6, size)).to(dtype, copy=True)
        _, rstd = forward(library, x, torch.ones(size))
        assert not rstd.isnan().any()
        check_rstd(rstd, x)
