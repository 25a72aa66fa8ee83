"""Which calls the CUDA kernels take where Triton is there too, and that both get the same arguments."""

import pytest
import torch

from ofa_kernels import cuda
from ofa_kernels.cuda import calls
from tests.ofa_kernels.cuda.recorder import Recorder

launch = pytest.importorskip("ofa_kernels.triton.launch")
pytestmark = pytest.mark.host

BF16, EPS = torch.bfloat16, 1e-6
FEW, MANY = (64, 4096), (8192, 4096)
LONG, LONGER = (1024, 8192), (1024, 32768)


def empty(*shape, dtype=BF16):
    """Sizes without memory."""
    return torch.empty(shape, dtype=dtype, device="meta")


def norm_arguments(rows, columns):
    """What each norm's function takes."""
    x, w, k = empty(rows, columns), empty(columns), empty(2, rows, columns)
    return {
        "rms_norm_forward": (x, w, EPS, 0.0, "hf"),
        "add_rms_norm_forward": (x, x, w, EPS, 0.0, "hf"),
        "rms_norm_backward": (x, w, x, None, EPS, 0.0, True, True),
        "rms_norm_jvp": (x, w, k, None, EPS, 0.0),
        "rms_norm_backward_tangent": (x, w, x, k, None, k, EPS, 0.0, True),
        "rms_norm_jvp_backward": (x, w, k, k, None, EPS, 0.0, True, True),
    }


def other_arguments(rows, columns):
    """What each of the other functions takes."""
    ids, layers = empty(rows, dtype=torch.int64), empty(2, dtype=torch.int64)
    z, w, t = empty(rows, columns), empty(columns), empty(8, rows, columns)
    return {
        "rademacher": (columns, ids, 8, layers, 5, BF16),
        "preconditioned_probes": (z, w, EPS, 0.0, 5, 8, ids, 1),
        "preconditioned_probes_backward": (z, w, t, EPS, 0.0, 5, ids, 1),
        "probe_dot": (t, 5, ids, 1),
        "probe_scale": (empty(8, rows, dtype=torch.float32), columns, 5, ids, 1, BF16),
        "step_lengths": (empty(2, rows // 2, columns),),
        "step_lengths_backward": (empty(2, rows // 2, columns), empty(1, rows // 2), empty(1, rows // 2)),
    }


def arguments(size):
    return {**norm_arguments(*size), **other_arguments(*size)}


@pytest.fixture
def served(monkeypatch):
    """Who serves a call, on a device with these clusters and a library that answers so."""

    def by(name, size, capability=(9, 0), workspace=0):
        recorder, handed_over = Recorder(workspace), []
        library = recorder.library()
        monkeypatch.setattr(calls, "load", lambda: library)
        monkeypatch.setattr(cuda, "capability", lambda device: capability)
        monkeypatch.setattr(launch, name, lambda *given: handed_over.append(given))
        given = arguments(size)[name]
        getattr(cuda, name)(*given)
        assert len(recorder.run) + len(handed_over) == 1 and handed_over in ([], [given])
        return "triton" if handed_over else "cuda"

    return by


names = pytest.mark.parametrize("name", arguments((2, 4)))
ALWAYS = ("rms_norm_backward_tangent", "rms_norm_jvp_backward")


@names
def test_few_rows_go_to_cuda(served, name):
    assert served(name, FEW) == "cuda"


@names
def test_many_short_rows_go_to_triton_but_for_tangents(served, name):
    assert served(name, MANY) == ("cuda" if name in ALWAYS else "triton")


@pytest.mark.parametrize("capability", [(8, 6), (9, 0), (10, 0)], ids=str)
@names
def test_long_rows_go_to_cuda_where_there_are_clusters(served, name, capability):
    for size, taken in ((LONG, ["rms_norm_backward"]), (LONGER, cuda.CLUSTERED_FROM)):
        clustered = name in taken and capability >= (9, 0)
        assert served(name, size, capability) == ("cuda" if name in ALWAYS or clustered else "triton")


@names
def test_rows_too_long_for_the_library_go_to_triton(served, name):
    assert served(name, FEW, workspace=-1) == "triton"


BY_ROW = [name for name in norm_arguments(2, 4)] + ["preconditioned_probes", "preconditioned_probes_backward"]


@pytest.mark.parametrize("name", BY_ROW)
def test_weights_by_row_go_to_triton(monkeypatch, name):
    given, index, handed_over = arguments(FEW)[name], empty(FEW[0], dtype=torch.int64), []
    monkeypatch.setattr(launch, name, lambda *given, index: handed_over.append((given, index)))
    getattr(cuda, name)(*given, index=index)
    ((got, of_rows),) = handed_over
    assert got == given and of_rows is index
    assert cuda.TAKES_INDEX and launch.TAKES_INDEX and not hasattr(calls, "TAKES_INDEX")


@pytest.mark.parametrize("name", calls.SEED_AT)
def test_seeds_by_row_go_to_triton_and_without_it_to_the_formulas(monkeypatch, name):
    seeds, at = empty(FEW[0], dtype=torch.int64), calls.SEED_AT[name]
    given = list(arguments(FEW)[name])
    assert given[at] == 5
    given[at] = seeds
    handed_over = []
    monkeypatch.setattr(launch, name, lambda *given: handed_over.append(given))
    getattr(cuda, name)(*given)
    assert handed_over[0][at] is seeds
    recorder = Recorder(0)
    monkeypatch.setattr(calls, "load", recorder.library)
    composed = getattr(calls, name)(*given)
    assert recorder.run == [] and all(
        t.is_meta for t in (composed if type(composed) is tuple else [composed])
    )
    given[at] = seeds[:1]
    getattr(calls, name)(*given)
    assert len(recorder.run) == 1


def test_every_function_of_triton_is_there():
    functions = {name for name in launch.__all__ if callable(getattr(launch, name))}
    assert functions == set(arguments((2, 4)))
    assert functions <= set(cuda.__all__) and functions <= set(calls.__all__)
