"""OFA inside `transformers.Trainer`: its loss, and checkpoints that hold the adapter."""

import os
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments

from ofa.adapter import load_adapter, save_adapter
from ofa.fewshot.tasks import Task, count_truncated
from ofa.inputs import as_texts
from ofa.objective import OFAConfig, objective
from ofa.patch import patch_model
from ofa.scoring import pad
from ofa.states import token_states
from ofa.words import IGNORED

LOGGED = ("cross_entropy", "step_ratio", "sharpness")


def features(
    tokenizer: PreTrainedTokenizerBase, task: Task, rows: Sequence[dict], max_tokens: int
) -> list[dict]:
    """Rows as `OFATrainer` takes them: `input_ids`, `labels`, `example_ids`.

    `labels` is the label word's first token; or, if the task has whole words, a list of all its tokens, and
    `input_ids` ends in all of these but the last.

    Args:
        tokenizer: the model's.
        task: template and label words.
        rows: {"text": str, "label": class number} each: a list or a `datasets.Dataset`.
        max_tokens: the context's length; longer texts lose their beginning, with a warning.

    Raises:
        TypeError: a text is no string.
        ValueError: an unknown label, an empty text, or colliding label words.
    """
    rows = list(rows)
    task.check_labels(rows)
    words = task.target_ids(tokenizer)
    limit = max_tokens - max(map(len, words)) + 1
    prompts = [task.encode(tokenizer, text, limit) for text in as_texts(row["text"] for row in rows)]
    count_truncated(prompts)
    targets = [words[row["label"]] for row in rows]
    return [
        {
            "input_ids": prompt.ids + word[:-1],
            "labels": word if task.whole_words else word[0],
            "example_ids": i,
        }
        for i, (prompt, word) in enumerate(zip(prompts, targets, strict=True))
    ]


def collate(examples: Sequence[dict]) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask` [B, longest], `labels` [B] or [B, L], and `example_ids` [B]."""
    batch = pad([list(example["input_ids"]) for example in examples], torch.device("cpu"))
    labels = [torch.atleast_1d(torch.as_tensor(example["labels"])) for example in examples]
    labels = pad_sequence(labels, batch_first=True, padding_value=IGNORED)
    batch["labels"] = labels if labels.shape[1] > 1 else labels[:, 0]
    batch["example_ids"] = torch.tensor([int(example["example_ids"]) for example in examples])
    return batch


class OFATrainer(Trainer):
    """A `transformers.Trainer` whose loss is OFA's and whose checkpoints are adapters.

    The model is patched if it isn't; γ is all that trains. Data sets hold what `features` makes. In several
    processes the gradients of γ are averaged; give each the same number of examples.

    Args:
        model: a causal language model of a supported family.
        args: `transformers`' arguments; columns are never removed.
        ofa_config: weights and probes; learning rate, epochs and batch size are those of `args`. The probes
            of a step are those of the seed mix(ofa_config.seed, step).
        kwargs: as for `Trainer`.

    Raises:
        ValueError: `args` ask for autocast (`bf16`, `fp16`), under which the loss is not computed.
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
        patch_model(model)
        self.ofa_config = ofa_config or OFAConfig()
        self.loss_is_scaled_for_ga = self.model_accepts_loss_kwargs = False  # the loss is a batch's mean
        self._terms: dict[str, list[float]] = {}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """CE + λ_J J + λ_H H; in evaluation also the prediction tokens' logits [B, V]."""
        lm = self.accelerator.unwrap_model(model).eval()  # as in `fit`: nothing is dropped
        terms = objective(lm, inputs, self.ofa_config, self.state.global_step)
        if return_outputs:
            logits = token_states(lm, inputs, record=False).logits
            return terms.loss, {"loss": terms.loss, "logits": logits}
        for name in LOGGED:
            value = getattr(terms, name)
            if value is not None:
                self._terms.setdefault(name, []).append(value.item())
        return terms.loss

    def training_step(self, *args, **kwargs) -> Tensor:
        """As `Trainer`'s, with γ's gradients averaged: the data-parallel wrapper is not what is called."""
        loss = super().training_step(*args, **kwargs)
        if self.accelerator.num_processes > 1 and self.accelerator.sync_gradients:
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
        save_adapter(self.accelerator.unwrap_model(self.model), folder)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        torch.save(self.args, os.path.join(folder, "training_args.bin"))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_adapter(self.accelerator.unwrap_model(model or self.model), resume_from_checkpoint)

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint)
