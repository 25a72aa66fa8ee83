"""Where the tensors of these tests are: on the GPU, or on one that behaves like it."""

import importlib.util

import pytest
import torch

from tests.fake_gpu import fake_gpu


@pytest.fixture(autouse=True)
def device(request):
    """The device of the tested tensors; without a GPU, those of its backends' tests are on a fake one."""
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    of_cpu = parameters.get("backend") in ("native", "reference")
    if torch.cuda.is_available():
        yield "cuda"
    elif of_cpu or request.node.get_closest_marker("host") or request.path.parent.name == "native":
        yield "cpu"
    else:
        with fake_gpu():
            yield "cuda"


@pytest.fixture(autouse=True, scope="session")
def quick_interpreter():
    """Let the interpreter patch a function that kernels call once, not at every call: half of its time."""
    with pytest.MonkeyPatch.context() as patch:
        if not torch.cuda.is_available() and importlib.util.find_spec("triton") is not None:
            from triton.runtime.interpreter import InterpretedFunction

            original, patched = InterpretedFunction.__call__, set()

            def call(self, *args, **kwargs):
                if self in patched:
                    return self.rewrite()(*args, **kwargs)
                patched.add(self)
                return original(self, *args, **kwargs)

            patch.setattr(InterpretedFunction, "__call__", call)
        yield
