"""H_t = -tr(J_f P) by token-local probes: stacked on the clean pass, or through any layer by `vmap(jvp)`."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

import ofa_kernels
from ofa.decoder.quantised import check_derivatives
from ofa.decoder.view import Decoder, without_autocast
from ofa.passes.fast import stacked_pass, why_not_stacked
from ofa.passes.hf_attention import ONE_QUERY
from ofa.passes.layer import Probes
from ofa.passes.own_layers import TokenStates, attention_implementation, cache_argument, token_states
from ofa.passes.packing import Batch
from ofa_kernels import TraceEstimate


class _EarlierTokens:
    """Stands where a layer expects a cache: puts keys and values of the clean pass before the new token."""

    def __init__(self, keys: Tensor, values: Tensor):
        self.keys, self.values = keys, values

    def update(self, key: Tensor, value: Tensor, *_, **__) -> tuple[Tensor, Tensor]:
        return torch.cat([self.keys, key], dim=2), torch.cat([self.values, value], dim=2)


def token_map(decoder: Decoder, states: TokenStates, t: int) -> Callable[[Tensor], Tensor]:
    """f_t(z) = layer_t(z) - z [B, D] of the prediction token, all earlier tokens held as they were."""
    layer = decoder.layers[t]
    cache = {cache_argument(type(layer)): _EarlierTokens(states.keys[t], states.values[t])}
    mask = torch.nn.functional.pad(states.earlier, (0, 1), value=True)

    def f(z: Tensor) -> Tensor:
        out = layer(z[:, None], attention_mask=mask, position_embeddings=states.rotary[t], **cache)
        return out[:, 0] - z

    return f


@dataclass(frozen=True)
class Sharpness:
    """H per layer and example.

    Attributes:
        value: [layers, B].
        stderr: [layers, B], the standard error of the mean over probes; NaN for one probe.
    """

    value: Tensor
    stderr: Tensor

    @classmethod
    def of(cls, traces: Iterable[TraceEstimate]) -> "Sharpness":
        """From the traces of J_f P, one a layer."""
        values, errors = zip(*((trace.value, trace.stderr) for trace in traces), strict=True)
        return cls(-torch.stack(values), torch.stack(errors))


def layer_sharpness(
    decoder: Decoder, states: TokenStates, probes: Probes, method: str = "jvp", fd_eps: float = 1e-3
) -> Sharpness:
    """H of the probed layers from recorded states, through the model's own layers.

    Differentiable in γ, through Z_t, σ and the keys too: the oracle of the stacked form, and what serves
    families that have none.
    """
    layers = decoder.layers
    check_derivatives(decoder.lm, own_layers=method == "jvp")
    if decoder.drops():
        raise ValueError("dropout is on, and tangents would see other units than the pass; call model.eval()")
    if isinstance(layers[0], FSDPModule):
        raise ValueError(
            "the layers are sharded, and only stacked tangents can be probed so: "
            f"{why_not_stacked(decoder)}; set lambda_sharp=0, or do not shard"
        )
    estimates = []
    with attention_implementation(decoder, ONE_QUERY):
        for t in probes.layers:
            z = states.z[t]
            estimates.append(
                ofa_kernels.hutchinson_trace(
                    token_map(decoder, states, t),
                    z,
                    decoder.preconditioner(layers[t], z),
                    probes.n_probes,
                    probes.seed,
                    method=method,
                    fd_eps=fd_eps,
                    example_ids=probes.example_ids,
                    layer=t,
                )
            )
    return Sharpness.of(estimates)


@without_autocast
def sharpness(
    model: nn.Module,
    batch: Batch,
    n_probes: int = 8,
    seed: int = 0,
    method: str = "jvp",
    fd_eps: float = 1e-3,
) -> Sharpness:
    """The sharpness H_t = -tr(J_f(Z_t) P_t) of every layer at the prediction token (OFA, sharpness term).

    f_t(Z) = layer_t(Z) - Z and P_t = γ_t / σ(Z_t), γ_t of the norm between attention and MLP. Hutchinson
    probes perturb the prediction token only: attention is causal, so no other token's state bears on the
    trace. Gradients flow as usual; wrap in `torch.no_grad()` to measure only. Autocast is off inside: the
    model's own type decides.

    Args:
        model: a causal language model of a supported family. For float64 truth patch it first: the unpatched
            norm computes in float32.
        batch: `input_ids`, `attention_mask` [B, T], padded on either side; optional `labels`, as in
            `objective`, and `example_ids` [B], which select the probes (default 0 to B-1).
        n_probes: probes a layer and example.
        seed: the probes' seed, 0 to 2^64 - 1.
        method: `"jvp"` (exact directional derivatives) or `"fd"` (one-sided differences, to cross-check).
        fd_eps: step of `"fd"`, in units of the preconditioned probe.

    Returns:
        `.value` [layers, B] and `.stderr` [layers, B], the standard error of the mean over probes. H_t can
        be negative, since J_f is not symmetric.

    Raises:
        ValueError: shapes don't fit, or the family is not supported.
    """
    decoder = Decoder.of(model)
    probes = Probes(range(len(decoder.layers)), n_probes, seed, batch.get("example_ids"))
    if method == "jvp" and why_not_stacked(decoder) is None:
        products = stacked_pass(decoder, batch, probes).products
        assert products is not None  # every layer is probed
        return Sharpness.of(map(TraceEstimate.from_probes, products))
    return layer_sharpness(decoder, token_states(decoder, batch), probes, method, fd_eps)
