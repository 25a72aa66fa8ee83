"""The calls of the C interface of `csrc`: each hands torch's tensors to one function of a library.

The kernels for the CPU and for CUDA are called alike; a subclass of `Calls` says how a library is reached and
what it has to know besides the operator's own struct.
"""

from typing import overload

import torch
from torch import Tensor

from ofa_kernels.dtypes import accumulation_dtype
from ofa_kernels.reference import Seed
from ofa_kernels.structs import DTYPES


def _rows(x: Tensor, n_cols: int) -> tuple[Tensor, int, int]:
    """[..., N] in memory as rows with unit column stride: a tensor, where it starts, from row to row."""
    if x.is_contiguous():
        return x, x.data_ptr(), n_cols
    if x.dim() != 2:
        x = x.reshape(-1, n_cols)
    if x.stride(1) != 1 and n_cols != 1:
        x = x.contiguous()
    return x, x.data_ptr(), x.stride(0)


def _stacked(t: Tensor | None, n_rows: int, n_cols: int) -> tuple[Tensor | None, int, int, int]:
    """Tangents [*K, *x.shape] as [K, rows, N] likewise; then from tangent to tangent, from row to row."""
    if t is None:
        return None, 0, 0, 0
    if t.is_contiguous():
        return t, t.data_ptr(), n_rows * n_cols, n_cols
    t = t.reshape(-1, n_rows, n_cols)
    if t.stride(2) != 1 and n_cols != 1:
        t = t.contiguous()
    return t, t.data_ptr(), t.stride(0), t.stride(1)


def _leading(x: Tensor, x_like: Tensor | None, weight: Tensor, weight_dot: Tensor | None) -> torch.Size:
    """The tangents' dimensions *K."""
    if x_like is not None:
        return x_like.shape[: x_like.dim() - x.dim()]
    assert weight_dot is not None  # a call has a tangent of one of the two
    return weight_dot.shape[: weight_dot.dim() - weight.dim()]


def _pointer(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


@overload
def _contiguous(t: Tensor) -> Tensor: ...


@overload
def _contiguous(t: None) -> None: ...


def _contiguous(t: Tensor | None) -> Tensor | None:
    """Tensor.contiguous() takes ten times as long as the question."""
    return t if t is None or t.is_contiguous() else t.contiguous()


def _like(t: Tensor) -> Tensor:
    """Contiguous memory for a result of t's shape and type."""
    if t.is_contiguous():
        return torch.empty_like(t)
    return torch.empty_like(t, memory_format=torch.contiguous_format)


class Calls:
    """Every operator as a function of tensors on the library's device.

    All tensors of a call are memory on one device, of types that there are kernels for; outputs are fresh.
    With an index [rows], int64, a weight is [A, N] instead of [N], its tangents [*K, A, N] instead of [*K, N]
    and so are their gradients: row r has weight index[r], and a weight without rows a gradient of zeros.
    A seed may be a tensor [rows], int64: one for each row.
    """

    def threads(self) -> int:
        """How many threads of the host a call may use."""
        raise NotImplementedError

    def bits(self, seed: Seed) -> tuple[int, int]:
        """The seed's 64 bits, and the address of where it is in the device's memory, else 0."""
        raise NotImplementedError

    def run(
        self,
        operator: str,
        like: Tensor,
        members: tuple,
        seed_pointer: int = 0,
        index: Tensor | None = None,
    ) -> None:
        """Call an operator on the device of a tensor.

        Args:
            operator: Its name in `structs.STRUCTS`.
            like: A tensor of the call.
            members: The values of the struct's members.
            seed_pointer: As `bits` says.
            index: Which weight each row has, as the members have it by its address; or None.

        Raises:
            MemoryError: there is no scratch memory.
            IndexError: there is no weight of a number that the index has.
        """
        raise NotImplementedError

    def _weights(self, n_rows: int, n_cols: int, weight: Tensor, index: Tensor | None) -> int:
        """How many weights there are; hooks on saved tensors may have changed one of the two."""
        if index is None:
            if weight.numel() != n_cols:
                raise ValueError(f"weight must be [N], got {tuple(weight.shape)} for rows of {n_cols}")
            return 1
        if weight.shape[1:] != (n_cols,) or index.numel() != n_rows or index.dtype != torch.int64:
            raise ValueError(
                f"weight and index must be [A, N] and int64 [rows], got {tuple(weight.shape)} and "
                f"{tuple(index.shape)} in {index.dtype} for {n_rows} rows of {n_cols}"
            )
        return weight.shape[0]

    def _head(
        self, x: Tensor, weight: Tensor, n_cols: int, index: Tensor | None
    ) -> tuple[int, int, int, int, int, int]:
        n_rows = x.numel() // n_cols
        one = index is None and weight.numel() == n_cols  # without a call, which takes as long as two members
        weights = 1 if one else self._weights(n_rows, n_cols, weight, index)
        return DTYPES[x.dtype], DTYPES[weight.dtype], self.threads(), n_rows, n_cols, weights

    def _seeds(self, seed: Seed, n_rows: int) -> tuple[int, int, Tensor | None]:
        """The only seed's bits and address, as `bits` says, and the seeds [rows] where each row has one."""
        if isinstance(seed, int) or seed.numel() == 1:
            return *self.bits(seed), None
        if seed.numel() != n_rows:
            raise ValueError(f"seed must be one or one a row, got {tuple(seed.shape)} for {n_rows} rows")
        return 0, 0, _contiguous(seed)

    def rms_norm_forward(
        self,
        x: Tensor,
        weight: Tensor,
        eps: float,
        offset: float,
        rounding: str,
        rstd: Tensor | None = None,
        index: Tensor | None = None,
    ) -> Tensor:
        """y of x's shape, contiguous; 1 / sqrt(mean(x²) + eps) is left in rstd [rows], where given."""
        n_cols = x.shape[-1]
        _held, at, stride = _rows(x, n_cols)
        weight, index, y = _contiguous(weight), _contiguous(index), _like(x)
        head = *self._head(x, weight, n_cols, index), rounding == "hf" and offset == 0, eps, offset
        inputs = at, stride, 0, 0, weight.data_ptr(), _pointer(index)
        self.run("norm_forward", y, (*head, *inputs, y.data_ptr(), 0, _pointer(rstd)), index=index)
        return y

    def add_rms_norm_forward(
        self,
        x: Tensor,
        residual: Tensor,
        weight: Tensor,
        eps: float,
        offset: float,
        rounding: str,
        rstd: Tensor | None = None,
        index: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(y, s) with s = x + residual, both of x's shape and contiguous, in one pass; rstd is of s."""
        n_cols = x.shape[-1]
        rows, added, weight = _rows(x, n_cols), _rows(residual, n_cols), _contiguous(weight)
        index, y, s = _contiguous(index), _like(x), _like(x)
        round_x_hat = rounding == "hf" and offset == 0
        head = *self._head(x, weight, n_cols, index), round_x_hat, eps, offset
        inputs = rows[1], rows[2], added[1], added[2], weight.data_ptr(), _pointer(index)
        outputs = y.data_ptr(), s.data_ptr(), _pointer(rstd)
        self.run("norm_forward", y, (*head, *inputs, *outputs), index=index)
        return y, s

    def rms_norm_backward(
        self,
        x: Tensor,
        weight: Tensor,
        dy: Tensor,
        ds: Tensor | None,
        eps: float,
        offset: float,
        need_dx: bool,
        need_dw: bool,
        rstd: Tensor | None = None,
        index: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """dx (plus ds, where given) of x's shape and dw [N], each where needed; dy is read only.

        rstd [rows] is what the forward has left for the same x.
        """
        n_cols = x.shape[-1]
        rows, up, weight = _rows(x, n_cols), _rows(dy, n_cols), _contiguous(weight)
        index = _contiguous(index)
        added = (None, 0, 0) if ds is None else _rows(ds, n_cols)
        dx = _like(x) if need_dx else None
        dw = torch.empty_like(weight) if need_dw else None
        head = *self._head(x, weight, n_cols, index), eps, offset
        inputs = rows[1], rows[2], weight.data_ptr(), _pointer(index), up[1], up[2], added[1], added[2]
        outputs = _pointer(dx), _pointer(dw), _pointer(rstd)
        self.run("norm_backward", x, (*head, *inputs, *outputs), index=index)
        return dx, dw

    def rms_norm_jvp(
        self,
        x: Tensor,
        weight: Tensor,
        x_dot: Tensor | None,
        weight_dot: Tensor | None,
        eps: float,
        offset: float,
        index: Tensor | None = None,
    ) -> Tensor:
        """ẏ [*K, *x.shape] of K tangents that share one primal."""
        leading, n_cols = _leading(x, x_dot, weight, weight_dot), x.shape[-1]
        rows, weight = _rows(x, n_cols), _contiguous(weight)
        weight_dot, index = _contiguous(weight_dot), _contiguous(index)
        head = self._head(x, weight, n_cols, index)
        direction = _stacked(x_dot, *head[3:5])
        y_dot = x.new_empty(leading + x.shape) if x_dot is None else _like(x_dot)
        inputs = rows[1], rows[2], weight.data_ptr(), _pointer(index), *direction[1:], _pointer(weight_dot)
        members = *head, leading.numel(), eps, offset, *inputs, y_dot.data_ptr()
        self.run("norm_jvp", x, members, index=index)
        return y_dot

    def rms_norm_backward_tangent(
        self,
        x: Tensor,
        weight: Tensor,
        dy: Tensor,
        x_dot: Tensor | None,
        weight_dot: Tensor | None,
        dy_dot: Tensor | None,
        eps: float,
        offset: float,
        need_dw: bool,
        index: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Tangents (dẋ [*K, *x.shape], dẇ [*K, N]) of `rms_norm_backward`, K of them sharing one primal."""
        leading = _leading(x, dy_dot if x_dot is None else x_dot, weight, weight_dot)
        n_cols = x.shape[-1]
        rows, up, weight = _rows(x, n_cols), _rows(dy, n_cols), _contiguous(weight)
        weight_dot, index = _contiguous(weight_dot), _contiguous(index)
        head = self._head(x, weight, n_cols, index)
        direction, up_change = _stacked(x_dot, *head[3:5]), _stacked(dy_dot, *head[3:5])
        like = dy_dot if x_dot is None else x_dot
        dx_dot = x.new_empty(leading + x.shape) if like is None else _like(like)
        dw_dot = weight.new_empty(leading + weight.shape) if need_dw else None
        inputs = rows[1], rows[2], weight.data_ptr(), _pointer(index), up[1], up[2]
        inputs += *direction[1:], _pointer(weight_dot), *up_change[1:]
        members = *head, leading.numel(), eps, offset, *inputs, dx_dot.data_ptr(), _pointer(dw_dot)
        self.run("norm_backward_tangent", x, members, index=index)
        return dx_dot, dw_dot

    def rms_norm_jvp_backward(
        self,
        x: Tensor,
        weight: Tensor,
        dy: Tensor,
        x_dot: Tensor | None,
        weight_dot: Tensor | None,
        eps: float,
        offset: float,
        need_dw: bool,
        need_dw_dot: bool,
        index: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """Gradients (dx, dw, dẋ, dẇ) of ⟨dy, `rms_norm_jvp`⟩; dx and dw are summed over K."""
        leading, n_cols = _leading(x, dy, weight, None), x.shape[-1]
        rows, weight = _rows(x, n_cols), _contiguous(weight)
        weight_dot, index = _contiguous(weight_dot), _contiguous(index)
        head = self._head(x, weight, n_cols, index)
        direction, up = _stacked(x_dot, *head[3:5]), _stacked(dy, *head[3:5])
        dx, dx_dot = _like(x), _like(dy)
        dw = torch.empty_like(weight) if need_dw else None
        dw_dot = weight.new_empty(leading + weight.shape) if need_dw_dot else None
        inputs = rows[1], rows[2], weight.data_ptr(), _pointer(index), *up[1:], *direction[1:]
        outputs = dx.data_ptr(), _pointer(dw), dx_dot.data_ptr(), _pointer(dw_dot)
        members = *head, leading.numel(), eps, offset, *inputs, _pointer(weight_dot), *outputs
        self.run("norm_jvp_backward", x, members, index=index)
        return dx, dw, dx_dot, dw_dot

    def rademacher(
        self,
        n_cols: int,
        example_ids: Tensor,
        n_probes: int,
        layers: Tensor,
        seed: Seed,
        dtype: torch.dtype,
    ) -> Tensor:
        """±1 as [layers, n_probes, examples, n_cols]."""
        layers, example_ids = _contiguous(layers), _contiguous(example_ids)
        sizes = layers.numel(), n_probes, example_ids.numel(), n_cols
        out = example_ids.new_empty(sizes, dtype=dtype)
        number, seed_pointer = self.bits(seed)
        pointers = layers.data_ptr(), example_ids.data_ptr(), out.data_ptr()
        members = DTYPES[dtype], self.threads(), *sizes, number, *pointers
        if out.numel():  # rows of no columns are no kernel's
            self.run("rademacher", out, members, seed_pointer)
        return out

    def preconditioned_probes(
        self,
        z: Tensor,
        weight: Tensor,
        eps: float,
        offset: float,
        seed: Seed,
        n_probes: int,
        example_ids: Tensor,
        layer: int,
        index: Tensor | None = None,
    ) -> Tensor:
        """(weight + offset) r ν as [n_probes, rows, D], for z [rows, D]."""
        n_rows, n_cols = z.shape
        rows, weight, example_ids = _rows(z, n_cols), _contiguous(weight), _contiguous(example_ids)
        index, out = _contiguous(index), z.new_empty((n_probes, n_rows, n_cols))
        number, seed_pointer, seeds = self._seeds(seed, n_rows)
        sizes = DTYPES[z.dtype], DTYPES[weight.dtype], self.threads(), n_probes, n_rows, n_cols
        head = *sizes, self._weights(n_rows, n_cols, weight, index), number, layer, eps, offset
        inputs = _pointer(seeds), example_ids.data_ptr(), rows[1], rows[2], weight.data_ptr(), _pointer(index)
        self.run("preconditioned_probes", z, (*head, *inputs, out.data_ptr()), seed_pointer, index)
        return out

    def preconditioned_probes_backward(
        self,
        z: Tensor,
        weight: Tensor,
        dp: Tensor,
        eps: float,
        offset: float,
        seed: Seed,
        example_ids: Tensor,
        layer: int,
        index: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Gradients (dz, dw) of ⟨dp, `preconditioned_probes`⟩, dp [n_probes, rows, D]."""
        n_probes, n_rows, n_cols = dp.shape
        rows, weight, example_ids = _rows(z, n_cols), _contiguous(weight), _contiguous(example_ids)
        up, index = _stacked(dp, n_rows, n_cols), _contiguous(index)
        dz, dw = _like(z), torch.empty_like(weight)
        number, seed_pointer, seeds = self._seeds(seed, n_rows)
        sizes = DTYPES[z.dtype], DTYPES[weight.dtype], self.threads(), n_probes, n_rows, n_cols
        head = *sizes, self._weights(n_rows, n_cols, weight, index), number, layer, eps, offset
        inputs = _pointer(seeds), example_ids.data_ptr(), rows[1], rows[2], weight.data_ptr(), _pointer(index)
        members = *head, *inputs, *up[1:], dz.data_ptr(), dw.data_ptr()
        self.run("preconditioned_probes_backward", z, members, seed_pointer, index)
        return dz, dw

    def probe_dot(self, t: Tensor, seed: Seed, example_ids: Tensor, layer: int) -> Tensor:
        """Σ_columns ν t as [n_probes, rows] in the accumulation type, for t [n_probes, rows, D]."""
        example_ids = _contiguous(example_ids)
        n_probes, n_rows, n_cols = t.shape
        stacked = _stacked(t, n_rows, n_cols)
        dots = t.new_empty((n_probes, n_rows), dtype=accumulation_dtype(t))
        number, seed_pointer, seeds = self._seeds(seed, n_rows)
        sizes = DTYPES[t.dtype], self.threads(), n_probes, n_rows, n_cols
        inputs = _pointer(seeds), example_ids.data_ptr(), *stacked[1:]
        self.run("probe_dot", t, (*sizes, number, layer, *inputs, dots.data_ptr()), seed_pointer)
        return dots

    def probe_scale(
        self, scale: Tensor, n_cols: int, seed: Seed, example_ids: Tensor, layer: int, dtype: torch.dtype
    ) -> Tensor:
        """Scale ν as [n_probes, rows, n_cols]: the transpose of `probe_dot`."""
        n_probes, n_rows = scale.shape
        out = scale.new_empty((n_probes, n_rows, n_cols), dtype=dtype)
        scale, example_ids = _contiguous(scale.to(accumulation_dtype(out))), _contiguous(example_ids)
        number, seed_pointer, seeds = self._seeds(seed, n_rows)
        sizes = DTYPES[dtype], self.threads(), n_probes, n_rows, n_cols
        pointers = _pointer(seeds), example_ids.data_ptr(), scale.data_ptr(), out.data_ptr()
        self.run("probe_scale", out, (*sizes, number, layer, *pointers), seed_pointer)
        return out

    def step_lengths(self, states: Tensor) -> Tensor:
        """‖Z_t - Z_{t-1}‖ as [T, B] in the accumulation type."""
        n_states, examples, columns = states.shape
        stacked = _stacked(states, examples, columns)
        lengths = states.new_empty((n_states - 1, examples), dtype=accumulation_dtype(states))
        sizes = DTYPES[states.dtype], self.threads(), n_states - 1, examples, columns
        self.run("step_lengths", states, (*sizes, *stacked[1:], lengths.data_ptr()))
        return lengths

    def step_lengths_backward(self, states: Tensor, lengths: Tensor, dlengths: Tensor) -> Tensor:
        """Gradient of ⟨dlengths, `step_lengths`⟩ in the states, in one pass."""
        n_states, examples, columns = states.shape
        stacked = _stacked(states, examples, columns)
        lengths, dlengths, dstates = _contiguous(lengths), _contiguous(dlengths), _like(states)
        sizes = DTYPES[states.dtype], self.threads(), n_states - 1, examples, columns
        pointers = lengths.data_ptr(), dlengths.data_ptr(), dstates.data_ptr()
        self.run("step_lengths_backward", states, (*sizes, *stacked[1:], *pointers))
        return dstates
