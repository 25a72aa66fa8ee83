"""Gradients of many jobs' losses, term by term where a job weighs the terms by their gradients' lengths."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ofa.loss.objective import Objective
from ofa.train.course import Course


class TermGradients:
    """Sums over passes of the gradients of the jobs' losses.

    Args:
        courses: the jobs at their present steps.
        gammas: [norms, jobs, N], what the passes are run with; a leaf that needs gradients.
    """

    def __init__(self, courses: Sequence[Course], gammas: Tensor):
        self.courses, self.gammas = courses, gammas
        self._is_scaled = [course.config.ablation.lambda_scale == "gradient" for course in courses]
        # of the loss, which of a scaled job is its cross-entropy alone; of J and of H of scaled jobs
        self._parts = gammas.new_zeros(3 if any(self._is_scaled) else 1, *gammas.shape)

    def add(self, terms: Objective, jobs: Sequence[int], shares: Sequence[float]) -> None:
        """Add what a pass gives.

        Args:
            terms: of the jobs that have examples in the pass.
            jobs: which these are.
            shares: of each, the share of its batch that is in the pass.
        """
        weights = torch.tensor(shares, dtype=terms.loss.dtype, device=terms.loss.device)
        losses = [terms.loss]
        if len(self._parts) > 1:
            scaled = torch.tensor([self._is_scaled[a] for a in jobs], device=weights.device)
            own = terms.cross_entropy, terms.step_ratio, terms.sharpness
            rest = terms.loss, torch.zeros_like(terms.loss), torch.zeros_like(terms.loss)
            losses = [
                None if term is None else torch.where(scaled, term, other)
                for term, other in zip(own, rest, strict=True)
            ]
        found = [(part, loss) for part, loss in zip(self._parts, losses, strict=True) if loss is not None]
        for left, (part, loss) in zip(reversed(range(len(found))), found, strict=True):
            # what is saved for the last of them is given up on the way
            (gradient,) = torch.autograd.grad((loss * weights).sum(), self.gammas, retain_graph=left > 0)
            part += gradient

    def sum(self) -> Tensor:
        """[norms, jobs, N], 0 for the norms that a job does not train."""
        for a, course in enumerate(self.courses):
            if course.trained is not None:
                self._parts[:, ~course.trained, a] = 0
        total, *others = self._parts
        if not others:
            return total
        of_loss = total.norm(dim=(0, 2))
        for part, name in zip(others, ("lambda_step", "lambda_sharp"), strict=True):
            weights = of_loss.new_tensor([getattr(course.config, name) for course in self.courses])
            lengths = part.norm(dim=(0, 2))
            factors = torch.where(lengths > 0, weights * of_loss / lengths, 0.0)
            total = total + factors[:, None] * part
        return total
