"""Every contender of every case computes what the case's truth says, with the kernels of each backend."""

import pytest
import torch

from benchmarks import cpu
from benchmarks.gpu import headline
from benchmarks.harness import contenders
from benchmarks.harness.case import OURS
from benchmarks.harness.inputs import Inputs
from benchmarks.harness.measure import fault
from benchmarks.harness.traffic import OPERATORS
from benchmarks.harness.truth import expected
from ofa_kernels import native

CASES = {case.name: case for case in (*(case for case, _ in cpu.CASES), *headline.CASES)}
SHAPE = (5, 32)


def kernels(name):
    if name == "native":
        if reason := native.missing():
            pytest.skip(reason)
        return native
    return pytest.importorskip("ofa_kernels.triton.launch")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_others_and_ours_through_autograd_are_right(name, dtype):
    case = CASES[name]
    inputs = Inputs(*SHAPE, dtype, case.k)
    with torch.set_grad_enabled(case.recorded):
        truth = expected(inputs, case.truth)
        for label, make in case.makers.items():
            if label in (contenders.LIGER, contenders.KERNELS_ALONE) or "compile" in label:
                continue
            assert fault(case, label, make(inputs, None), inputs, truth) is None, label


# Triton's interpreter computes bfloat16 wrongly
@pytest.mark.parametrize(
    ("backend", "dtype"), [("native", "float32"), ("native", "bfloat16"), ("triton", "float32")]
)
@pytest.mark.parametrize("name", CASES)
def test_kernels_alone_are_right(name, backend, dtype):
    case = CASES[name]
    inputs = Inputs(*SHAPE, getattr(torch, dtype), case.k)
    with torch.set_grad_enabled(case.recorded):
        truth = expected(inputs, case.truth)
        call = case.makers[contenders.KERNELS_ALONE](inputs, kernels(backend))
        assert fault(case, contenders.KERNELS_ALONE, call, inputs, truth) is None


@pytest.mark.parametrize("name", CASES)
def test_every_case_has_bytes_a_baseline_and_ours(name):
    case = CASES[name]
    assert case.operator in OPERATORS
    assert {case.eager, *OURS} <= set(case.makers)


def test_kernels_alone_need_kernels():
    with pytest.raises(contenders.UnavailableError, match="has no kernels"):
        CASES["forward"].makers[contenders.KERNELS_ALONE](Inputs(2, 4, torch.float32), None)


def test_liger_needs_a_gpu():
    with pytest.raises(contenders.UnavailableError, match="needs a GPU"):
        contenders.liger(torch.ones(4), torch.float32)
