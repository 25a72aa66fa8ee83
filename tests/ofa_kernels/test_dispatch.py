"""Which backend serves what, and what is said where one can't; absent packages are tried in a new process."""

import os
import subprocess
import sys

import pytest
import torch

from ofa_kernels import backend_report, dispatch, native, rademacher, rms_norm
from tests.conftest import WITH_CUDA
from tests.fake_gpu import fake_gpu

BACKENDS = WITH_CUDA


def run(code, **environment):
    """The output of a new Python without Triton's interpreter, whose exit status must be 0."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "OFA_BACKEND")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**inherited, "CUDA_VISIBLE_DEVICES": "", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "call",
    [
        lambda: rms_norm(torch.ones(2, 3), torch.ones(3)),
        lambda: rademacher((2,), 0),
        backend_report,
    ],
    ids=["rms_norm", "rademacher", "backend_report"],
)
def test_unknown_backend_raises(monkeypatch, call):
    monkeypatch.setenv("OFA_BACKEND", "tpu")
    with pytest.raises(ValueError, match="OFA_BACKEND='tpu' is unknown; use cuda, triton, native, reference"):
        call()


def test_empty_variable_is_unset(monkeypatch):
    monkeypatch.setenv("OFA_BACKEND", "")
    assert dispatch.backend_for(torch.ones(1)) == CPU_BEST


CPU_BEST = "reference" if native.missing() else "native"


F8 = torch.float8_e4m3fn


@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [
        ("cuda", torch.float32, "triton"),
        ("cuda", F8, "reference"),
        ("cpu", torch.float32, CPU_BEST),
        ("cpu", F8, "reference"),
        ("meta", torch.float32, "reference"),
    ],
    ids=["gpu", "gpu, unknown type", "cpu", "cpu, unknown type", "meta"],
)
def test_choice_without_the_variable(monkeypatch, device, dtype, expected):
    pytest.importorskip("triton")
    monkeypatch.delenv("OFA_BACKEND", raising=False)
    with fake_gpu():
        assert dispatch.backend_for(torch.ones(2, 8, device=device).to(dtype)) == expected


def test_cuda_is_chosen_for_tensors_on_a_gpu_alone(monkeypatch, emulated_cuda):
    monkeypatch.delenv("OFA_BACKEND", raising=False)
    with fake_gpu():
        assert dispatch.backend_for(torch.ones(2, 8, device="cuda")) == "cuda"
        assert dispatch.backend_for(torch.ones(2, 8)) == CPU_BEST


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_a_forced_backend_says_what_it_refuses(monkeypatch, emulated_cuda, backend):
    pytest.importorskip("triton")
    monkeypatch.setenv("OFA_BACKEND", backend)
    reason = f"OFA_BACKEND={backend} can't run here: no kernel for torch.float8_e4m3fn; unset it"
    with pytest.raises(RuntimeError, match=reason):
        dispatch.backend_for(torch.ones(2, 8).to(F8))


def test_report_has_a_row_per_operator_and_backend(backend):
    report = backend_report()
    kernels = {(operator, name) for operator in dispatch.OPERATORS for name in WITH_CUDA}
    composed = {(operator, "PyTorch") for operator in ("hutchinson_trace", "layer_norm")}
    assert {row[:2] for row in report.rows} == kernels | composed
    states = {row[:2]: row[2] for row in report.rows}
    other = "triton" if backend == "reference" else "reference"
    assert "forced by OFA_BACKEND" in states["rms_norm", backend]
    assert f"not used: OFA_BACKEND={backend}" in states["rms_norm", other]


def test_report_says_what_cuda_serves_and_what_triton(monkeypatch, emulated_cuda):
    pytest.importorskip("triton")
    monkeypatch.delenv("OFA_BACKEND", raising=False)
    monkeypatch.setattr(dispatch, "_ON_CPU", ("cuda",))  # as on a GPU
    states = {backend: state for _, backend, state in backend_report().rows}
    assert "(chosen, emulated on the CPU): calls of fewer than 2,097,152 rows times columns" in states["cuda"]
    assert "32,768 columns and more (backward from 8,192)" in states["cuda"]
    assert "what the CUDA kernels leave" in states["triton"]


def test_report_prints_as_a_table(monkeypatch):
    monkeypatch.delenv("OFA_BACKEND", raising=False)
    report = backend_report()
    lines, groups = str(report).splitlines(), report.by_backend()
    assert len(lines) == 1 + len(groups) < len(report.rows)
    assert lines[0].split() == ["backend", "state", "operators"]
    for line, row in zip(lines[1:], groups, strict=True):
        assert all(cell in line for cell in row)
    starts = {line.index(row[2]) for line, row in zip(lines[1:], groups, strict=True)}
    assert starts == {lines[0].index("operators")}
    assert sorted(operator for *_, operators in groups for operator in operators.split(", ")) == sorted(
        row[0] for row in report.rows
    )


def test_forced_triton_on_a_cpu_tensor_gives_the_reason():
    pytest.importorskip("triton")
    code = """
import torch, ofa_kernels
for call in (lambda: ofa_kernels.rms_norm(torch.ones(2, 3), torch.ones(3)),
             lambda: ofa_kernels.rademacher((2,), 0)):
    try:
        call()
    except RuntimeError as error:
        print(error)
print(ofa_kernels.backend_report())
"""
    out = run(code, OFA_BACKEND="triton")
    assert out.count("OFA_BACKEND=triton can't run here: the tensor is on cpu; Triton needs a GPU") == 2
    assert "forced by OFA_BACKEND, but can't run: the tensor is on cpu" in out


WORKS = """
import torch, ofa_kernels
x, weight = torch.tensor([[3.0, 4.0]], requires_grad=True), torch.ones(2)
ofa_kernels.rms_norm(x, weight, eps=0.0).sum().backward()
assert x.grad.isfinite().all()
assert set(ofa_kernels.rademacher((50,), 1).tolist()) == {-1.0, 1.0}
print(ofa_kernels.backend_report())
"""


def test_without_triton_everything_runs_and_the_report_says_so():
    # an entry of None makes both the import and find_spec behave as if it weren't there
    out = run("import sys; sys.modules['triton'] = None" + WORKS)
    assert "the package triton is not installed" in out
    assert "serves cpu tensors (chosen" in out


def test_a_broken_triton_is_reported_with_its_error(tmp_path):
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text("raise ImportError('libcuda is the wrong one')")
    out = run(WORKS, PYTHONPATH=str(tmp_path))
    assert "triton does not import: ImportError: libcuda is the wrong one" in out


def test_forcing_an_absent_triton_raises():
    code = """
import sys; sys.modules['triton'] = None
import torch, ofa_kernels
try:
    ofa_kernels.rms_norm(torch.ones(2, 3), torch.ones(3))
except RuntimeError as error:
    print(error)
"""
    assert "can't run here: the package triton is not installed" in run(code, OFA_BACKEND="triton")
