"""Optimiser steps as CUDA graphs: the work of a step is recorded once for a shape of batch, then replayed.

Few-shot batches are small, and their kernels wait for the host. A replay launches them all at once. It
computes what was recorded, from the same memory, so whatever differs between two steps lies in memory that is
filled before: the packed batch, the step's number, which selects the probes, and the numbers of AdamW's
update, in which the learning rate is. What a step leaves behind has its place too: the weights, their
moments, the weights of the last good step, and the loss with its terms. The host reads these last after the
replay, and waits nowhere else.

Batches are rounded up to few shapes: of 60 steps on SST-2, five prompts each, about 40 have a shape of their
own.
"""

# PyTorch's stubs lack the operators for lists of tensors
# pyright: reportPrivateImportUsage=false

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from ofa.config import OFAConfig
from ofa.decoder.view import Decoder
from ofa.loss.objective import TERMS, Objective
from ofa.passes.fast import why_not_stacked
from ofa.passes.packing import Batch, Packing, packed
from ofa.train.adamw import AdamWUpdate
from ofa.train.step import Step, check_finite

# what the rows and the places of a packed batch are rounded up to
ROWS, PLACES = 32, 32
# every graph holds a launch of each kernel of a step; batches of further shapes run uncaptured
MAX_GRAPHS = 16
ALIGNED = 16  # bytes, the widest access of a kernel

# a packed batch, the settings of its step and the step's number, in memory, to the loss
# what a step is told of its batch besides the packing
GIVEN = ("labels", "classes", "example_ids")
Loss = Callable[[Batch, OFAConfig, Tensor], Objective]


def why_not_captured(decoder: Decoder, cfg: OFAConfig, longest: int) -> str | None:
    """Why steps on prompts of at most `longest` tokens can't be captured, or None."""
    lm, layers = decoder.lm, decoder.layers
    devices = sorted({str(parameter.device) for parameter in lm.parameters()})
    if len(devices) > 1:
        return f"the model is spread over {', '.join(devices)}"
    if torch.device(devices[0]).type != "cuda":
        return f"the model is on {devices[0]}, and graphs are CUDA's"
    if cfg.terms != "formulas":
        return f"the terms {cfg.terms!r} draw their noise from a generator of the host"
    if any(isinstance(layer, FSDPModule) for layer in layers):
        return "the layers are sharded, and gathered by the host"
    unstacked = why_not_stacked(decoder)
    if unstacked is not None:
        return f"the model runs through its own layers, which the host looks into: {unstacked}"
    if any(getattr(layer, "gradient_checkpointing", False) for layer in layers):
        return "gradient checkpointing looks up the generator's state"
    kinds = str(getattr(getattr(decoder.stack, "rotary_emb", None), "rope_type", ""))
    if "dynamic" in kinds or "longrope" in kinds:
        return "the rotary embedding depends on the longest prompt of a batch, which the host looks up"
    try:
        decoder.check_attention(longest + -longest % PLACES)
    except ValueError as error:
        return f"prompts are rounded up to a multiple of {PLACES} tokens: {error}"
    return _foreign_code(lm)


def _foreign_code(lm: nn.Module) -> str | None:
    """Which module does what a replay would leave out, or what may wait for the device."""
    for name, module in lm.named_modules():
        if type(module).__module__.startswith("bitsandbytes."):
            return f"{name} is bitsandbytes' {type(module).__name__}, whose kernels may wait for the device"
        hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        hooks += (*module._backward_hooks.values(), *module._backward_pre_hooks.values())
        # transformers' own sleep unless a model's forward is asked for hidden states
        if any(not getattr(hook, "__module__", "").startswith("transformers.") for hook in hooks):
            return f"{name or 'the model'} has a hook, which no replay would call"
    return None


class Graphs(Protocol):
    """What records work and replays it."""

    def run(self, work: Callable[[], None]) -> None:
        """Do the work, as preparation to record it."""

    def capture(self, work: Callable[[], None]) -> Callable[[], object]:
        """Record the work, which was run before, without doing it; the call that does it."""
        ...


class CudaGraphs:
    """CUDA graphs that share their memory, since nothing made in one is read after it.

    Args:
        device: a GPU.
    """

    def __init__(self, device: torch.device):
        # the default stream can't be captured
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    def run(self, work: Callable[[], None]) -> None:
        """Do the work on the stream of the captures: what is made once must be made before them."""
        outside = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(outside)
        with torch.cuda.stream(self.stream):
            work()
        outside.wait_stream(self.stream)

    def capture(self, work: Callable[[], None]) -> Callable[[], object]:
        """As in `Graphs`.

        Raises:
            RuntimeError: the work waits for the GPU, or there is no memory left for it.
        """
        graph, outside = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.stream.device)
        # a capture that fails leaves its stream the current one; the outer context puts that back
        with torch.cuda.stream(outside), torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            work()
        return graph.replay


class _Inputs:
    """Named tensors in one piece of memory on the host and again on the device, so that one copy moves all.

    Args:
        like: what is to be moved.
        device: where to.
    """

    def __init__(self, like: Mapping[str, Tensor], device: torch.device):
        sizes = [tensor.nbytes + -tensor.nbytes % ALIGNED for tensor in like.values()]
        # page-locked memory is copied without waiting
        self._host = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=torch.cuda.is_available())
        self._device = torch.empty_like(self._host, device=device)
        begins = dict(zip(like, accumulate(sizes, initial=0), strict=False))

        def views(memory: Tensor) -> dict[str, Tensor]:
            return {
                name: memory[begins[name] :][: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
                for name, tensor in like.items()
            }

        self._on_host, self.on_device = views(self._host), views(self._device)

    def fill(self, values: Mapping[str, Tensor]) -> None:
        """Put the values where the device reads them; the copy before must have ended."""
        for name, value in values.items():
            self._on_host[name].copy_(value)
        self._device.copy_(self._host, non_blocking=True)


@dataclass
class _Shape:
    """Steps of one shape: their memory and, from their second on, their graph.

    Attributes:
        config: the settings of these steps.
        inputs: what differs between them.
        results: float64, the loss, the terms that are computed, and the largest gradient.
        names: of the results, "gradient" the last of them.
        replay: runs the graph; None before it is captured.
        seen: whether such a step was taken.
    """

    config: OFAConfig
    inputs: _Inputs
    results: Tensor
    names: list[str] = field(default_factory=list)
    replay: Callable[[], object] | None = None
    seen: bool = False


def _of_one_step(cfg: OFAConfig, step: int) -> OFAConfig:
    """The settings of a step with the period of the sharpness resolved, which no recorded work can count."""
    weight = 0.0 if step % cfg.sharpness_every else cfg.lambda_sharp * cfg.sharpness_every
    return replace(cfg, lambda_sharp=weight, sharpness_every=1)


class Captured(Step):
    """Steps that are captured in graphs.

    The first step of a shape runs as it is, which makes what is made once; the second is captured.

    Args:
        weights: what is trained.
        loss: takes a packed batch on the weights' device, the step's settings and its number there.
        batch_of: the batch of the examples of these indices, in the host's memory.
        cfg: settings of the run.
        graphs: where to capture.

    Attributes:
        n_graphs: graphs that were captured.
    """

    def __init__(
        self,
        weights: Sequence[nn.Parameter],
        loss: Loss,
        batch_of: Callable[[list[int]], Batch],
        cfg: OFAConfig,
        graphs: Graphs,
    ):
        super().__init__(weights, cfg.weight_decay)
        self.loss, self.batch_of, self.cfg = loss, batch_of, cfg
        self.n_graphs = 0
        self._graphs, self._captures = graphs, True
        self._shapes: dict[object, _Shape] = {}
        self._packed: dict[tuple[int, ...], dict[str, Tensor]] = {}

    def begin(self) -> None:
        """As in `Step`; from here on all that the graphs read and write stays where it is."""
        super().begin()
        self._before = [saved.clone() for saved in self.good]
        self._values = [weight.detach() for weight in self.weights]
        self._adamw = AdamWUpdate(self.optimizer)

    def take(
        self, step: int, rows: list[int], lr: float, upcoming: list[int] | None = None
    ) -> dict[str, float | None]:
        """As in `Step`; the next batch is packed while the device works.

        Raises:
            NonFiniteError: as in `Step`.
            RuntimeError: the step could not be captured, and has to be.
        """
        config = _of_one_step(self.cfg, step)
        inputs = self._packed.pop(tuple(rows), None) or self._pack(rows)
        inputs |= {"step": torch.tensor(step), "update": self._adamw.numbers(lr)}
        key = config, *(tensor.shape for tensor in inputs.values())
        if key not in self._shapes:
            device = self.weights[0].device
            results = torch.empty(len(TERMS) + 2, dtype=torch.float64, device=device)
            self._shapes[key] = _Shape(config, _Inputs(inputs, device), results)
        shape = self._shapes[key]
        shape.inputs.fill(inputs)
        self._launch(shape)
        self._adamw.count()
        if upcoming is not None:
            self._packed[tuple(upcoming)] = self._pack(upcoming)
        found = dict(zip(shape.names, shape.results.tolist(), strict=False))  # the one wait of a step
        values = {name: found.get(name) for name in ("loss", *TERMS)}
        check_finite(step, values, found["gradient"])
        return values

    def _pack(self, rows: list[int]) -> dict[str, Tensor]:
        """What a step is told of its batch, in the host's memory."""
        batch = packed(self.batch_of(rows))
        packing = batch["packing"].rounded(ROWS, PLACES)
        return {
            **{part.name: getattr(packing, part.name) for part in fields(Packing)},
            **{name: batch[name] for name in GIVEN if name in batch},
        }

    def _launch(self, shape: _Shape) -> None:
        """Do the work of a step of this shape, by its graph if it has one or may have one."""
        work = partial(self._work, shape)
        if shape.seen and shape.replay is None and self._captures:
            shape.replay = self._capture(work)
        if shape.replay is None:
            self._graphs.run(work)
        else:
            shape.replay()
        shape.seen = True

    def _capture(self, work: Callable[[], None]) -> Callable[[], object] | None:
        try:
            replay = self._graphs.capture(work)
        except RuntimeError as error:
            reason = error.__context__ or error  # the end of a capture fails too, and says less
            if self.cfg.cuda_graph:
                raise RuntimeError(f"cuda_graph=True: the step could not be captured: {reason}") from error
            warnings.warn(f"the step could not be captured, and is run uncaptured: {reason}", stacklevel=2)
            self._captures = False
            return None
        self.n_graphs += 1
        self._captures = self.n_graphs < MAX_GRAPHS
        return replay

    def _work(self, shape: _Shape) -> None:
        """A step, from the memory of its shape."""
        given = shape.inputs.on_device
        # a step is only taken if the one before it was good
        torch._foreach_copy_(self.good, self._before)
        torch._foreach_copy_(self._before, self._values)
        packing = Packing(*(given[part.name] for part in fields(Packing)))
        batch = {name: given[name] for name in GIVEN if name in given}
        computed = self.loss({**batch, "packing": packing}, shape.config, given["step"])
        gradients = torch.autograd.grad(computed.loss, self.weights)
        scalars = {"loss": computed.loss, **computed.terms()}
        scalars["gradient"] = torch.cat([gradient.flatten() for gradient in gradients]).abs().max()
        known = {name: scalar.detach() for name, scalar in scalars.items() if scalar is not None}
        shape.names = list(known)
        shape.results[: len(known)].copy_(torch.stack(list(known.values())))
        self._adamw.apply(gradients, given["update"])
