"""The methods that train the norm weights γ: LN-tuning, OFA, and OFA as its authors' code has it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial

import torch
from torch import Tensor

from ofa.compare.methods.base import Fitted, Setting
from ofa.compare.trainings import Training
from ofa.config import METHODS, OFAConfig, check_count
from ofa.data.batch import labelled
from ofa.decoder.patch import patch_model, set_gammas
from ofa.loss.objective import objective
from ofa.members import member_configs
from ofa.train.fit_many import fit_many
from ofa.train.job import Job

N_MEASURED = 32  # texts
MEASURES = ("step_ratio", "sharpness")
MEASURED = OFAConfig(lambda_step=1, lambda_sharp=1, n_probes=8)  # any weight that is not 0


@dataclass(frozen=True)
class NormTuningOptions(OFAConfig):
    """A configuration, and how many trainings, each with a seed of its own, γ is the mean of.

    Raises:
        ValueError: `n_members` is no integer of at least 1, or as `OFAConfig`.
    """

    n_members: int = 1

    def __post_init__(self):
        super().__post_init__()
        check_count("n_members", self.n_members)

    def configs(self, seed: int) -> list[OFAConfig]:
        """Of each training; the first has this seed, the second the one after it, and so on."""
        own = {item.name: getattr(self, item.name) for item in fields(OFAConfig)}
        return member_configs(OFAConfig(**{**own, "seed": seed}), self.n_members)


@dataclass(frozen=True)
class NormTuning:
    """Norm weights trained under a configuration."""

    name: str
    options: NormTuningOptions

    @contextmanager
    def fit(self, setting: Setting) -> Iterator[Fitted]:
        """Train in a set of its own, put γ in, and undo on leaving."""
        results = fit_many(setting.model, setting.tokenizer, self._jobs(setting), setting.progress)
        training = Training.of(results)
        with self.trained(setting, training.gammas, training.n_steps) as fitted:
            yield fitted

    def jobs(self, setting: Setting) -> list[Job]:
        """The same trainings as some of a set; none where they have to run alone."""
        return self._jobs(setting) if self.options.terms == "formulas" else []

    @contextmanager
    def trained(self, setting: Setting, gammas: Sequence[Tensor], n_steps: int) -> Iterator[Fitted]:
        """What a training in a set gives: patch, put γ in, and undo on leaving."""
        report = patch_model(setting.model)
        try:
            set_gammas(setting.model, gammas)
            options = self.options
            which = setting.decoder.trained_norms(options.trained_depth, options.ablation.trained_norms)
            sizes = [norm.module.weight.numel() for norm in report.norms]
            n_trainable = int(torch.tensor(sizes)[which].sum())
            yield self._fitted(setting, n_trainable, n_steps)
        finally:
            report.undo()

    def _fitted(self, setting: Setting, n_trainable: int, n_steps: int) -> Fitted:
        return Fitted(setting.scorer(), n_trainable, n_steps, measure=partial(terms_at, setting))

    def _jobs(self, setting: Setting) -> list[Job]:
        given = setting.task, setting.shots
        configs, in_context = self.options.configs(setting.seed), bool(setting.demonstrations)
        return [Job(*given, config, setting.max_steps, in_context) for config in configs]


@torch.no_grad()
def terms_at(setting: Setting, texts: Sequence[str]) -> dict[str, float]:
    """J and H of the model as it is at up to 32 bare prompts; nothing where it can't be probed."""
    task, decoder = setting.task, setting.decoder
    prompts = [task.encode(setting.tokenizer, text, decoder.max_tokens).ids for text in texts[:N_MEASURED]]
    batch = labelled(prompts, [[0]] * len(prompts), decoder.device)  # no term depends on a label
    try:
        found = objective(setting.model, batch, MEASURED)
    except ValueError:  # one layer only, or quantised ones that drop derivatives
        return {}
    return {name: t.item() for name, t in found.terms().items() if t is not None and name in MEASURES}


LN_TUNING, OFA = (NormTuning(name, NormTuningOptions(**vars(own))) for name, own in METHODS.items())
PAPER_CODE = NormTuning("paper-code", NormTuningOptions(**vars(OFAConfig.paper_code())))
