"""The tensors of a call: inputs of any layout in memory that is NaN around them."""

import zlib

import torch

from ofa_kernels.dtypes import accumulation_dtype
from tests.ofa_kernels.cuda_emulated.cases import LAYOUTS

VECTOR_BYTES = 16
MARGIN = 64  # elements before and after


def aligned_length(columns, dtype):
    """Columns and some more, such that rows so far apart begin on vectors alike."""
    lanes = VECTOR_BYTES // dtype.itemsize
    return (columns + lanes - 1) // lanes * lanes + 2 * lanes


def in_layout(values, layout):
    """[*K, rows, columns] as a view of a buffer of NaNs: `values` with strides of that layout."""
    *leading, columns = values.shape
    rows, of_k = leading[-1], leading[0] if leading[1:] else 1
    dtype = values.dtype
    if layout == "contiguous":
        offset, stride, k_stride = 0, columns, rows * columns
    elif layout == "wider":  # rows begin on vectors
        stride = aligned_length(columns, dtype)
        offset, k_stride = VECTOR_BYTES // dtype.itemsize, rows * stride
    elif layout == "shifted":  # no row does
        stride = aligned_length(columns, dtype)
        offset, k_stride = 1, rows * stride
    elif layout == "tangents inside":  # some do
        k_stride = columns + 1 + columns % 2
        offset, stride = 0, of_k * k_stride
    else:
        assert layout == "rows alike", layout
        offset, stride, k_stride = 0, 0, aligned_length(columns, dtype)
        values = values[..., :1, :]
    size = 1 + (of_k - 1) * k_stride + max(rows - 1, 0) * stride + columns
    buffer = torch.full((size + 2 * MARGIN,), torch.nan, dtype=dtype)
    strides = (*(k_stride for _ in leading[1:]), stride, 1)
    view = buffer.as_strided((*leading, columns), strides, MARGIN + offset)
    view[..., : values.shape[-2], :].copy_(values)
    return view


class Operands:
    """Draws a case's inputs, the same each time, and knows afterwards whether one was written to."""

    def __init__(self, case):
        self.case = case
        self.accumulator = accumulation_dtype(torch.empty(0, dtype=case.dtype))
        self.generator = torch.Generator().manual_seed(zlib.crc32(str(case).encode()))
        self.before = {}

    def _values(self, name, shape, dtype):
        values = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        large, factor = self.case.magnitude
        if name == large:
            values *= factor
        elif name == "x" and not large:
            values *= torch.logspace(-2, 2, shape[-2], dtype=torch.float64)[:, None]  # rows of every size
        return values.to(dtype)

    def _keep(self, name, t):
        whole = torch.empty(0, dtype=t.dtype).set_(t.untyped_storage())
        self.before[name] = whole, whole.clone()
        return t

    def rows(self, name, *shape):
        """[*K, rows, columns] of the case's type and layout, or None where it is absent."""
        layout = self.case.layout
        if layout == "mixed":
            layout = LAYOUTS[len(self.before) % 4]
        if name in self.case.absent:
            return None
        return self._keep(name, in_layout(self._values(name, shape, self.case.dtype), layout))

    def flat(self, name, shape, dtype, through=torch.float64):
        """A contiguous one, or None where it is absent; not on a vector where the rows aren't."""
        if name in self.case.absent:
            return None
        shift = self.case.layout in ("shifted", "mixed")
        values = self._values(name, shape, through).to(dtype)
        buffer = torch.full((values.numel() + 2 * MARGIN + shift,), torch.nan, dtype=dtype)
        t = buffer[MARGIN + shift : MARGIN + shift + values.numel()].view(shape)
        return self._keep(name, t.copy_(values))

    def weight(self, name, *shape):
        """Of the digits that rows are computed with: where an offset cancels, more of them would count."""
        return self.flat(name, shape, self.case.weight_dtype, through=self.accumulator)

    def given(self, name, t):
        """A tensor of the caller's."""
        return self._keep(name, t)

    def check_unwritten(self):
        for name, (now, before) in self.before.items():
            assert torch.equal(now.view(torch.uint8), before.view(torch.uint8)), f"a write to {name}"
