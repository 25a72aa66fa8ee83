"""Which calls are checked: few, such that any two values of any two factors meet in one of them."""

import itertools
import random
from dataclasses import dataclass, fields, replace

import torch

from tests.ofa_kernels.cuda_emulated.driver import Device

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
DTYPES = (F64, F32, BF16, F16)
# where the rows of inputs lie: see `operands.py`; "mixed" gives each input another of the first four
LAYOUTS = ("contiguous", "wider", "shifted", "tangents inside", "rows alike", "mixed")
DEVICES = (Device(512), Device(64), Device(32, cluster=4), Device(32, cluster=16))
LITTLE = Device(64, shared=20)  # where sums of many tangents take several passes


@dataclass(frozen=True)
class Case:
    """One call of an operator."""

    operator: str
    dtype: torch.dtype = F32
    weight_dtype: torch.dtype = F32
    rows: int = 3
    columns: int = 130
    tangents: int = 1  # or probes, or steps
    layout: str = "contiguous"
    device: Device = DEVICES[1]
    absent: tuple[str, ...] = ()  # inputs that are null, outputs that are not wanted
    offset: float = 0.0
    magnitude: tuple[str, float] = ("", 1.0)  # how large one of the inputs is

    def __str__(self):
        values = [getattr(self, field.name) for field in fields(self)]
        texts = (" ".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in values)
        return ",".join(text.removeprefix("torch.") or "all" for text in texts)

    def fits(self):
        """Whether every operator takes rows that long on that device."""
        return self.columns <= self.device.threads * self.device.cluster * (4 if self.dtype == F64 else 8)


def absences(*groups):
    """Every choice of names, of each group any but all at once: ("ds",), then ("dx", "dw") and so on."""
    choices = []
    for names, all_may in groups:
        counts = range(len(names) + all_may)
        choices.append([chosen for n in counts for chosen in itertools.combinations(names, n)])
    return tuple(tuple(itertools.chain(*chosen)) for chosen in itertools.product(*choices))


ABSENT = {
    "norm_forward": ((), ("residual", "s"), ("rstd",), ("residual", "s", "rstd")),
    "norm_backward": absences((("ds",), True), (("rstd",), True), (("dx", "dw"), False)),
    "norm_jvp": absences((("x_dot", "weight_dot"), False)),
    "norm_backward_tangent": absences((("x_dot", "weight_dot", "dy_dot"), False), (("dw_dot",), True)),
    "norm_jvp_backward": absences((("x_dot", "weight_dot"), False), (("dw",), True), (("dw_dot",), True)),
    "rademacher": ((), ("seed_pointer",)),
    "preconditioned_probes": ((), ("seed_pointer",)),
    "preconditioned_probes_backward": ((), ("seed_pointer",)),
    "probe_dot": ((), ("seed_pointer",)),
    "probe_scale": ((), ("seed_pointer",)),
    "step_lengths": ((),),
    "step_lengths_backward": ((),),
}
WITH_TANGENTS = set(ABSENT) - {"norm_forward", "norm_backward"}
WITH_PASSES = {"norm_backward_tangent", "norm_jvp_backward"}
WEIGHTED = {name for name in ABSENT if name.startswith(("norm", "preconditioned"))}


def factors(operator):
    """The values that a case's fields take."""
    return {
        "dtype": DTYPES,
        "weight_dtype": DTYPES if operator in WEIGHTED else (F32,),
        "rows": (1, 2, 5, 9, 18, 40),
        "columns": (1, 7, 33, 130, 500, 513, 1000, 2048),
        "tangents": (1, 3, 10) if operator in WITH_TANGENTS else (1,),
        "layout": LAYOUTS,
        "device": (*DEVICES, LITTLE) if operator in WITH_PASSES else DEVICES,
        "absent": ABSENT[operator],
        "offset": (0.0, 1.0) if operator in WEIGHTED else (0.0,),
    }


def pairwise(operator):
    """Cases in which any two values of two factors meet, if they fit; chosen greedily, always the same."""
    values, choose = factors(operator), random.Random(operator)

    def case_of(chosen):
        return replace(Case(operator), **chosen)

    def pairs_of(chosen):
        return set(itertools.combinations(chosen.items(), 2))

    missing = {
        (one, other)
        for (a, all_a), (b, all_b) in itertools.combinations(values.items(), 2)
        for one, other in itertools.product(((a, v) for v in all_a), ((b, v) for v in all_b))
    }
    order = sorted(missing, key=str)  # a set's own order is another in every process
    cases = []
    while missing:
        first = next(pair for pair in order if pair in missing)
        candidates = []
        for _ in range(30):
            chosen = {name: choose.choice(of) for name, of in values.items()} | dict(first)
            if case_of(chosen).fits():
                candidates.append(chosen)
        if not candidates:
            missing.remove(first)
            continue
        best = max(candidates, key=lambda chosen: len(pairs_of(chosen) & missing))
        missing -= pairs_of(best)
        cases.append(case_of(best))
    return cases
