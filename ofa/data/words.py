"""Labels of several tokens: where these stand in a batch, and their loss.

A batch has `labels` [B], one token each, or [B, L]: a label's tokens, filled up with -100. Then an example's
`input_ids` end in its label's tokens but the last, each of which predicts the next. It may have
`classes` [B, C]: the tokens of all label words, filled up with -100; none, C = 0, where a word has several.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ofa_kernels import accumulation_dtype

# what fills a label that is shorter than others, as in PyTorch's cross-entropy
IGNORED = -100


def label_places(attention_mask: Tensor, labels: Tensor | None = None) -> Tensor:
    """[B, L]: for each token of a label, which real token of the example predicts it; the last if L = 1.

    The first of these is the prediction token. Where a label is shorter than L, its last place is repeated.
    """
    last = attention_mask.sum(-1, keepdim=True) - 1
    if labels is None or labels.dim() == 1:
        return last
    n_more = (labels != IGNORED).sum(-1, keepdim=True) - 1
    return torch.minimum(last - n_more + torch.arange(labels.shape[1], device=last.device), last)


def columns_of(attention_mask: Tensor, places: Tensor) -> Tensor:
    """Where the real tokens at the places [B, L] stand in a padded batch."""
    return torch.searchsorted(attention_mask.cumsum(-1), places + 1)


def check_labels(input_ids: Tensor, mask: Tensor, labels: Tensor | None) -> None:
    """Refuse labels [B, L] that the rows of a batch don't go on with.

    Raises:
        ValueError: they don't; the example is named.
    """
    if labels is None or labels.dim() == 1:
        return
    places = label_places(mask, labels)
    after = input_ids.gather(1, columns_of(mask, places.clamp(min=0)))[:, 1:]
    wrong = (labels[:, 0] == IGNORED) | (places[:, 0] < 0)
    wrong |= ((after != labels[:, :-1]) & (labels[:, 1:] != IGNORED)).any(-1)
    if wrong.any():
        raise ValueError(
            f"example {int(wrong.nonzero()[0])} of the batch: labels [B, L] hold a label's tokens and then "
            f"{IGNORED}, and input_ids must end in all of these tokens but the last"
        )


def cross_entropies(
    logits: Tensor,
    following: Tensor | None,
    labels: Tensor,
    classes: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Each example's cross-entropy [B] over the vocabulary, summed over its label's tokens, or over classes.

    Args:
        logits: [B, V], of the first tokens.
        following: [B, L - 1, V], of the others; None where labels have one.
        labels: [B] or [B, L].
        classes: [B, C], the tokens that a label of one token is told from, filled up with -100. Where it is
            none of them, the cross-entropy is NaN. None for the vocabulary.
        label_smoothing: the share of the target that is spread over all tokens.
    """
    if classes is not None:
        return _over_classes(logits.to(accumulation_dtype(logits)), labels, classes, label_smoothing)
    logits = logits[:, None] if following is None else torch.cat([logits[:, None], following], 1)
    logits = logits.to(accumulation_dtype(logits)).flatten(0, 1)
    of_tokens = F.cross_entropy(
        logits, labels.flatten(), ignore_index=IGNORED, reduction="none", label_smoothing=label_smoothing
    )
    return of_tokens.view(len(labels), -1).sum(1)


def _over_classes(logits: Tensor, labels: Tensor, classes: Tensor, label_smoothing: float) -> Tensor:
    is_class = classes != IGNORED
    chosen = logits.gather(1, classes.clamp(min=0))
    total = chosen.masked_fill(~is_class, -torch.inf).logsumexp(1)
    own = torch.where((classes == labels[:, None]).any(1), logits.gather(1, labels[:, None])[:, 0], torch.nan)
    mean = chosen.masked_fill(~is_class, 0).sum(1) / is_class.sum(1)
    return total - (1 - label_smoothing) * own - label_smoothing * mean


def cross_entropy(
    logits: Tensor, following: Tensor | None, labels: Tensor, classes: Tensor | None = None
) -> Tensor:
    """The mean over examples of `cross_entropies`."""
    return cross_entropies(logits, following, labels, classes).mean()
