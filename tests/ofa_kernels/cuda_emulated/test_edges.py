"""What the CUDA kernels refuse, where they round, and rows as long as an emulated device takes them."""

import pytest
import torch

from ofa_kernels.structs import STRUCTS
from tests.ofa_kernels.bounds import TYPES, type_names
from tests.ofa_kernels.cuda_emulated.cases import BF16, F16, F32, F64, WEIGHTED, Case
from tests.ofa_kernels.cuda_emulated.checks import check, problem_of, run, same_bits
from tests.ofa_kernels.cuda_emulated.driver import UNSUPPORTED, Device, Memory
from tests.ofa_kernels.cuda_emulated.edges import ROWS, check_root, check_rounding
from tests.ofa_kernels.cuda_emulated.problem import PER_ROW
from tests.ofa_kernels.cuda_emulated.test_parity import operators

LITTLE = [Device(512, shared=99), Device(512, cluster=8, shared=99), Device(64, shared=8), Device(512)]


def refused(library, case, **more):
    """Whether a call that is not taken says so, and writes nothing; `more` are tensors of its struct."""
    problem, _ = problem_of(case)
    problem.inputs |= more
    library.configure(case.device, 1)
    outputs = {name: Memory(*of) for name, of in problem.outputs.items()}
    call = problem.call(case.operator, {name: memory.tensor for name, memory in outputs.items()})
    code = library.run(case.operator, call)
    assert all((memory.bytes[memory.begin : memory.end] == 0xFF).all() for memory in outputs.values())
    return code == UNSUPPORTED, library.workspace(case.operator, call)


@pytest.mark.parametrize("operator", sorted(WEIGHTED))  # the others go through a row in pieces
def test_rows_that_are_too_long(library, operator):
    case = Case(operator, rows=2, columns=64 * 2 * 16 + 1, device=Device(64, cluster=2))
    assert refused(library, case) == (True, -1)


@pytest.mark.parametrize(
    ("operator", "member"),
    [(name, member) for name, members in STRUCTS.items() for member in PER_ROW if member in members.split()],
)
def test_a_weight_or_a_seed_per_row_is_refused(library, operator, member):
    assert refused(library, Case(operator), **{member: torch.zeros(3, dtype=torch.int64)})[0]


@pytest.mark.parametrize("device", LITTLE, ids=str)
@pytest.mark.parametrize("dtype", [F64, F32, BF16], ids=str)
@operators
def test_rows_of_any_length_are_right_or_refused(library, operator, dtype, device):
    """None is launched with more shared memory than there is."""
    taken = []
    for columns in (500, 2048, 4096, 8192):
        case = Case(operator, dtype, rows=1, columns=columns, tangents=2, device=device)
        problem, _ = problem_of(case)
        library.configure(device, 1)
        outputs = {name: Memory(*of).tensor for name, of in problem.outputs.items()}
        if library.workspace(operator, problem.call(operator, outputs)) < 0:
            assert refused(library, case)[0]
        else:
            check(library, case, seeds=(1,))
            taken.append(columns)
    assert device.threads < 512 or (500 if dtype == F64 else 2048) in taken


@pytest.mark.parametrize("types", TYPES, ids=type_names)
def test_rounding_is_that_of_transformers(library, types):
    check_rounding(library, *types)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", [F64, F32, BF16, F16], ids=str)
def test_reciprocal_root_is_right_to_one_unit_in_the_last_place(library, dtype, rows):
    check_root(library, dtype, rows)


@operators
def test_elements_beyond_two_to_the_31(library, operator, tmp_path):
    rows, k, stride = 3, 2, 2**30 + 5
    # a sparse file: only the pages of the few rows are ever there
    far = torch.from_file(str(tmp_path / "far"), shared=True, size=k * rows * stride + 2**20, dtype=BF16)
    case = Case(operator, BF16, BF16, rows=rows, columns=130, tangents=k - operator.startswith("step"))
    problem, _ = problem_of(case)
    near = run(library, case, problem, seed=1)
    for number, (name, t) in enumerate(problem.inputs.items()):
        if t is not None and t.dtype == BF16 and not name.startswith("weight"):
            strides = (rows * stride, stride, 1)[-t.dim() :]
            problem.inputs[name] = far.as_strided(t.shape, strides, 4096 * number).copy_(t)
    got = run(library, case, problem, seed=1)
    assert all(same_bits(got[name], t) for name, t in near.items())
