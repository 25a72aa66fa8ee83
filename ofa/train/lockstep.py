"""Many jobs trained in lockstep: one step of each at a time, until the last has ended."""

import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ofa.decoder.view import Decoder
from ofa.train import memory
from ofa.train.adapter_stack import AdapterStack
from ofa.train.checkpoint import Checkpoint
from ofa.train.course import Course
from ofa.train.job_gradients import Gradients, Values, own_passes, shared_passes
from ofa.train.step import NonFiniteError, check_finite

ERRORS = {kind.__name__: kind for kind in (NonFiniteError, ValueError)}  # what may end a job


def _guarded(run: Gradients, courses: Sequence[Course], gammas: Tensor) -> tuple[list[Values], Tensor]:
    """Values and gradients, each job by itself where one can't be run, for instance as its J divides by 0."""
    try:
        values, gradient = run(courses, gammas)
        return list(values), gradient
    except ValueError as error:
        if len(courses) == 1:
            # its traceback would keep all that the pass has saved
            return [error.with_traceback(None)], torch.zeros_like(gammas)
    alone = [_guarded(run, [course], gammas[:, a : a + 1]) for a, course in enumerate(courses)]
    return [values for (values,), _ in alone], torch.cat([gradient for _, gradient in alone], 1)


def _fault(step: int, values: Values, largest: float) -> Exception | None:
    if isinstance(values, ValueError):
        return values
    try:
        check_finite(step, values, largest)
    except NonFiniteError as error:
        return error
    return None


class Lockstep:
    """Jobs that are trained together, as many at once as there is room for.

    There is room for a job where the largest batches of the jobs at work, its own among them, have no more
    tokens than are run together; one job is always at work. They begin in their order.

    Args:
        model: patched and in evaluation mode; what of its γ is changed, `borrowed` puts back.
        weights: the γ that all jobs begin with.
        courses: the jobs.

    Attributes:
        active: the jobs at work, in their order.
        stack: their γ.
        losses: of all jobs in the last step.
    """

    def __init__(self, model: nn.Module, weights: Sequence[nn.Parameter], courses: Sequence[Course]):
        self.decoder = Decoder.of(model)
        device = self.decoder.device
        self.start = torch.stack([weight.detach().to(device, copy=True) for weight in weights])
        self.courses = list(courses)
        self.active: list[Course] = []
        self.stack = AdapterStack.of(self.start, 0)
        self.losses: list[float] = []
        self._runs = {True: shared_passes(self.decoder), False: own_passes(model, weights)}

    @property
    def ended(self) -> list[Course]:
        """The jobs that have ended."""
        return [course for course in self.courses if course.gammas is not None]

    @property
    def finished(self) -> bool:
        """Whether all have ended."""
        return len(self.ended) == len(self.courses)

    @property
    def n_taken(self) -> int:
        """Steps that were taken, of all jobs."""
        return sum(course.step for course in self.courses)

    @property
    def n_steps(self) -> int:
        """Steps of all jobs; of one that ended early, those that it took."""
        return sum(course.step if course.error else len(course.steps) for course in self.courses)

    def describe(self) -> str:
        """What the progress bar shows."""
        shown = f"{len(self.ended)} of {len(self.courses)} jobs done"
        if not self.losses:
            return shown
        return f"{shown}  loss {sum(self.losses) / len(self.losses):.4g}, worst {max(self.losses):.4g}"

    def advance(self) -> None:
        """Let jobs join where there is room, take a step of each, and let those leave that have ended."""
        begin = time.perf_counter()
        self._join()
        at_work, n_tokens = self.active, [course.n_tokens for course in self.active]
        values, gradients = self._gradients()
        largest = gradients.abs().amax((0, 2)).tolist()
        for course, found, size in zip(at_work, values, largest, strict=True):
            course.error = _fault(course.step, found, size)
        good = [a for a, course in enumerate(at_work) if course.error is None]
        self._leave(self.stack.good, [course.error is not None for course in at_work])
        if good:
            counts, rates = zip(*((course.step + 1, course.lr) for course in self.active), strict=True)
            decays = [course.job.config.weight_decay for course in self.active]
            self.stack.update(gradients[:, good], counts, rates, decays)
            for a, course in enumerate(self.active):
                if course.trained is not None:  # weight decay does not ask for gradients
                    self.stack.gammas[~course.trained, a] = self.start[~course.trained]
        for a in good:
            found = values[a]
            assert isinstance(found, dict)
            at_work[a].took(found)
        self.losses = [course.history[-1]["loss"] for course in self.active]
        self._leave(self.stack.gammas, [course.finished for course in self.active])
        seconds = time.perf_counter() - begin
        for course, n in zip(at_work, n_tokens, strict=True):
            course.seconds += seconds * n / sum(n_tokens)

    def _join(self) -> None:
        waiting = self.courses[len(self.ended) + len(self.active) :]
        room = memory.tokens_at_once(self.decoder) - sum(course.most_tokens for course in self.active)
        joining: list[Course] = []
        for course in waiting:
            room -= course.most_tokens
            if room < 0 and (self.active or joining):
                break
            joining.append(course)
        if joining:
            self.stack.join(AdapterStack.of(self.start, len(joining)))
            self.active = [*self.active, *joining]

    def _gradients(self) -> tuple[list[Values], Tensor]:
        """Of all jobs at work: their values, and gradients [norms, A, N]."""
        found: dict[int, Values] = {}
        gradients = torch.empty_like(self.stack.gammas)
        for shares_passes, run in self._runs.items():
            at = [a for a, course in enumerate(self.active) if course.shares_passes == shares_passes]
            if at:
                courses = [self.active[a] for a in at]
                values, gradients[:, at] = _guarded(run, courses, self.stack.gammas[:, at])
                found |= dict(zip(at, values, strict=True))
        for a, course in enumerate(self.active):
            if course.job.config.ablation.pull:
                away = self.stack.gammas[:, a] - self.start
                gradients[:, a] += course.job.config.ablation.pull * away
        return [found[a] for a in range(len(self.active))], gradients

    def _leave(self, gammas: Tensor, leaves: Sequence[bool]) -> None:
        """Let jobs end with these γ [norms, A, N]."""
        if not any(leaves):
            return
        for a, course in enumerate(self.active):
            if leaves[a]:
                course.gammas = gammas[:, a].cpu()
        stays = [a for a, leaving in enumerate(leaves) if not leaving]
        self.stack.keep(stays)
        self.active = [self.active[a] for a in stays]

    def save(self, checkpoint: Checkpoint) -> None:
        """Write where all jobs are.

        Raises:
            OSError: it can't be written; the checkpoint before it is still there.
        """
        tensors, errors = self.stack.tensors(), {}
        for i, course in enumerate(self.courses):
            if course.gammas is not None:
                tensors[f"ended.{i}"] = course.gammas
            if course.error is not None:
                errors[i] = type(course.error).__name__, str(course.error)
        record = {
            "active": [i for i, course in enumerate(self.courses) if course in self.active],
            "histories": [course.history for course in self.courses],
            "errors": errors,
        }
        checkpoint.write(tensors, record, self.n_taken)

    def load(self, checkpoint: Checkpoint) -> None:
        """Put all jobs to where they were, if there is a checkpoint.

        Raises:
            CheckpointError: the file is damaged, or of other jobs or weights.
        """
        if not checkpoint.path.exists():
            return
        tensors, record = checkpoint.read("active", "histories", "errors")
        for i, (course, history) in enumerate(zip(self.courses, record["histories"], strict=True)):
            course.history = history
            course.gammas = tensors.get(f"ended.{i}")
            if str(i) in record["errors"]:
                kind, message = record["errors"][str(i)]
                course.error = ERRORS[kind](message)
        self.active = [self.courses[i] for i in record["active"]]
        self.stack = AdapterStack(
            **{name: tensors[name].to(self.start.device) for name in self.stack.tensors()}
        )
