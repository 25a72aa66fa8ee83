"""What is asked of the library of the CUDA kernels, what it is told, and what its errors become in Python."""

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ofa_kernels import cuda, dispatch
from ofa_kernels.cuda import calls, library
from ofa_kernels.structs import STRUCTS, struct_format
from tests.ofa_kernels.cuda.recorder import Recorder
from tests.ofa_kernels.native.test_library import structs

pytestmark = pytest.mark.host

INCLUDE = Path(__file__).parents[3] / "csrc" / "include"
OPERATORS, LAUNCH = ((INCLUDE / name).read_text(encoding="utf-8") for name in ("ofa.h", "ofa_cuda.h"))
X, W, DY = torch.randn(3, 70), torch.randn(70), torch.randn(3, 70)
IDS, SEED = torch.arange(3), torch.tensor([5])


@pytest.fixture
def use(monkeypatch):
    """Put a recorder in the library's place."""

    def put(recorder):
        found = recorder.library()
        monkeypatch.setattr(calls, "load", lambda: found)
        return recorder

    return put


def backward(x=X, need_dw=True, rstd=None):
    return calls.rms_norm_backward(x, W, DY.to(x.dtype), None, 1e-6, 0.0, True, need_dw, rstd)


def test_the_launch_is_that_of_the_header():
    (name, (members, packed)), *_ = structs(LAUNCH).items()
    assert (name, members, packed) == ("cuda_launch", library.LAUNCH, struct_format(library.LAUNCH))


def test_every_pointer_that_may_be_absent_and_every_size_is_known():
    members = set(itertools.chain(*(s.split() for s in STRUCTS.values())))
    sizes = set()
    for group in re.findall(r"\n    int64_t (dtype[\w, ]+);", OPERATORS):
        sizes |= set(group.split(", "))
    assert sizes - {"threads", "round_x_hat", "weights"} == library.SIZES and members > library.OPTIONAL


def test_scratch_memory_is_asked_for_once_a_size_a_type_and_what_is_absent(use):
    recorder = use(Recorder(workspace=64))
    rstd = torch.empty(3)
    different = [{}, {"x": X[:2]}, {"x": X.bfloat16()}, {"need_dw": False}, {"rstd": rstd}]
    for options in different * 2:
        backward(**options)
    assert recorder.asked == ["norm_backward"] * len(different)
    workspaces = [where[2] for _, where in recorder.run]
    assert all(workspaces) and not any(address % 16 for address in workspaces)


def test_nothing_is_allocated_where_nothing_is_asked_for(use):
    recorder = use(Recorder())
    for _ in range(2):
        calls.rms_norm_forward(X, W, 1e-6, 0.0, "hf")
    assert recorder.run == [("norm_forward", (0, 0, 0, 0))] * 2


def test_a_seed_in_memory_is_handed_over_by_its_address(use):
    recorder = use(Recorder())
    for seed in (SEED, 5):
        calls.probe_dot(X[None], seed, IDS, 0)
    assert [where[3] for _, where in recorder.run] == [SEED.data_ptr(), 0]


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (1, MemoryError, "no memory for the scratch space of norm_forward"),
        (
            3,
            calls.TooLongError,
            r"norm_forward don't take rows as long as those of \(3, 70\) in torch.float",
        ),
        (4, RuntimeError, "CUDA refused norm_forward on cpu: an illegal address"),
    ],
)
def test_errors_have_names(use, error, kind, message):
    use(Recorder(error=error))
    with pytest.raises(kind, match=message):
        calls.rms_norm_forward(X, W, 1e-6, 0.0, "hf")


def test_rows_too_long_for_the_device_are_never_queued(use):
    recorder = use(Recorder(workspace=-1))
    with pytest.raises(calls.TooLongError, match="unset OFA_BACKEND, or install Triton"):
        backward()
    assert recorder.run == []


@pytest.fixture
def found_at(monkeypatch):
    """Look for the library at a path, again."""

    def look(path):
        monkeypatch.setenv(library.ENVIRONMENT_VARIABLE, str(path))
        dispatch.look_again()
        return cuda.missing()

    yield look
    monkeypatch.delenv(library.ENVIRONMENT_VARIABLE, raising=False)
    dispatch.look_again()


def test_what_is_missing_is_said(found_at, monkeypatch, tmp_path):
    assert found_at(tmp_path / "none.so") == f"OFA_CUDA_LIBRARY={tmp_path / 'none.so'} is no file"
    broken = tmp_path / "broken.so"
    broken.write_text("nothing")
    assert found_at(broken).startswith("does not load: ")
    monkeypatch.setattr(library, "LIBRARY", tmp_path / "_cuda.so")
    monkeypatch.setattr(library, "BUILD_LOG", tmp_path / "_cuda.log")
    assert found_at("") == "not built; run `python -m ofa_kernels.build_cuda` with nvcc on PATH"
    (tmp_path / "_cuda.log").write_text("no nvcc")
    assert found_at("") == f"not built; the compiler's message is in {tmp_path / '_cuda.log'}"
    assert cuda.description() == cuda.missing()


def test_an_old_device_is_refused(monkeypatch):
    real = library.Library({}, "80 90a 100", bytes, False)
    monkeypatch.setattr(library, "load", lambda: real)
    monkeypatch.setattr(library, "capability", lambda device: (7, 5))
    assert cuda.refuses(0) == "the device has compute capability 7.5; the CUDA kernels need 8.0"
    assert cuda.description() == "built for 80 90a 100"


def test_the_emulation_gets_no_memory_of_a_gpu(emulated_cuda, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    reason = dispatch._cuda_refuses(torch.device("cuda", 0), torch.float32)
    assert reason == "the tensor is on cuda:0; the library is emulated, for tests"
    assert dispatch._cuda_refuses(torch.device("cpu"), torch.float32) is None


def test_a_library_for_devices_needs_one(found_at, emulated_library, monkeypatch):
    monkeypatch.setattr(library, "EMULATED", "another word")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert found_at(emulated_library) == "there is no CUDA device"


def test_the_variable_names_the_library_from_the_start(emulated_library):
    code = """
import torch, ofa_kernels
x = torch.randn(3, 70)
truth = torch.nn.functional.rms_norm(x, (70,), eps=1e-6)
print(torch.allclose(ofa_kernels.rms_norm(x, None), truth, atol=1e-6))
print(ofa_kernels.backend_report())
"""
    environment = {**os.environ, library.ENVIRONMENT_VARIABLE: str(emulated_library), "OFA_BACKEND": "cuda"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.startswith("True\n"), done.stderr
    assert "forced by OFA_BACKEND, emulated on the CPU" in done.stdout


def test_a_driver_that_the_library_s_runtime_does_not_know_is_a_reason_not_an_error(monkeypatch):
    if torch.cuda.is_available() or not library.LIBRARY.exists():
        pytest.skip("there is a driver, or no library that was built for one")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    dispatch.look_again()
    try:
        assert str(library.load()).startswith("CUDA refuses it: CUDA driver version is insufficient")
    finally:
        monkeypatch.undo()
        dispatch.look_again()
