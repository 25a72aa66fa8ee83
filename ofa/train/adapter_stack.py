"""The γ of many adapters, which one optimiser step trains at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ofa.train.adamw import step_numbers, update_rows


@dataclass
class AdapterStack:
    """γ and what AdamW keeps of it, one row an adapter; no number of one depends on another.

    Attributes:
        gammas: [norms, A, N].
        means: [norms, A, N], of the gradients.
        squares: [norms, A, N], the means of their squares.
        good: [norms, A, N], γ before the last good step.
    """

    gammas: Tensor
    means: Tensor
    squares: Tensor
    good: Tensor

    @classmethod
    def of(cls, start: Tensor, n_adapters: int) -> "AdapterStack":
        """Adapters that begin with the same γ [norms, N]."""
        gammas = start[:, None].repeat(1, n_adapters, 1)
        return cls(gammas, torch.zeros_like(gammas), torch.zeros_like(gammas), gammas.clone())

    def tensors(self) -> dict[str, Tensor]:
        """All of its tensors by their names."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def join(self, others: "AdapterStack") -> None:
        """Append other adapters."""
        self._set({name: torch.cat([t, getattr(others, name)], 1) for name, t in self.tensors().items()})

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all other adapters."""
        at = torch.tensor(rows, dtype=torch.int64, device=self.gammas.device)
        self._set({name: t.index_select(1, at) for name, t in self.tensors().items()})

    def update(
        self, gradients: Tensor, counts: Sequence[int], rates: Sequence[float], decays: Sequence[float]
    ) -> None:
        """AdamW's update.

        Args:
            gradients: [norms, A, N].
            counts: of each adapter, how many updates it will have had.
            rates: learning rates.
            decays: weight decays.
        """
        self.good.copy_(self.gammas)
        numbers = [step_numbers(*of_one) for of_one in zip(counts, rates, decays, strict=True)]
        update_rows(self.gammas, self.means, self.squares, gradients, numbers)

    def _set(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            setattr(self, name, tensor)
