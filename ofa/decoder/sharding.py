"""Frozen weights of a model that is larger than one device, spread over the processes by FSDP2."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from ofa.decoder.patch import patch_model
from ofa.decoder.view import Decoder


def shard_layers(model: nn.Module, mesh: DeviceMesh | None = None) -> nn.Module:
    """Spread the frozen weights of every layer over the processes of a group; γ stays whole in each.

    A layer is gathered while it runs, and again in the backward pass; the others keep their shares only. What
    is outside the layers (embedding and head) is not spread.

    Args:
        model: a causal language model of a supported family, the same in every process; patched if it isn't.
        mesh: the processes; None for all of the default group.

    Returns:
        The model, changed in place.

    Raises:
        RuntimeError: there is no process group (run under `torchrun` or `accelerate launch`).
    """
    if not torch.distributed.is_initialized():
        raise RuntimeError("shard_layers needs a process group: run under torchrun or accelerate launch")
    gammas = {norm.module.weight for norm in patch_model(model).norms}
    for layer in Decoder.of(model).layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=gammas)
    spread = [name for name, parameter in model.named_parameters() if isinstance(parameter, DTensor)]
    # a data-parallel wrapper, such as Trainer puts around a model, would broadcast the shares
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, spread)
    return model


class _Gathered:
    """Keeps at most one layer gathered; a backward pass asks for layers in any order."""

    def __init__(self):
        self.layer: FSDPModule | None = None

    def get(self, layer: FSDPModule) -> None:
        if self.layer is not layer:
            self.release()
        layer.unshard()  # does nothing where the layer is gathered already
        self.layer = layer

    def release(self) -> None:
        if self.layer is not None:
            self.layer.reshard()
        self.layer = None


_present = _Gathered()


@contextmanager
def gathered(layer: nn.Module) -> Iterator[None]:
    """Run with the whole weights of a layer; where the backward pass needs them, they are gathered again."""
    if not isinstance(layer, FSDPModule):
        yield
        return

    def unpack(saved: Tensor) -> Tensor:
        _present.get(layer)  # fills the storage that saved weights point to
        return saved

    _present.get(layer)
    with saved_tensors_hooks(lambda saved: saved, unpack):
        yield
    _present.release()
