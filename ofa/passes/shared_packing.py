"""A packing for inference, in which examples that begin alike share the rows of their beginning."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ofa.passes.packing import Packing


@dataclass(frozen=True)
class SharedPacking(Packing):
    """A packing whose rows may stand at several places.

    A token's row depends on the tokens before it and on the norm weights of its example. Examples in which
    these are the same share the row. But each has a prediction token of its own, and what follows that.
    """

    @classmethod
    def of_prompts(
        cls,
        prompts: Sequence[list[int]],
        words: Sequence[list[int]],
        groups: Sequence[int],
        device: torch.device,
    ) -> "SharedPacking":
        """The packing of prompts and of what follows them.

        Args:
            prompts: [B] token ids; none is empty.
            words: [B] tokens of a label, at least one each; all but the last follow the prompt.
            groups: [B] numbers from 0 on; examples of different groups share no rows.
            device: where the packing's tensors are to lie.

        Returns:
            The `SharedPacking`; where there is nothing to share, with the tensors of `Packing.of`.
        """
        examples = [prompt + word[:-1] for prompt, word in zip(prompts, words, strict=True)]
        longest, last = max(map(len, examples)), [len(prompt) - 1 for prompt in prompts]
        input_ids = [prompt[-1] for prompt in prompts]
        positions = list(last)
        place_of = [i * longest + place for i, place in enumerate(last)]
        row_of = [[i] * longest for i in range(len(prompts))]
        row_after: dict[tuple[int, int], int] = {}  # of the row before, or the group, and the token
        for i, (example, group) in enumerate(zip(examples, groups, strict=True)):
            row = -1 - group
            for place, token in enumerate(example):
                if place == last[i]:
                    row = i
                else:
                    row = row_after.setdefault((row, token), len(input_ids))
                    if row == len(input_ids):
                        input_ids.append(token)
                        positions.append(place)
                        place_of.append(i * longest + place)
                row_of[i][place] = row
        n_more = max(map(len, words)) - 1
        following = [
            [rows[min(place + n, len(example) - 1)] for n in range(1, n_more + 1)]
            for rows, example, place in zip(row_of, examples, last, strict=True)
        ]

        def tensor(numbers: list) -> Tensor:
            return torch.tensor(numbers, dtype=torch.int64, device=device)

        columns, lengths = torch.arange(longest, device=device), tensor([*map(len, examples)])
        return cls(
            tensor(input_ids),
            tensor(positions),
            lengths,
            real=columns < lengths[:, None],
            seen=columns <= tensor(last)[:, None],
            following=tensor(following),
            row_of=tensor(row_of),
            place_of=tensor(place_of),
        )

    def unpack(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As for any packing.

        Raises:
            RuntimeError: a gradient is asked for, which would have to be summed over a row's places.
        """
        if rows.requires_grad:
            raise RuntimeError("a packing with shared rows is for inference: run it under torch.no_grad()")
        return super().unpack(rows)
