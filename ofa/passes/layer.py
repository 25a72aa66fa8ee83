"""A decoder block on clean rows and tangent rows together: one pass gives states, logits and J_f P ν.

The batch is packed: one row a real token, the prediction tokens first, so padding costs nothing. In every
layer each linear runs once on [clean rows; tangent rows]; the clean prediction token *is* the primal of the
tangents, and what lies between the linears is differentiated by hand.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from transformers.activations import ACT2FN

import ofa_kernels
from ofa.decoder.families import Family, Role
from ofa.decoder.norms import Foreign, RMSNormFunction
from ofa.passes.attention import KeyValues, Tangents, causal, one_query
from ofa.passes.packing import Packing
from ofa_kernels import Seed, accumulation_dtype

SILU = (nn.SiLU, type(ACT2FN["silu"]))


@dataclass(frozen=True)
class Probes:
    """Which probes ride along.

    Attributes:
        layers: the layers whose J_f P is probed.
        n_probes: how many, a layer and example.
        seed: of the probes, or where it is: an int64 tensor of one element, or [B] for a seed an example.
        example_ids: [B], which select them; None for 0 to B-1.
    """

    layers: Collection[int]
    n_probes: int
    seed: Seed
    example_ids: Tensor | None = None


@dataclass(frozen=True)
class Norms:
    """A layer's norms where they stand; what a family lacks is None.

    Attributes:
        p: the one of them whose γ the preconditioner P has.
        of_heads: how to read the norms of queries and keys.
    """

    before_attention: RMSNormFunction | None
    after_attention: RMSNormFunction | None
    before_mlp: RMSNormFunction | None
    after_mlp: RMSNormFunction | None
    p: RMSNormFunction
    of_heads: Callable[[Foreign], RMSNormFunction]

    @classmethod
    def of(cls, family: Family, functions: Sequence[RMSNormFunction]) -> "Norms":
        """What a layer's norms compute, given in the order of their use."""
        norms = dict(zip(family.roles, functions, strict=True))
        at = {family.roles[name]: norm for name, norm in norms.items()}
        return cls(
            at.get(Role.BEFORE_ATTENTION),
            at.get(Role.AFTER_ATTENTION),
            at.get(Role.BEFORE_MLP),
            at.get(Role.AFTER_MLP),
            norms[family.preconditioner],
            family.function_of,
        )


@dataclass(frozen=True)
class Rows:
    """What the rows of a layer are: [B prediction tokens; other tokens; N B tangents].

    Attributes:
        packing: where the tokens stand.
        n_probes: N; 0 without tangents.
        cos: [all rows, 1, head_dim], of the rotary embedding.
        sin: [all rows, 1, head_dim], of the rotary embedding.
    """

    packing: Packing
    n_probes: int
    cos: Tensor
    sin: Tensor

    @property
    def n_clean(self) -> int:
        """Rows that are no tangents."""
        return len(self.packing.positions)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Rows of each kind."""
        n_examples = self.packing.n_examples
        return n_examples, self.n_clean - n_examples, self.n_probes * n_examples

    def own(self, part: Tensor) -> Tensor:
        """The rows of cos or sin at the prediction tokens, and again for their tangents."""
        return part[: self.packing.n_examples].repeat(1 + self.n_probes, 1, 1)

    @classmethod
    def of(cls, packing: Packing, n_probes: int, cos: Tensor, sin: Tensor) -> "Rows":
        """With a rotary embedding (cos, sin) of the clean rows, each [R, 1, head_dim]."""
        n_examples = packing.n_examples
        return cls(
            packing, n_probes, *(torch.cat([t, t[:n_examples].repeat(n_probes, 1, 1)]) for t in (cos, sin))
        )


def _linear(linear: Foreign, rows: Tensor, n_clean: int) -> Tensor:
    """One linear map of [clean; tangent rows]; tangents get no bias."""
    if getattr(linear, "bias", None) is None:
        return linear(rows)
    if type(linear) is nn.Linear:
        out = F.linear(rows, linear.weight)
    else:  # a quantised one, whose weight is no matrix
        out = functional_call(linear, {"bias": torch.zeros_like(linear.bias)}, (rows,))
    return torch.cat([out[:n_clean] + linear.bias, out[n_clean:]])


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [rows, heads, head_dim]; cos and sin [rows, 1, head_dim]."""
    turning, still = x.split((cos.shape[-1], x.shape[-1] - cos.shape[-1]), -1)  # Phi-3 may turn a part only
    first, second = turning.chunk(2, -1)
    turned = turning * cos + torch.cat((-second, first), -1) * sin
    return torch.cat((turned, still), -1) if still.shape[-1] else turned


def _head_norm(norm: RMSNormFunction, x: Tensor, sizes: tuple[int, int, int], n_probes: int) -> Tensor:
    """The norm of x [rows, heads, head_dim] and its tangents: of each head, or in OLMo 2 of all together."""
    of_all = norm.weight.shape[0] != x.shape[-1]
    clean, dots = (x.flatten(1) if of_all else x).split((sizes[0] + sizes[1], sizes[2]))
    normed = norm(clean)
    if n_probes:
        dots = norm.jvp(clean[: sizes[0]], dots.unflatten(0, (n_probes, -1)))
        normed = torch.cat([normed, dots.flatten(0, 1)])
    return normed.reshape(x.shape)


def _with_slope(act_fn: Foreign, x: Tensor) -> tuple[Tensor, Tensor]:
    """An elementwise function and its derivative; that of SiLU is written out: faster than forward AD."""
    if not isinstance(act_fn, SILU):
        return cast(tuple[Tensor, Tensor], torch.func.jvp(act_fn, (x,), (torch.ones_like(x),)))
    rising = x.to(accumulation_dtype(x)).sigmoid()
    activated = x * rising
    return activated.to(x.dtype), (rising + activated * (1 - rising)).to(x.dtype)


def _queries_keys_values(attention: Foreign, rows: Tensor, at: Rows, final: bool) -> list[Tensor]:
    """Each [rows, heads, head_dim]; queries of the clean rows only for the prediction tokens if final."""
    n_examples, dim = at.packing.n_examples, attention.head_dim

    def asking(rows: Tensor) -> Tensor:
        if not final:
            return rows
        own, _, tangents = rows.split(at.sizes)
        return torch.cat([own, tangents])

    if hasattr(attention, "qkv_proj"):
        fused = _linear(attention.qkv_proj, rows, at.n_clean).unflatten(-1, (-1, dim))
        n_kv = attention.config.num_key_value_heads
        q, k, v = fused.split((fused.shape[1] - 2 * n_kv, n_kv, n_kv), 1)
        return [asking(q), k, v]
    q = _linear(attention.q_proj, asking(rows), n_examples if final else at.n_clean)
    k, v = (_linear(linear, rows, at.n_clean) for linear in (attention.k_proj, attention.v_proj))
    return [t.unflatten(-1, (-1, dim)) for t in (q, k, v)]


def _mlp(mlp: Foreign, rows: Tensor, sizes: tuple[int, int, int], n_probes: int) -> Tensor:
    """[prediction tokens; other rows; tangent rows] -> the same."""
    n_clean = sizes[0] + sizes[1]
    if hasattr(mlp, "gate_up_proj"):
        gate, up = _linear(mlp.gate_up_proj, rows, n_clean).chunk(2, -1)
        act_fn = mlp.activation_fn
    else:
        gate, up = (_linear(linear, rows, n_clean) for linear in (mlp.gate_proj, mlp.up_proj))
        act_fn = mlp.act_fn
    if not n_probes:
        return _linear(mlp.down_proj, act_fn(gate) * up, n_clean)
    (gate, gate_rest, gate_dot), (up, up_rest, up_dot) = gate.split(sizes), up.split(sizes)
    activated, slope = _with_slope(act_fn, gate)
    by_probe = (n_probes, sizes[0])
    dot = (slope * up) * gate_dot.unflatten(0, by_probe) + activated * up_dot.unflatten(0, by_probe)
    product = torch.cat([activated * up, act_fn(gate_rest) * up_rest, dot.flatten(0, 1)])
    return _linear(mlp.down_proj, product, n_clean)


def _scaled(rows: Tensor, scale: float) -> Tensor:
    return rows if scale == 1 else scale * rows


def _stack(rows: Tensor, dot: Tensor | None) -> Tensor:
    """Clean rows, followed by tangents [N, B, D] if there are any."""
    return rows if dot is None else torch.cat([rows, dot.flatten(0, 1)])


def _unstack(rows: Tensor, sizes: tuple[int, int, int], n_probes: int) -> tuple[Tensor, Tensor | None]:
    """The inverse of `_stack`."""
    if not n_probes:
        return rows, None
    clean, dot = rows.split((sizes[0] + sizes[1], sizes[2]))
    return clean, dot.unflatten(0, (n_probes, sizes[0]))


def _normed(norm: RMSNormFunction | None, rows: Tensor, dot: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The norm of clean rows and of the tangents [N, B, D] of the first B, where there is a norm."""
    if norm is None:
        return rows, dot
    return norm(rows), None if dot is None else norm.jvp(rows[: dot.shape[1]], dot)


@dataclass(frozen=True)
class Layer:
    """One decoder layer of Llama's kind.

    Attributes:
        module: the layer of transformers.
        norms: its norms.
        cap: of the attention scores; None for none.
        index: the layer's number, which selects its probes.
    """

    module: Foreign
    norms: Norms
    cap: float | None
    index: int

    def __call__(
        self, x: Tensor, at: Rows, probes: Probes | None, final: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Run the layer.

        Args:
            x: [R, D], the packed rows.
            at: what the rows are.
            probes: whose directions ride along; None for none.
            final: nothing but the prediction tokens' output is needed.

        Returns:
            The output rows ([B, D] if final) and νᵀ J_f P ν [n_probes, B], None without probes.
        """
        norms, n_examples = self.norms, at.packing.n_examples
        scale = getattr(self.module, "residual_multiplier", 1)  # Granite has one
        own, direction = x[:n_examples], None
        if probes is not None:
            direction = ofa_kernels.preconditioned_probes(
                own, norms.p.weight, norms.p.eps, probes.seed, probes.n_probes, norms.p.offset,
                example_ids=probes.example_ids, layer=self.index, weight_index=norms.p.index_of(own),
            )  # fmt: skip
        rows, dot = _normed(norms.before_attention, x, direction)
        attended = _scaled(self._attention(_stack(rows, dot), at, final), scale)
        sizes = (n_examples, 0, at.sizes[2]) if final else at.sizes
        attended, attended_dot = _normed(norms.after_attention, *_unstack(attended, sizes, at.n_probes))
        x = own if final else x
        if norms.before_mlp is None:
            rows = middle = attended + x
        else:
            rows, middle = norms.before_mlp.of_sum(attended, x)
        if direction is not None:
            assert attended_dot is not None  # tangents that go in come out
            dot = direction + attended_dot
            if norms.before_mlp is not None:
                dot = norms.before_mlp.jvp(middle[:n_examples], dot)
        out = _scaled(_mlp(self.module.mlp, _stack(rows, dot), sizes, at.n_probes), scale)
        out, out_dot = _normed(norms.after_mlp, *_unstack(out, sizes, at.n_probes))
        products = None
        if probes is not None:
            assert attended_dot is not None and out_dot is not None
            products = ofa_kernels.probe_dot(
                attended_dot + out_dot, probes.seed, probes.example_ids, self.index
            )
        return middle + out, products

    def _attention(self, rows: Tensor, at: Rows, final: bool) -> Tensor:
        """[clean; tangent rows] -> the same; if final, only the prediction tokens of the clean rows."""
        attention, packing = self.module.self_attn, at.packing
        n_queries, cos, sin = at.n_clean, at.cos, at.sin
        if final:
            n_queries, cos, sin = packing.n_examples, at.own(cos), at.own(sin)
        q, k, v = _queries_keys_values(attention, rows, at, final)
        if hasattr(attention, "q_norm"):
            own, others, tangents = at.sizes
            sizes = own, 0 if final else others, tangents
            q = _head_norm(self.norms.of_heads(attention.q_norm), q, sizes, at.n_probes)
            k = _head_norm(self.norms.of_heads(attention.k_norm), k, at.sizes, at.n_probes)
        if getattr(attention, "use_rope", True):  # SmolLM 3 leaves it out in some layers
            q, k = _rotate(q, cos, sin), _rotate(k, at.cos, at.sin)
        keys, _, k_dot = packing.unpack(k)
        values, _, v_dot = packing.unpack(v)
        memory = KeyValues(keys, values)
        if final:
            padded, (q_own, q_dot) = None, q.split((n_queries, len(q) - n_queries))
        else:
            padded, q_own, q_dot = packing.unpack(q)
        dots = out_dot = None
        if at.n_probes:
            by_probe = (at.n_probes, packing.n_examples)
            dots = Tangents(*(t.unflatten(0, by_probe) for t in (q_dot, k_dot, v_dot)))
        out = None
        if final or dots is not None:
            out, out_dot = one_query(q_own, memory, packing.seen, attention.scaling, dots, self.cap)
        out_dot = q_dot if out_dot is None else out_dot.flatten(0, 1)  # no rows where there are no tangents
        if padded is None:
            assert out is not None  # a final layer attends with the prediction tokens alone
            mixed = torch.cat([out, out_dot])
        else:
            mixed = packing.pack(causal(padded, memory, attention.scaling, self.cap), out_dot)
        return _linear(attention.o_proj, mixed.flatten(1), n_queries)
