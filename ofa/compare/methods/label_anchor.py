"""Label anchors: of the demonstrations only label words and template stay visible."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ofa.compare.methods.base import Fitted, Setting
from ofa.data.batch import pad
from ofa.data.task import FIELD
from ofa.passes.own_layers import token_states
from ofa.scoring import score


def anchors(setting: Setting) -> tuple[list[int], list[int]]:
    """The demonstrations' token ids, and which of them (ascending) hold something of template or label word.

    The first token is always among them: it is where attention goes that goes nowhere.

    Raises:
        ValueError: there are no shots, or a label is unknown.
        NotImplementedError: the tokenizer does not say which characters a token holds.
    """
    task, shots = setting.task, setting.shots
    if not shots:
        raise ValueError("label anchors need at least one labelled example, got none")
    task.check_labels(shots)
    before, after = task.template.split(FIELD)
    is_anchor: list[bool] = []
    for shot in shots:
        # a space belongs to the word that follows it, also if that is the first word of the text
        is_anchor += [character != " " for character in before]
        is_anchor += [False] * len(shot["text"])
        is_anchor += [character != " " for character in f"{after} {task.label_words[shot['label']]}\n"]
    encoded = setting.tokenizer(task.demonstrations(shots), return_offsets_mapping=True)
    spans = enumerate(encoded["offset_mapping"])
    return encoded["input_ids"], [i for i, span in spans if i == 0 or any(is_anchor[slice(*span)])]


class LabelAnchor:
    """Queries attend to the demonstrations' label words and template only.

    Wang et al. 2023, "Label Words are Anchors: An Information Flow Perspective for Understanding In-Context
    Learning": anchor-only context compression. The anchors have seen the whole demonstrations and keep their
    positions.
    """

    name = "label-anchor"

    @contextmanager
    def fit(self, setting: Setting) -> Iterator[Fitted]:
        """Run the demonstrations once; the protocol changes nothing."""
        model, (ids, kept) = setting.model, anchors(setting)
        with torch.no_grad():
            states = token_states(setting.decoder, pad([ids], setting.decoder.device))
        prefix = ids, states.keep(kept)

        def scored(texts, track=iter):
            task, shots = setting.task, setting.shots
            return score(model, setting.tokenizer, task, texts, shots, track, prefix=prefix)

        yield Fitted(scored, notes={"tokens": len(ids), "kept_tokens": len(kept)})
