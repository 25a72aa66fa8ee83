"""Swap the kernels into a model, free its norm weights γ and freeze everything else; reversibly."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType

import torch
from torch import Tensor, nn

from ofa.decoder.families import Family
from ofa.decoder.norms import Foreign, LayerNorm, RMSNorm
from ofa.decoder.quantised import allow_packing, keep_unpacked
from ofa.decoder.view import Decoder

# what γ is held in: near 1.0 a 16-bit type can't hold an update of 1e-3
GAMMA_DTYPES = (torch.float32, torch.float64)


@dataclass(frozen=True)
class PatchedNorm:
    """One replaced norm; `name` is its path below the decoder."""

    name: str
    role: str
    module: RMSNorm | LayerNorm
    original_class: type[nn.Module]
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

    def __init__(
        self,
        stack: Foreign,
        norms: list[PatchedNorm],
        flags: list[tuple[nn.Parameter, bool]],
        unpacked: list[nn.Module],
    ):
        self.norms = norms
        self.n_trainable = sum(norm.module.weight.numel() for norm in norms)
        self.n_parameters = sum(parameter.numel() for parameter, _ in flags)
        self._stack = stack
        self._flags = flags
        self._unpacked = unpacked

    def undo(self) -> None:
        """Give the model its classes, parameters, bits and `requires_grad` back; harmless when repeated."""
        if self._stack.__dict__.get("_ofa_patch") is not self:
            return
        for norm in self.norms:
            weight = norm.original_weight
            weight.data = weight.data.to(norm.module.weight.device)
            norm.module.weight = weight
            _become(norm.module, norm.original_class)
        for parameter, flag in self._flags:
            parameter.requires_grad_(flag)
        allow_packing(self._unpacked)
        del self._stack._ofa_patch

    def _refresh(self, model: nn.Module) -> None:
        """Make γ, and nothing else, train again, whatever was wrapped or frozen since."""
        gammas = {id(norm.module.weight) for norm in self.norms}
        for parameter in model.parameters():
            if parameter.requires_grad and id(parameter) not in gammas:
                self._flags.append((parameter, True))
                parameter.requires_grad_(False)
        self.train_only(torch.ones(len(self.norms), dtype=torch.bool))

    def train_only(self, trained: Tensor) -> list[nn.Parameter]:
        """Let the γ of these norms, [norms] bool, need gradients and the others not; returns the former."""
        weights = [norm.module.weight for norm in self.norms]
        for weight, is_trained in zip(weights, trained.tolist(), strict=True):
            weight.requires_grad_(is_trained)
        return [weight for weight in weights if weight.requires_grad]

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


def _become(module: Foreign, cls: type[nn.Module]) -> None:
    """Turn a norm into another class in place; parents, hooks and wrappers keep their reference."""
    module.__class__ = cls
    if "_old_forward" in module.__dict__:  # accelerate's hook calls this bound method, not the class
        module._old_forward = MethodType(cls.forward, module)


def _check_replaceable(name: str, module: Foreign, family: Family) -> None:
    if type(module).__name__ != family.norm_class and not isinstance(module, family.norm):
        raise ValueError(f"{name} is a {type(module).__name__}; only {family.norm_class} can be replaced")
    if "forward" in module.__dict__ and "_old_forward" not in module.__dict__:
        raise ValueError(f"the forward of {name} was replaced by another library; patch a fresh model")
    if module.weight.is_meta:
        raise ValueError(f"the weight of {name} is offloaded; load the norms onto a device before patching")


def base_gammas(model: nn.Module) -> list[Tensor]:
    """The γ of the base model, a tensor a norm in the model's order; the model may be patched or not."""
    decoder = Decoder.of(model)
    report = decoder.stack.__dict__.get("_ofa_patch")
    if report is not None:
        return [norm.original_weight for norm in report.norms]
    return [norm.weight for *_, norm in decoder.named_norms()]


def set_gammas(model: nn.Module, gammas: Sequence[Tensor] | None = None) -> None:
    """Put γ into a model, in the order of its norms.

    Args:
        model: a model of a supported family; patched if it isn't.
        gammas: a tensor a norm. None: the γ of the base model, which is left alone if it isn't patched.
    """
    if gammas is None and "_ofa_patch" not in Decoder.of(model).stack.__dict__:
        return
    norms = patch_model(model).norms
    if gammas is None:
        gammas = [norm.original_weight for norm in norms]
    with torch.no_grad():
        for norm, gamma in zip(norms, gammas, strict=True):
            norm.module.weight.copy_(gamma)


def patch_model(model: nn.Module) -> PatchReport:
    """Put `ofa_kernels`' norm into a model, in place, and make its norm weights γ all that trains.

    γ is held in float32 (float64 in a float64 model), also inside a bfloat16 model: near 1.0 bfloat16 can't
    hold an update of 1e-3. State-dict keys, hooks, generation with a cache and PEFT wrappers stay as they
    are; inside PEFT's LN-tuning wrapper the active copies are patched. Patching twice changes nothing.

    Args:
        model: a causal language model of transformers of a supported family, wrapped by PEFT or not.

    Returns:
        A report whose `str()` is a table and whose `undo()` restores the model, its γ included, bit for bit.

    Raises:
        ValueError: an unsupported family, an unknown or offloaded norm, or a model whose norms were wrapped
            or cast after patching.
    """
    decoder = Decoder.of(model)
    family, stack, present = decoder.family, decoder.stack, list(decoder.named_norms())
    report = stack.__dict__.get("_ofa_patch")
    if report is not None:
        same = [norm.module for norm in report.norms] == [module for *_, module in present]
        if not same or any(norm.module.weight.dtype not in GAMMA_DTYPES for norm in report.norms):
            raise ValueError(
                "the model was patched before its norms were wrapped or cast; call undo() on the first "
                "patch_model report, then wrap or cast, then patch"
            )
        report._refresh(model)
        return report
    for name, _, module in present:
        _check_replaceable(name, module, family)
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.requires_grad_(False)
    norms = []
    for name, role, module in present:
        weight = module.weight
        norms.append(PatchedNorm(name, role, module, type(module), weight))
        dtype = weight.dtype if weight.dtype in GAMMA_DTYPES else torch.float32
        _become(module, family.norm)
        module.weight = nn.Parameter(weight.detach().to(dtype, copy=True))
    report = stack._ofa_patch = PatchReport(stack, norms, flags, keep_unpacked(model))
    return report


@contextmanager
def borrowed(model: nn.Module) -> Iterator[PatchReport]:
    """A model that is patched and evaluated for a while, and then given back as it was, however that ends.

    Its classes, the bits of γ, and every `requires_grad` and training flag come back.

    Raises:
        ValueError: it can't be patched.
    """
    earlier = Decoder.of(model).stack.__dict__.get("_ofa_patch")
    n_flags = 0 if earlier is None else len(earlier._flags)
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    report = patch_model(model)
    gammas = [norm.module.weight.detach().clone() for norm in report.norms]
    try:
        model.eval()
        yield report
    finally:
        if earlier is None:
            report.undo()
        else:
            set_gammas(model, gammas)
            del report._flags[n_flags:]
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode
