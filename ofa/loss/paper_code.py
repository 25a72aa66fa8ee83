"""The objective of the OFA authors' public research code, for comparison; `ofa.objective` has the formulas.

It differs from the paper's formulas in every term: J is of squared norms, from t = 2, with the last state
after the final norm; the perturbation is Gaussian, in all layers and tokens at once, scaled by the pretrained
γ of the norm before the MLP, without σ; the identity of the residual stays in, and a softplus is around it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ofa.data.words import columns_of, cross_entropy, label_places
from ofa.decoder.patch import patch_model
from ofa.decoder.view import Decoder
from ofa.passes.packing import Batch, check_batch
from ofa_kernels import accumulation_dtype

EPS = 1e-3


def pretrained_gammas(decoder: Decoder) -> list[Tensor]:
    """γ0 of the norm that is P, one [D] a layer: what it was before the model was patched."""
    family = decoder.family
    wanted, offset = family.role(family.preconditioner), family.norm.offset
    norms = patch_model(decoder.lm).norms
    return [norm.original_weight.detach() + offset for norm in norms if norm.role == wanted]


@contextmanager
def _shifted(layers: nn.ModuleList, shifts: list[Tensor]) -> Iterator[None]:
    """Add shifts[i] to what layer i is given."""
    handles = [
        layer.register_forward_pre_hook(lambda _, args, shift=shift: (args[0] + shift, *args[1:]))
        for layer, shift in zip(layers, shifts, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def paper_code_terms(decoder: Decoder, batch: Batch, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """(cross-entropy, J, H) of the authors' code, each a scalar.

    H averages over the pairs of examples: their product of noise and difference is a B x B matrix. The
    authors train with a batch of one.

    Args:
        decoder: the view of a model, patched.
        batch: `input_ids`, `attention_mask` [B, T], `labels` [B] or [B, L], as in `objective`.
        seed: of the noise.

    Raises:
        ValueError: shapes don't fit.
    """
    lm = decoder.lm
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
    mask, labels = batch["attention_mask"].bool(), batch["labels"]
    check_batch(batch["input_ids"], mask, labels)
    columns = columns_of(mask, label_places(mask, labels))
    last = columns[:, 0]
    rows = torch.arange(len(last), device=last.device)

    out = lm(**inputs, output_hidden_states=True)
    dtype = accumulation_dtype(out.logits)
    following = out.logits[rows[:, None], columns[:, 1:]] if columns.shape[1] > 1 else None
    nll = cross_entropy(out.logits[rows, last], following, labels)
    states = [h[rows, last].to(dtype) for h in out.hidden_states]
    ratios = (
        F.mse_loss(states[t], states[t + 1]) / F.mse_loss(states[t], states[t - 1])
        for t in range(2, len(states) - 1)
    )
    ratio = sum(ratios, torch.zeros((), dtype=dtype, device=last.device))

    generator = torch.Generator(last.device).manual_seed(seed)
    noises = [
        torch.randn(h.shape, generator=generator, dtype=dtype, device=h.device)
        for h in out.hidden_states[:-1]
    ]
    gammas = pretrained_gammas(decoder)
    shifts = [(g.to(dtype) * EPS * n).to(lm.dtype) for g, n in zip(gammas, noises, strict=True)]
    with _shifted(decoder.layers, shifts):
        hidden = decoder.stack(**inputs, output_hidden_states=True).hidden_states
        noisy = [h[rows, last].to(dtype) for h in hidden]
    sharp = []
    for i in range(1, len(states) - 1):
        difference = (noisy[i + 1] - noisy[i]) - (states[i + 1] - states[i])
        # (eps n) · D / eps
        sharp.append(F.softplus(-noises[i][rows, last] @ difference.T).mean())
    return nll, ratio, torch.stack(sharp).mean()
