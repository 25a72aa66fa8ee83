"""OFA inside `transformers.Trainer`: its loss, and checkpoints that hold the adapter."""

import os

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from ofa.config import DEFAULT_METHOD, METHODS, OFAConfig
from ofa.data.batch import collate
from ofa.decoder.patch import patch_model
from ofa.decoder.view import Decoder
from ofa.loss.objective import objective
from ofa.passes.own_layers import token_states
from ofa.save.adapter import load_adapter, save_adapter


class OFATrainer(Trainer):
    """A `transformers.Trainer` whose loss is OFA's and whose checkpoints are adapters.

    The model is patched if it isn't; γ is all that trains. Data sets hold what `features` makes. In several
    processes the gradients of γ are averaged; give each the same number of examples.

    Args:
        model: a causal language model of a supported family.
        args: `transformers`' arguments; columns are never removed.
        ofa_config: weights, probes, what the loss is over and which norms are trained; None for those of the
            default method. Learning rate, epochs and batch size come from `args`, and the probes of a step
            from the seed mix(ofa_config.seed, step).
        kwargs: as for `Trainer`.

    Raises:
        ValueError: `args` ask for autocast (`bf16`, `fp16`), under which the loss is not computed; or
            `ofa_config` for CUDA graphs.
    """

    def __init__(
        self, model: nn.Module, args: TrainingArguments, ofa_config: OFAConfig | None = None, **kwargs
    ):
        args.remove_unused_columns = False  # example_ids is no argument of the model's
        super().__init__(model, args, **{"data_collator": collate, **kwargs})
        if self.accelerator.mixed_precision != "no":
            raise ValueError(
                f"{self.accelerator.mixed_precision}=True asks for autocast, and the loss is computed in the "
                "model's own type; leave it out, and load the model in bfloat16 "
                "(ofa.models.load(name, torch.bfloat16)): γ stays in float32"
            )
        if ofa_config is not None and ofa_config.cuda_graph:
            raise ValueError(
                "cuda_graph=True, but Trainer takes its steps itself, and they can't be captured; leave it "
                "out, or use ofa.fit"
            )
        self.ofa_config = ofa_config or METHODS[DEFAULT_METHOD]
        self._patch(model)
        self.loss_is_scaled_for_ga = self.model_accepts_loss_kwargs = False  # the loss is a batch's mean
        self._terms: dict[str, list[float]] = {}

    def _patch(self, model: nn.Module) -> None:
        """Put the norms in, and let those train that are to be trained."""
        patch_model(model).train_only(Decoder.of(model).trained_norms(self.ofa_config.trained_depth))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """CE + λ_J J + λ_H H; in evaluation also the prediction tokens' logits [B, V]."""
        lm = self.accelerator.unwrap_model(model).eval()  # as in `fit`: nothing is dropped
        computed = objective(lm, inputs, self.ofa_config, self.state.global_step)
        if return_outputs:
            logits = token_states(Decoder.of(lm), inputs, record=False).logits
            return computed.loss, {"loss": computed.loss, "logits": logits}
        for name, value in computed.terms().items():
            if value is not None:
                self._terms.setdefault(name, []).append(value.item())
        return computed.loss

    def training_step(self, *args, **kwargs) -> Tensor:
        """As in `Trainer`, with γ's gradients averaged, since the loss bypasses the data-parallel wrapper."""
        loss = super().training_step(*args, **kwargs)
        if self.accelerator.num_processes > 1 and self.accelerator.sync_gradients:
            assert self.model is not None  # it is an argument of the constructor
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    torch.distributed.all_reduce(parameter.grad)
                    parameter.grad /= self.accelerator.num_processes
        return loss

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """With the means of the loss's terms since the last time."""
        if "loss" in logs:
            logs |= {name: sum(values) / len(values) for name, values in self._terms.items()}
            self._terms = {}
        super().log(logs, *args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = output_dir or self.args.output_dir
        assert folder is not None  # `TrainingArguments` has a default
        save_adapter(self.accelerator.unwrap_model(self.model), folder)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        torch.save(self.args, os.path.join(folder, "training_args.bin"))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        lm = self.accelerator.unwrap_model(model or self.model)
        load_adapter(lm, resume_from_checkpoint)
        self._patch(lm)

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        assert best is not None  # `Trainer` asks only where there is one
        self._load_from_checkpoint(best)
