"""The plans that are predicted with are those of the kernels."""

import ctypes
import itertools
import re
from functools import cache

import pytest

from benchmarks.gpu.headline import SHAPES
from benchmarks.prediction import builds, cuda, tables, triton
from benchmarks.prediction.cards import CARDS
from benchmarks.prediction.cuda import Device
from tools import emulation

H100 = next(card for card in CARDS if card.name == "H100")
DTYPES = {2: 2, 4: 1, 8: 0}  # of csrc/include/ofa.h, by the bytes of a value
DEVICES = (
    Device(132, 512, 8, 227 * 1024, 228 * 1024),
    Device(108, 512, 1, 163 * 1024, 164 * 1024),
    Device(4, 64, 4, 48 * 1024, 49 * 1024),
)
ROWS = (1, 2, 7, 8, 9, 33, 64, 65, 4096)
COLUMNS = (8, 577, 4096, 8192, 16384, 32768, 65536)


@pytest.fixture(scope="module")
def library():
    try:
        return ctypes.CDLL(str(emulation.library()))
    except emulation.UnavailableError as reason:
        pytest.skip(str(reason))


@cache
def members(name):
    """The members of an operator's struct, all 8 bytes wide, from the header."""
    text = re.sub(r"(?s)/\*.*?\*/", "", (emulation.CSRC / "include" / "ofa.h").read_text(encoding="utf-8"))
    body = text.split(f"}} ofa_{name};")[0].rpartition("typedef struct {")[2]
    return re.findall(r"(\w+)(?=[,;])", body)


def workspace(library, name, **values):
    """What the library asks for a call of these sizes; pointers that are not named are null."""
    assert values.keys() <= set(members(name))
    call = (ctypes.c_int64 * len(members(name)))(*(values.get(member, 0) for member in members(name)))
    function = getattr(library, f"ofa_cuda_workspace_{name}")
    function.restype, function.argtypes = ctypes.c_int64, (ctypes.c_void_p, ctypes.c_int64)
    return function(call, 0)


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: str(device.multiprocessors))
@pytest.mark.parametrize("itemsize", DTYPES)
def test_cuda_plans_are_the_librarys(library, device, itemsize):
    """By the scratch memory that calls ask for, which is the teams' sums, or by their being refused."""
    library.ofa_emulation_configure(
        *map(ctypes.c_int64, (device.multiprocessors, device.threads, device.cluster, device.shared_block, 0))
    )
    of_sum, asked = max(itemsize, 4), set()
    for rows, columns in itertools.product(ROWS, COLUMNS):
        sizes = {"dtype": DTYPES[itemsize], "weight_dtype": 1, "rows": rows, "columns": columns}
        plan = cuda.plan_forward(device, rows, columns, itemsize)
        assert workspace(library, "norm_forward", **sizes) == (0 if plan else -1), (rows, columns)
        plan = cuda.plan_jvp(device, rows, columns, itemsize)
        assert workspace(library, "norm_jvp", **sizes, tangents=1) == (0 if plan else -1), (rows, columns)
        plan = cuda.plan_backward(device, rows, columns, itemsize)
        expected = plan.partials() * columns * of_sum if plan else -1
        assert workspace(library, "norm_backward", **sizes, dw=1) == expected, (rows, columns)
        for k in (1, 3, 16):
            plan = cuda.plan_tangents(device, rows, columns, itemsize, k)
            expected = plan.partials() * k * columns * of_sum if plan else -1
            found = workspace(library, "norm_backward_tangent", **sizes, tangents=k, dw_dot=1)
            assert found == expected, (rows, columns, k)
            asked.add(found)
    assert len(asked) >= 8 and min(asked) <= 0


def test_triton_launches_are_the_plans():
    one = triton.backward(H100, 4096, 4096)
    assert [launch.kernel for launch in one] == ["rms_norm_backward", "sum_partials"]
    stages = triton.backward(H100, 512, 65536)
    assert [launch.kernel for launch in stages] == ["rms_norm_backward"] * 2 + ["sum_partials"]
    assert stages[0].work.written == 0 and stages[1].work.written > 0
    moved = sum((launch.work.read + launch.work.written) * launch.rows for launch in stages[:2])
    assert moved == 5 * 512 * 65536 * 2  # x and dy twice, dx


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kernels", tables.KERNELS)
def test_no_share_is_above_that_of_the_bytes_that_are_moved(shape, kernels):
    """Launches move what the operator can't avoid, or more; only a copy's rounding makes more of it."""
    for card in CARDS:
        for operator in tables.operators(cuda):
            found = tables.share(operator, tables.KERNELS[kernels], card, shape)
            if found:
                assert 0.05 < found[0] <= 1.005, (card.name, operator)


def test_registers_come_from_the_committed_tables():
    assert 32 <= builds.of_cuda("rms_norm.forward", "bfloat16", "90a") <= 128
    registers, shared = builds.of_triton("rms_norm_forward", "row, 4096 × 8", "90")
    assert 32 <= registers <= 128 and shared > 0
    with pytest.raises(KeyError, match="no unheard_of"):
        builds.of_cuda("unheard_of", "float", "80")
    with pytest.raises(KeyError, match="no rms_norm_forward row, 3"):
        builds.of_triton("rms_norm_forward", "row, 3 × 1", "80")
