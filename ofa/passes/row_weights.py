"""A γ of its own for every example of a pass."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ofa.decoder.norms import RMSNormFunction
from ofa.passes.packing import Packing


@dataclass(frozen=True)
class RowWeights:
    """The γ of A adapters, and which of them each example has.

    Attributes:
        gammas: [A, N] a norm, in the order of `Decoder.named_norms`.
        which: [B] int64, the adapter of each example.
    """

    gammas: Sequence[Tensor]
    which: Tensor

    def put_into(self, norms: Sequence[RMSNormFunction], packing: Packing) -> list[RMSNormFunction]:
        """The norms of a model with these γ for the rows of a packing.

        All norms are given the same index tensors, so that what a backend prepares for one serves all.

        Raises:
            ValueError: not one γ a norm, or not one adapter an example.
        """
        if len(self.gammas) != len(norms) or self.which.shape != packing.lengths.shape:
            raise ValueError(
                f"RowWeights needs a tensor for each of the model's {len(norms)} norms and an adapter for "
                f"each of the batch's {packing.n_examples} examples, got {len(self.gammas)} tensors and "
                f"`which` of shape {tuple(self.which.shape)}"
            )
        of_rows = self.which[packing.example_of]
        # a norm is given all rows, or the prediction tokens, or the rows of a label's other tokens
        indices = of_rows, self.which.contiguous(), of_rows[packing.following]
        by_shape = {index.shape: index for index in indices}
        return [
            replace(norm, weight=gamma, weight_index=by_shape)
            for norm, gamma in zip(norms, self.gammas, strict=True)
        ]
