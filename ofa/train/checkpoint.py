"""A training run on the disk: written atomically, resumed bit for bit, refused if of another run."""

import hashlib
import json
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

STATE = ("exp_avg", "exp_avg_sq", "step")  # what AdamW keeps of every weight


class CheckpointError(ValueError):
    """A checkpoint is damaged, or of another run."""


def digest(content: object, tensors: Sequence[Tensor] = ()) -> str:
    """SHA-256 of something JSON can write, and of tensors' bits."""
    sha = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode())
    for tensor in tensors:
        sha.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


@dataclass(frozen=True)
class Checkpoint:
    """Where a run keeps its state, and how often.

    Attributes:
        path: a .safetensors file; what was there before stays until the new one is whole.
        run: what decides the run's numbers, from `digest`; another run's checkpoint is refused.
        every: steps between two writings.
    """

    path: Path
    run: str
    every: int = 10

    def save(self, weights: Sequence[Tensor], optimizer: torch.optim.AdamW, history: Sequence[dict]) -> None:
        """Write the state after `len(history)` steps; errors as in `write`."""
        tensors = {}
        for i, weight in enumerate(weights):
            tensors[f"weight.{i}"] = weight.detach()
            tensors |= {f"{name}.{i}": optimizer.state[weight][name] for name in STATE}
        self.write(tensors, {"history": history}, len(history))

    def write(self, tensors: Mapping[str, Tensor], record: Mapping[str, object], n_steps: int) -> None:
        """Write tensors, and what JSON can hold of a state after so many steps.

        Raises:
            OSError: it can't be written; the checkpoint before it is still there.
        """
        metadata = {"run": self.run, **{name: json.dumps(content) for name, content in record.items()}}
        unfinished = self.path.with_suffix(".part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with unfinished.open("wb") as file:
                file.write(save({name: t.cpu().contiguous() for name, t in tensors.items()}, metadata))
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(self.path)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            reason = f"step {n_steps} could not be written ({error.strerror})"
            if self.path.exists():
                reason += f"; {self.path} holds an earlier step, and the same run goes on from there"
            raise OSError(error.errno, reason) from error

    def load(self, weights: Sequence[Tensor], optimizer: torch.optim.AdamW) -> list[dict]:
        """Put weights and optimiser where they were; the history until then, empty without a checkpoint.

        Raises:
            CheckpointError: the file is damaged, or of a run with other shots, settings or weights.
        """
        if not self.path.exists():
            return []
        tensors, record = self.read("history")
        with torch.no_grad():
            for i, weight in enumerate(weights):
                weight.copy_(tensors[f"weight.{i}"])
                state = {name: tensors[f"{name}.{i}"] for name in STATE}
                optimizer.state[weight] = {
                    name: t if name == "step" else t.to(weight.device) for name, t in state.items()
                }
        return record["history"]

    def read(self, *names: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors that were written, and of the record what has these names.

        Raises:
            CheckpointError: the file is damaged, or of a run with other shots, settings or weights.
        """
        try:
            with safe_open(self.path, "pt") as file:
                metadata = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            run, record = metadata["run"], {name: json.loads(metadata[name]) for name in names}
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{self.path} is damaged ({error}); delete it to start again") from error
        if run != self.run:
            raise CheckpointError(
                f"{self.path} is of a run with other examples, settings or weights; delete it to start "
                "again, or give another place"
            )
        return tensors, record


@contextmanager
def deferred_interrupt() -> Iterator[threading.Event]:
    """Ctrl-C sets the event instead of stopping between two halves of a step; a second one stops at once.

    Where it is ignored, as in a job that a script put in the background, it stays so.
    """
    wanted = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN or threading.current_thread() is not threading.main_thread():
        yield wanted
        return

    def handler(number, frame):
        if wanted.is_set() or before is None:
            raise KeyboardInterrupt
        wanted.set()

    signal.signal(signal.SIGINT, handler)
    try:
        yield wanted
    finally:
        signal.signal(signal.SIGINT, before if before is not None else signal.SIG_DFL)
