"""Implicit in-context learning: demonstrations as vectors that are mixed into every layer's outputs."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from ofa.compare.methods.base import Fitted, Setting
from ofa.compare.methods.peft_training import TrainingOptions, frozen, train_on_shots
from ofa.data.batch import pad
from ofa.decoder.norms import Foreign
from ofa.decoder.view import Decoder
from ofa.passes.own_layers import token_states
from ofa_kernels import accumulation_dtype

INIT = (0.1, 1.0)  # first factors of the context vector and of the output itself
NOISE = 1e-3  # of the output's norm
OPTIONS = TrainingOptions(lr=1e-2, weight_decay=1e-3, epochs=100, batch_size=2)

# takes a layer's number, 0 for attention or 1 for the MLP, and the output [B, T, D]; gives the new output
Change = Callable[[int, int, Tensor], Tensor]


@contextmanager
def outputs_changed(decoder: Decoder, change: Change) -> Iterator[None]:
    """Pass the output of every attention and MLP through `change`."""
    with ExitStack() as stack:
        for i, layer in enumerate(decoder.layers):
            attention = getattr(layer, decoder.family.attention).register_forward_hook(
                lambda _, __, output, i=i: (change(i, 0, output[0]), *output[1:])
            )
            mlp = cast(Foreign, layer).mlp.register_forward_hook(
                lambda _, __, output, i=i: change(i, 1, output)
            )
            stack.enter_context(attention)
            stack.enter_context(mlp)
        yield


@torch.no_grad()
def context_vectors(setting: Setting) -> Tensor:
    """[layers, 2, D], the outputs of attention and MLP at a demonstration's last token, the mean over shots.

    Every demonstration, a prompt with its label word, is run alone.

    Raises:
        ValueError: there are no shots, or a label is unknown.
    """
    decoder, task = setting.decoder, setting.task
    if not setting.shots:
        raise ValueError("context vectors need at least one labelled example, got none")
    task.check_labels(setting.shots)
    weight = decoder.lm.lm_head.weight
    outputs = weight.new_empty(len(setting.shots), len(decoder.layers), 2, weight.shape[1])
    for shot, rows in zip(setting.shots, outputs, strict=True):

        def read(layer: int, part: int, output: Tensor, rows=rows) -> Tensor:
            rows[layer, part] = output[0, -1]
            return output

        labelled = replace(task, template=f"{task.template} {task.label_words[shot['label']]}")
        prompt = labelled.encode(setting.tokenizer, shot["text"], decoder.max_tokens)
        with outputs_changed(decoder, read):
            token_states(decoder, pad([prompt.ids], weight.device), record=False)
    return outputs.mean(0)


def initial_scalars(vectors: Tensor) -> nn.Parameter:
    """[layers, 2, 2], the factors of context vector and output, for attention and MLP."""
    init = torch.tensor(INIT, dtype=accumulation_dtype(vectors), device=vectors.device)
    return nn.Parameter(init.repeat(*vectors.shape[:2], 1))


def injection(vectors: Tensor, scalars: Tensor) -> Change:
    """s₁ · output + s₀ · context vector, at every token."""

    def change(layer: int, part: int, output: Tensor) -> Tensor:
        s0, s1 = scalars[layer, part]
        return s1 * output + s0 * vectors[layer, part]

    return change


def noisy(change: Change, generator: torch.Generator) -> Change:
    """The same, with Gaussian noise whose standard deviation is 1e-3 of the new output's norm."""

    def changed(layer: int, part: int, output: Tensor) -> Tensor:
        output = change(layer, part, output)
        noise = torch.randn(output.shape, generator=generator, dtype=output.dtype, device=output.device)
        return output + NOISE * output.detach().norm(dim=-1, keepdim=True) * noise

    return changed


def calibrate(setting: Setting, vectors: Tensor, scalars: nn.Parameter, options: TrainingOptions) -> int:
    """Train the scalars in place, on the shots' zero-shot prompts under noise; the steps taken.

    The prompts are bare in both protocols: the context vectors stand for the demonstrations.
    """
    generator = torch.Generator(vectors.device).manual_seed(setting.seed)
    change = noisy(injection(vectors, scalars), generator)
    with frozen(setting.model), outputs_changed(setting.decoder, change):
        return train_on_shots(replace(setting, protocol="A"), [scalars], options)


@dataclass(frozen=True)
class I2CL:
    """Context vectors, injected at every token with four trained scalars a layer.

    Li et al. 2024, "Implicit In-context Learning", with the settings of the authors' public code.
    """

    name: str = "i2cl"
    options: TrainingOptions = OPTIONS

    @contextmanager
    def fit(self, setting: Setting) -> Iterator[Fitted]:
        """Read the vectors, calibrate the scalars, and inject until leaving."""
        vectors = context_vectors(setting)
        scalars = initial_scalars(vectors)
        n_steps = calibrate(setting, vectors, scalars, self.options)
        with outputs_changed(setting.decoder, injection(vectors, scalars)):
            yield Fitted(setting.scorer(), scalars.numel(), n_steps)
