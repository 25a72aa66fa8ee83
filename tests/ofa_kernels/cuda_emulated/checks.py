"""One case: run on the emulated device under several orders of its threads, and held against float64."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from tests.ofa_kernels.bounds import assert_within
from tests.ofa_kernels.cuda_emulated.driver import DTYPES, OK, Memory, call_of
from tests.ofa_kernels.cuda_emulated.operands import Operands

SEEDS = (1, 2)


@dataclass
class Problem:
    """What an operator is called with, what it has to write, and what that must be."""

    sizes: dict[str, float]
    inputs: dict[str, torch.Tensor | None]
    outputs: dict[str, tuple]  # name -> shape and type, of those that are wanted
    check: Callable[[dict[str, torch.Tensor]], None]  # of the outputs, by name
    seed: torch.Tensor | None = None  # on the device
    unwanted: tuple[str, ...] = field(default=())

    def call(self, operator, outputs):
        return call_of(operator, self.sizes, self.inputs | outputs | dict.fromkeys(self.unwanted))


def problem_of(case):
    """The case's problem and its operands."""
    from tests.ofa_kernels.cuda_emulated import norms, probes, steps

    operands = Operands(case)
    builder = (norms.PROBLEMS | probes.PROBLEMS | steps.PROBLEMS)[case.operator]
    problem = builder(case, operands)
    problem.sizes |= {
        "dtype": DTYPES[case.dtype],
        "weight_dtype": DTYPES[case.weight_dtype],
        "threads": 1,
        "columns": case.columns,
    }
    problem.unwanted = tuple(name for name in problem.outputs if name in case.absent)
    problem.outputs = {name: of for name, of in problem.outputs.items() if name not in case.absent}
    return problem, operands


def run(library, case, problem, seed):
    """The outputs of one run, none of which wrote where it must not."""
    library.configure(case.device, seed)
    shift = case.layout in ("shifted", "mixed")
    outputs = {name: Memory(*of, shift) for name, of in problem.outputs.items()}
    tensors = {name: memory.tensor for name, memory in outputs.items()}
    call = problem.call(case.operator, tensors)
    n_bytes = library.workspace(case.operator, call)
    assert n_bytes >= 0, "rows that long are taken"
    workspace = Memory((n_bytes,), torch.uint8)
    assert library.run(case.operator, call, workspace.tensor, problem.seed) == OK
    for name, memory in (outputs | {"the workspace": workspace}).items():
        memory.check(name)
    return tensors


def same_bits(a, b):
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def check(library, case, seeds=SEEDS):
    """Whether a case is right, whatever the order in which its threads run."""
    problem, operands = problem_of(case)
    first = None
    for seed in seeds:
        got = run(library, case, problem, seed)
        operands.check_unwritten()
        first = first or got
        for name, t in got.items():
            assert same_bits(t, first[name]), f"{name} depends on the order of threads"
    problem.check(first)


def within(got, truth, scale, like, *roundings, sums=1, terms=0):
    """`assert_within`, unless terms that cancel may be infinite in the type of the result."""
    assert not got.isnan().any(), "NaN"
    if not scale.numel() or scale.max() < torch.finfo(got.dtype).max / 8:
        assert_within(got, truth, scale, like, *roundings, sums=sums, terms=terms)
