"""Adapters in PEFT's LN-tuning format: the full γ of every norm."""

import json
import os
import shutil
import tempfile
import warnings
from dataclasses import asdict
from pathlib import Path

import torch
from peft import LNTuningConfig
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ofa.decoder.patch import PatchReport, base_gammas, patch_model, set_gammas
from ofa.decoder.view import Decoder
from ofa.models import source_of

PEFT_CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
OFA_CONFIG = "ofa_config.json"


def _tensor_name(decoder: Decoder, norm: str) -> str:
    return f"base_model.model.{decoder.family.decoder}.{norm}.ln_tuning_layers.weight"


def _bias_name(tensor_name: str) -> str:
    return tensor_name.removesuffix("weight") + "bias"


def _same(a: Tensor, b: Tensor) -> bool:
    """Equality in the coarser of two types."""
    dtype = max(a.dtype, b.dtype, key=lambda d: torch.finfo(d).eps)
    return torch.equal(a.to(dtype), b.to(dtype))


def save_adapter(model: nn.Module, path: str | os.PathLike, metadata: dict | None = None) -> None:
    """Write a model's γ so that `load_adapter` and every PEFT tool can load it.

    `adapter_config.json` and `adapter_model.safetensors` are PEFT's (LN_TUNING, γ in the type it was trained
    in); `ofa_config.json` holds the base model's source and SHA-256 and `metadata`. Files are replaced one
    by one, each complete.

    Args:
        model: a model of a supported family, adapted.
        path: the adapter's folder; made where missing.
        metadata: JSON values for `ofa_config.json`.

    Raises:
        ValueError: a γ is NaN or infinite (nothing is written), or the family is not supported.
    """
    decoder, tensors = Decoder.of(model), {}
    for name, _, module in decoder.named_norms():
        weight = module.weight.detach().cpu().contiguous()
        if not torch.isfinite(weight).all():
            raise ValueError(f"γ of {name} holds NaN or infinite values; nothing was written")
        tensors[_tensor_name(decoder, name)] = weight
        if (bias := getattr(module, "bias", None)) is not None:  # PEFT misses it otherwise
            tensors[_bias_name(_tensor_name(decoder, name))] = bias.detach().cpu().contiguous()
    others = {c.peft_type.value for c in getattr(model, "peft_config", {}).values()} - {"LN_TUNING"}
    if others:
        warnings.warn(f"only γ is saved, not the model's {', '.join(others)} weights", stacklevel=2)
    family, lm = decoder.family, decoder.lm
    config = LNTuningConfig(
        task_type="CAUSAL_LM",
        target_modules=[*family.roles, family.final],
        inference_mode=True,
        base_model_name_or_path=lm.name_or_path,
    )
    record = {"model": {**asdict(source_of(lm)), "dtype": str(lm.dtype).removeprefix("torch.")}}
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path) as folder:
        config.save_pretrained(folder)
        save_file(tensors, Path(folder) / WEIGHTS, metadata={"format": "pt"})
        (Path(folder) / OFA_CONFIG).write_text(json.dumps({**record, **(metadata or {})}, indent=2) + "\n")
        # safetensors makes its file the owner's alone
        shutil.copymode(Path(folder) / OFA_CONFIG, Path(folder) / WEIGHTS)
        for name in (WEIGHTS, OFA_CONFIG, PEFT_CONFIG):
            os.replace(Path(folder) / name, path / name)


def read_config(path: str | os.PathLike, name: str = OFA_CONFIG) -> dict:
    """One of an adapter's JSON files.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged.
    """
    file = Path(path) / name
    if not Path(path).exists():
        raise FileNotFoundError(f"{path} does not exist")
    if not file.is_file():
        raise FileNotFoundError(f"{path} is no folder of an adapter made here: {name} is missing")
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from None


def load_adapter(model: nn.Module, path: str | os.PathLike) -> PatchReport:
    """Put an adapter's γ into a model, which is patched first if it isn't.

    Args:
        model: the base model, of a supported family.
        path: a folder in PEFT's LN-tuning format, written by `save_adapter` or by PEFT.

    Returns:
        The model's `PatchReport`; its `undo()` takes the adapter out again. A warning says where the base
        model's weights are known to be others than the adapter was trained on.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the adapter is of another kind, is damaged, or doesn't fit the model (the tensor is
            named); the model is then unchanged.
    """
    gammas = read_gammas(model, path)
    report = patch_model(model)
    set_gammas(model, gammas)
    return report


def read_gammas(model: nn.Module, path: str | os.PathLike) -> list[Tensor]:
    """An adapter's γ, checked, without putting them into the model.

    Args:
        model: the base model, of a supported family, patched or not.
        path: as for `load_adapter`, which has the same errors and warns of the same.

    Returns:
        A tensor a norm, in the order of `patch_model(model).norms`; of a norm that was not tuned, the base
        model's.
    """
    path = Path(path)
    config = read_config(path, PEFT_CONFIG)
    if config.get("peft_type") != "LN_TUNING":
        raise ValueError(f"{path} holds a {config.get('peft_type')} adapter; only LN_TUNING can be loaded")
    weights = _read_weights(path, config, model)
    _warn_of_another_base(model, path)
    names = [name for name, *_ in Decoder.of(model).named_norms()]
    return [weights.get(name, base) for name, base in zip(names, base_gammas(model), strict=True)]


def _warn_of_another_base(model: nn.Module, path: Path) -> None:
    """Shapes can fit a model with other weights; the recorded SHA-256 tells."""
    if not (path / OFA_CONFIG).is_file():
        return
    recorded, present = read_config(path).get("model", {}), source_of(Decoder.of(model).lm)
    if recorded.get("sha256") and present.sha256 and recorded["sha256"] != present.sha256:
        warnings.warn(
            f"{path} was trained on {recorded['name']} (SHA-256 {recorded['sha256'][:12]}…), and this model "
            f"is {present.name} ({present.sha256[:12]}…): the shapes fit, but expect other results",
            stacklevel=4,
        )


def _read_weights(path: Path, config: dict, model: nn.Module) -> dict[str, Tensor]:
    """Checked γ by the norms' names."""
    if not (path / WEIGHTS).is_file():
        raise FileNotFoundError(f"{path}: {WEIGHTS} is missing")
    try:
        tensors = load_file(path / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"{path / WEIGHTS} is damaged ({error}); save or copy it again") from None
    decoder = Decoder.of(model)
    modules = {name: module for name, _, module in decoder.named_norms()}
    expected = {name: module.weight for name, module in modules.items()}
    names = {_tensor_name(decoder, name): name for name in expected}
    biases = {
        _bias_name(tensor_name): modules[name].bias
        for tensor_name, name in names.items()
        if getattr(modules[name], "bias", None) is not None
    }
    weights = {}
    for tensor_name, tensor in tensors.items():
        name = names.get(tensor_name)
        if tensor_name in biases:
            if not _same(tensor, biases[tensor_name].detach().cpu()):
                raise ValueError(f"{path}: {tensor_name} was trained too; only γ can be loaded, no biases")
            continue
        if name is None:
            raise ValueError(
                f"{path}: the model has no place for the tensor {tensor_name}; wrong base model?"
            )
        if tensor.shape != expected[name].shape:
            raise ValueError(
                f"{path}: {tensor_name} has shape {tuple(tensor.shape)}, and the model needs "
                f"{tuple(expected[name].shape)}; wrong base model?"
            )
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{path}: {tensor_name} holds NaN or infinite values")
        weights[name] = tensor
    targets = config.get("target_modules")
    # PEFT may have tuned some of the norms only, and says so in a list
    targets = set(targets) if isinstance(targets, list) else {name.rpartition(".")[2] for name in expected}
    for name in expected:
        if name.rpartition(".")[2] in targets and name not in weights:
            raise ValueError(
                f"{path}: the tensor {_tensor_name(decoder, name)} is missing; wrong base model?"
            )
    return weights
