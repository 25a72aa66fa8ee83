"""The losses and gradients of many jobs at their next steps."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from ofa.data.batch import labelled, padded
from ofa.decoder.view import Decoder
from ofa.loss.by_job import JobExamples, job_objectives
from ofa.loss.objective import TERMS, n_probes_at
from ofa.passes.row_weights import RowWeights
from ofa.train import memory
from ofa.train.course import Course
from ofa.train.fit import passes_of
from ofa.train.step import summed
from ofa.train.term_gradients import TermGradients

# of each job the loss and its terms by name, or what forbids them
Values: TypeAlias = dict[str, float | None] | ValueError
# jobs, γ [norms, jobs, N] -> the values of each, gradients [norms, jobs, N]
Gradients: TypeAlias = Callable[[Sequence[Course], Tensor], tuple[Sequence[Values], Tensor]]


def shared_passes(decoder: Decoder) -> Gradients:
    """Gradients from passes that have examples of many jobs, as many as fit the memory.

    In a pass all jobs have the same number of probes, or none, label words of one token, or of several, and
    the same norm as P.
    """

    def kind(course: Course) -> tuple[int, bool, str]:
        several = any(len(word) > 1 for word in course.examples.words)
        config = course.job.config
        return n_probes_at(config, course.step), several, config.ablation.p_norm

    def gradients(courses: Sequence[Course], gammas: Tensor) -> tuple[list[Values], Tensor]:
        leaf = gammas.detach().contiguous().requires_grad_()
        total, sums = TermGradients(courses, leaf), [Counter() for _ in courses]
        kinds: dict[tuple[int, bool, str], list[tuple[int, int]]] = {}
        for a, course in enumerate(courses):
            kinds.setdefault(kind(course), []).extend((a, row) for row in course.rows)
        for (*_, p_norm), rows in kinds.items():
            lengths = [courses[a].examples.lengths[row] for a, row in rows]
            for part in memory.parts(rows, lengths, memory.tokens_at_once(decoder)):
                _one_pass(decoder.with_preconditioner(p_norm), courses, part, total, sums)
        return [_computed(course, of_job) for course, of_job in zip(courses, sums, strict=True)], total.sum()

    return gradients


def _one_pass(
    decoder: Decoder,
    courses: Sequence[Course],
    part: Sequence[tuple[int, int]],  # (job, example), job by job
    total: TermGradients,
    sums: Sequence[Counter],  # of each job the values until now, which those of this pass are added to
) -> None:
    """Add the gradients of the jobs' losses, each by the share of the job's batch that is in the pass."""
    device, examples = decoder.device, [(courses[a].examples, row) for a, row in part]
    prompts, words = [e.prompts[row] for e, row in examples], [e.words[row] for e, row in examples]
    batch = {
        **labelled(prompts, words, device),
        "classes": padded([e.classes for e, _ in examples], device),
        "example_ids": torch.tensor([row for _, row in part], device=device),
    }
    which = torch.tensor([a for a, _ in part], device=device)
    sizes = Counter(a for a, _ in part)  # in the order of the jobs
    jobs = [JobExamples(courses[a].config, courses[a].step, size) for a, size in sizes.items()]
    terms = job_objectives(decoder, batch, RowWeights(total.gammas.unbind(), which), jobs)
    shares = [size / len(courses[a].rows) for a, size in sizes.items()]
    total.add(terms, list(sizes), shares)
    named = {name: t for name, t in {"loss": terms.loss, **terms.terms()}.items() if t is not None}
    columns = torch.stack(list(named.values()), 1).tolist()
    for a, share, numbers in zip(sizes, shares, columns, strict=True):
        for name, number in zip(named, numbers, strict=True):
            sums[a][name] += share * number


def _computed(course: Course, sums: Counter) -> dict[str, float | None]:
    """The loss and its terms, None for those that the job does without at this step."""
    config = course.config
    names = {"loss", *TERMS}
    if config.lambda_step == 0:
        names.remove("step_ratio")
    if not n_probes_at(config, course.step):
        names.remove("sharpness")
    return {name: sums[name] if name in names else None for name in ("loss", *TERMS)}


def own_passes(model: nn.Module, weights: Sequence[nn.Parameter]) -> Gradients:
    """Gradients from passes of one job after the other, whose γ is put into the model."""

    def gradients(courses: Sequence[Course], gammas: Tensor) -> tuple[list[Values], Tensor]:
        total, values = torch.zeros_like(gammas), []
        for a, course in enumerate(courses):
            with torch.no_grad():
                for weight, gamma in zip(weights, gammas[:, a], strict=True):
                    weight.copy_(gamma)
            passes = passes_of(model, course.examples, course.job.config)(course.step, course.rows)
            trained = [i for i in range(len(weights)) if course.trained is None or course.trained[i]]
            terms, of_norms = summed(passes, [weights[i] for i in trained])
            total[trained, a] = torch.stack([gradient.to(total.device) for gradient in of_norms])
            values.append(terms)
        return values, total

    return gradients
