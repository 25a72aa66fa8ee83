"""What can be varied of the objective besides its numbers, to see what each part is good for."""

import math
from dataclasses import dataclass

CHOICES = {
    "ratio_form": ("plain", "log"),
    "trace_form": ("plain", "positive", "relative"),
    "p_norm": ("own", "attention"),
    "trained_norms": ("all", "p", "attention"),
    "lambda_schedule": ("constant", "decaying"),
    "lambda_scale": ("loss", "gradient"),
}


@dataclass(frozen=True)
class Ablation:
    """Other readings of the objective; the defaults are the method's own. docs/ablation.md has the results.

    `ofa.fit_many`, and so `ofa compare`, trains with them where the model has a stacked form; everything else
    refuses them.

    Attributes:
        label_smoothing: this share of the target is spread over all tokens that the cross-entropy is over
            (Szegedy et al. 2016, section 7).
        ratio_form: J sums the step ratios (`"plain"`) or their logarithms (`"log"`).
        trace_form: H is the mean of the layers' H_t (`"plain"`), of their `"positive"` parts, or of what they
            are `"relative"` to their present size: H_t over the mean |H_t| of the job's examples in the pass,
            which no gradient goes through.
        first_layer: J and H begin at this layer.
        p_norm: P has the γ of the family's `"own"` norm, or of the one before `"attention"`.
        trained_norms: `"all"`, those of the family's P (`"p"`), or those before `"attention"`; the final norm
            is none of the last two.
        lambda_schedule: both λ stay `"constant"`, or are `"decaying"` to 0 along half a cosine.
        lambda_scale: a λ is the weight of its term in the `"loss"`, or the length of the term's `"gradient"`
            over that of the cross-entropy's at every step. Then the loss in a history is still the sum.
        pull: κ of κ/2 ‖γ - γ0‖² in the loss, with the γ0 that training began with (Li et al. 2018, L2-SP).

    Raises:
        ValueError: a value is none of the choices, or out of its range.
    """

    label_smoothing: float = 0.0
    ratio_form: str = "plain"
    trace_form: str = "plain"
    first_layer: int = 1
    p_norm: str = "own"
    trained_norms: str = "all"
    lambda_schedule: str = "constant"
    lambda_scale: str = "loss"
    pull: float = 0.0

    def __post_init__(self):
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {choices}, got {getattr(self, name)!r}")
        if not isinstance(self.first_layer, int) or self.first_layer < 1:
            raise ValueError(f"first_layer must be an integer of at least 1, got {self.first_layer}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be at least 0 and below 1, got {self.label_smoothing}")
        if not 0 <= self.pull < math.inf:
            raise ValueError(f"pull must be finite and not negative, got {self.pull}")


AS_IT_IS = Ablation()
