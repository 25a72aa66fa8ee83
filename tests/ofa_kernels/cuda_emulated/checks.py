"""One case: run on the emulated device under several orders of its threads, and held against float64."""

import torch

from ofa_kernels.structs import DTYPES
from tests.ofa_kernels.cuda_emulated import norms, probes, steps
from tests.ofa_kernels.cuda_emulated.driver import OK, Memory
from tests.ofa_kernels.cuda_emulated.operands import Operands

SEEDS = (1, 2)
PROBLEMS = norms.PROBLEMS | probes.PROBLEMS | steps.PROBLEMS


def problem_of(case):
    """The case's problem and its operands."""
    operands = Operands(case)
    problem = PROBLEMS[case.operator](case, operands)
    problem.sizes |= {
        "dtype": DTYPES[case.dtype],
        "weight_dtype": DTYPES[case.weight_dtype],
        "threads": 1,
        "columns": case.columns,
        "weights": 1,
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
