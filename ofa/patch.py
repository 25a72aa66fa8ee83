"""Swap the kernels into a model, free its norm weights γ and freeze everything else; reversibly."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from ofa.norm import RMSNorm


@dataclass(frozen=True)
class Family:
    """Where a model family keeps its norms: by role, not by name."""

    norm_class: str
    before_attention: str
    before_mlp: str
    final: str

    def role(self, name: str) -> str:
        """What the norm called `name` does."""
        return {
            self.before_attention: "before attention",
            self.before_mlp: "before the MLP: the preconditioner P",
            self.final: "final",
        }[name]


FAMILIES = {"llama": Family("LlamaRMSNorm", "input_layernorm", "post_attention_layernorm", "norm")}


@dataclass(frozen=True)
class PatchedNorm:
    """One replaced norm; `name` is its path below the decoder."""

    name: str
    role: str
    module: nn.Module
    original_class: type
    original_weight: nn.Parameter

    @property
    def row(self) -> tuple[str, str, str, str]:
        """(name with the layer's number as *, size, types, role)."""
        name = ".".join("*" if part.isdigit() else part for part in self.name.split("."))
        before, after = (
            str(w.dtype).removeprefix("torch.") for w in (self.original_weight, self.module.weight)
        )
        dtype = after if before == after else f"{before} -> {after}"
        return name, str(self.module.weight.numel()), dtype, self.role


class PatchReport:
    """What `patch_model` did; `str()` is a table, `undo()` takes it back.

    Attributes:
        norms: the replaced norms, in the model's order.
        n_trainable: trainable numbers, all of them γ.
        n_parameters: all numbers of the model.
    """

    def __init__(self, decoder: nn.Module, norms: list[PatchedNorm], flags: list[tuple[nn.Parameter, bool]]):
        self.norms = norms
        self.n_trainable = sum(norm.module.weight.numel() for norm in norms)
        self.n_parameters = sum(parameter.numel() for parameter, _ in flags)
        self._decoder = decoder
        self._flags = flags

    def undo(self) -> None:
        """Give the model its classes, parameters, bits and `requires_grad` back; harmless when repeated."""
        if self._decoder.__dict__.get("_ofa_patch") is not self:
            return
        for norm in self.norms:
            weight = norm.original_weight
            weight.data = weight.data.to(norm.module.weight.device)
            norm.module.weight = weight
            norm.module.__class__ = norm.original_class
        for parameter, flag in self._flags:
            parameter.requires_grad_(flag)
        del self._decoder._ofa_patch

    def __str__(self) -> str:
        header = ("norm", "size", "weight", "role", "count")
        counts = Counter(norm.row for norm in self.norms)
        rows = [header, *((*row, str(count)) for row, count in counts.items())]
        widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
        lines = [
            "  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
        share = 100 * self.n_trainable / self.n_parameters
        return "\n".join(
            [*lines, f"trainable: {self.n_trainable:,} of {self.n_parameters:,} numbers ({share:.3f} %)"]
        )


def causal_lm(model: nn.Module) -> PreTrainedModel:
    """The causal language model inside PEFT's wrapper, or the model itself.

    Raises:
        ValueError: the family is not supported, or the model has no language-model head.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    model_type = getattr(getattr(inner, "config", None), "model_type", None)
    if model_type not in FAMILIES or not hasattr(inner, "lm_head"):
        what = f"{type(inner).__name__} (model type {model_type!r})"
        raise ValueError(
            f"{what} is not supported; supported are causal language models of: {', '.join(sorted(FAMILIES))}"
        )
    return inner


def family_of(model: nn.Module) -> Family:
    """The family's table entry."""
    return FAMILIES[causal_lm(model).config.model_type]


def active_norm(module: nn.Module) -> nn.Module:
    """The norm that computes: inside PEFT's LN-tuning wrapper that is the active copy, not the base."""
    if not hasattr(module, "ln_tuning_layers"):
        return module
    if module.disable_adapters or module.merged or not module.active_adapters:
        return module.base_layer
    return module.ln_tuning_layers[module.active_adapters[0]]


def named_norms(model: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """(path below the decoder, role, norm) of every norm whose γ is trained."""
    family, decoder = family_of(model), causal_lm(model).model
    for i, layer in enumerate(decoder.layers):
        for name in (family.before_attention, family.before_mlp):
            yield f"layers.{i}.{name}", family.role(name), active_norm(getattr(layer, name))
    yield family.final, family.role(family.final), active_norm(getattr(decoder, family.final))


def patch_model(model: nn.Module) -> PatchReport:
    """Put `ofa_kernels.rms_norm` into a model, in place, and make its norm weights γ all that trains.

    γ is held in float32 (float64 in a float64 model), also inside a bfloat16 model: near 1.0 bfloat16 can't
    hold an update of 1e-3. State-dict keys, hooks, generation with a cache and PEFT wrappers stay as they
    are; inside PEFT's LN-tuning wrapper the active copies are patched. Patching twice changes nothing.

    Args:
        model: a causal language model of transformers of a supported family, wrapped by PEFT or not.

    Returns:
        A report whose `str()` is a table and whose `undo()` restores the model, its γ included, bit for bit.

    Raises:
        ValueError: an unsupported family, an unknown norm, or a model that was wrapped after patching.
    """
    decoder = causal_lm(model).model
    found = list(named_norms(model))
    report = decoder.__dict__.get("_ofa_patch")
    if report is not None:
        if [norm.module for norm in report.norms] == [module for *_, module in found]:
            return report
        raise ValueError(
            "the model was patched before its norms were wrapped or replaced; call undo() on the first "
            "patch_model report, then wrap, then patch"
        )
    expected = family_of(model).norm_class
    for name, _, module in found:
        if type(module).__name__ not in (expected, RMSNorm.__name__):
            raise ValueError(f"{name} is a {type(module).__name__}; only {expected} can be replaced")
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.requires_grad_(False)
    norms = []
    for name, role, module in found:
        weight = module.weight
        norms.append(PatchedNorm(name, role, module, type(module), weight))
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        module.__class__ = RMSNorm
        module.weight = nn.Parameter(weight.detach().to(dtype, copy=True))
    decoder._ofa_patch = PatchReport(decoder, norms, flags)
    return decoder._ofa_patch
