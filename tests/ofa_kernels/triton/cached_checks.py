"""Remembered launches against Triton's own; test_cached.py runs it, in a process that doesn't interpret."""

import os
import threading
from unittest import mock

os.environ.pop("TRITON_INTERPRET", None)

import torch
from triton import knobs
from triton.compiler import LazyDict
from triton.runtime.jit import JITFunction, KernelInterface

from ofa_kernels.triton import cached, launch, plan
from tests.ofa_kernels.triton.fake_driver import FakeDriver, fake_driver

BF16, F32, I64 = torch.bfloat16, torch.float32, torch.int64
N_ROWS, N_COLS, LAYER, EPS = 5, 256, 3, 1e-6

handed = []
active = fake_driver(lambda *args: handed.append(args))


def bare(args: tuple) -> list:
    """What C is handed, without the hooks and what is for them: remembered launches have none."""
    hooks = (knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook)
    return [None if isinstance(arg, LazyDict) or any(arg is hook for hook in hooks) else arg for arg in args]


def same(one: tuple, other: tuple) -> bool:
    """Whether C is handed the same objects and equal numbers."""

    def alike(a, b):
        if isinstance(a, tuple) and isinstance(b, tuple):
            return len(a) == len(b) and all(map(alike, a, b))
        return a is b or (not isinstance(a, torch.Tensor) and type(a) is type(b) and a == b)

    return alike(tuple(bare(one)), tuple(bare(other)))


def is_remembered(args: tuple) -> bool:
    """Whether a launch went past Triton, which always has hooks to hand over."""
    return not any(arg is knobs.runtime.launch_enter_hook for arg in args)


def at(*sizes: int, dtype: torch.dtype = BF16, skipped: int = 0) -> torch.Tensor:
    """A tensor whose address is a multiple of 16, or `skipped` elements behind one."""
    count = torch.Size(sizes).numel()
    return torch.ones(count + 16, dtype=dtype)[skipped : skipped + count].view(sizes)


def calls(
    skipped: int = 0, dtype: torch.dtype = BF16, n_cols: int = N_COLS, of_weight: torch.dtype = F32
) -> dict:
    """Every launcher, all of its tensors as many elements behind a multiple of 16 bytes."""

    def rows(*sizes, dtype=dtype):
        return at(*sizes, n_cols, dtype=dtype, skipped=skipped)

    x, w, t, v = rows(N_ROWS), rows(dtype=of_weight), rows(2, N_ROWS), rows(2, dtype=of_weight)
    rstd = at(N_ROWS, dtype=F32, skipped=skipped)
    ids, layers = (at(n, dtype=I64, skipped=skipped) for n in (N_ROWS, 2))
    seed = torch.tensor(7)
    lengths = at(1, N_ROWS, dtype=F32, skipped=skipped)
    some = {
        "forward": lambda: launch.rms_norm_forward(x, w, EPS, 0.0, "hf"),
        "forward, not rounded": lambda: launch.rms_norm_forward(x, w, EPS, 0.0, "fp32"),
        "forward, eps": lambda: launch.rms_norm_forward(x, w, 1e-5, 0.0, "hf"),
        "forward, rstd": lambda: launch.rms_norm_forward(x, w, EPS, 1.0, "hf", rstd),
        "add": lambda: launch.add_rms_norm_forward(x, x, w, EPS, 0.0, "hf", rstd),
        "backward": lambda: launch.rms_norm_backward(x, w, x, None, EPS, 0.0, True, True),
        "backward, ds": lambda: launch.rms_norm_backward(x, w, x, x, EPS, 0.0, True, True, rstd),
        "backward, dx": lambda: launch.rms_norm_backward(x, w, x, None, EPS, 0.0, True, False, rstd),
        "backward, dw": lambda: launch.rms_norm_backward(x, w, x, None, EPS, 0.0, False, True, rstd),
        "jvp": lambda: launch.rms_norm_jvp(x, w, t, v, EPS, 0.0),
        "jvp, x": lambda: launch.rms_norm_jvp(x, w, t, None, EPS, 0.0),
        "tangent": lambda: launch.rms_norm_backward_tangent(x, w, x, t, v, t, EPS, 0.0, True),
        "tangent, dy": lambda: launch.rms_norm_backward_tangent(x, w, x, None, None, t, EPS, 0.0, False),
        "jvp backward": lambda: launch.rms_norm_jvp_backward(x, w, t, t, v, EPS, 0.0, True, True),
        "step lengths": lambda: launch.step_lengths(t),
        "step lengths backward": lambda: launch.step_lengths_backward(t, lengths, lengths),
    }
    for name, s in (("", 2**40 + 1), (", seed in memory", seed)):
        some |= {
            f"rademacher{name}": lambda s=s: launch.rademacher(n_cols, ids, 2, layers, s, dtype),
            f"probes{name}": lambda s=s: launch.preconditioned_probes(x, w, EPS, 0.0, s, 2, ids, LAYER),
            f"probes backward{name}": lambda s=s: launch.preconditioned_probes_backward(
                x, w, t, EPS, 0.0, s, ids, LAYER
            ),
            f"probe_dot{name}": lambda s=s: launch.probe_dot(t, s, ids, LAYER),
            f"probe_scale{name}": lambda s=s: launch.probe_scale(at(2, N_ROWS), n_cols, s, ids, LAYER, dtype),
        }
    return some | calls_by_row(rows, dtype, n_cols, of_weight)


def calls_by_row(rows, dtype: torch.dtype, n_cols: int, of_weight: torch.dtype) -> dict:
    """The launchers that take a weight and a seed for each row, with `rows` of `calls`."""
    x, w, t, v = rows(N_ROWS), rows(3, dtype=of_weight), rows(2, N_ROWS), rows(2, 3, dtype=of_weight)
    index, seeds, ids = at(N_ROWS, dtype=I64), at(N_ROWS, dtype=I64, skipped=1), at(N_ROWS, dtype=I64)
    return {
        "forward, index": lambda: launch.rms_norm_forward(x, w, EPS, 0.0, "hf", None, index),
        "backward, index": lambda: launch.rms_norm_backward(x, w, x, None, EPS, 0.0, True, True, None, index),
        "backward, index, dx": lambda: launch.rms_norm_backward(
            x, w, x, None, EPS, 0.0, True, False, None, index
        ),
        "jvp, index": lambda: launch.rms_norm_jvp(x, w, t, v, EPS, 0.0, index),
        "tangent, index": lambda: launch.rms_norm_backward_tangent(x, w, x, t, v, t, EPS, 0.0, True, index),
        "jvp backward, index": lambda: launch.rms_norm_jvp_backward(
            x, w, t, t, v, EPS, 0.0, True, True, index
        ),
        "probes, index": lambda: launch.preconditioned_probes(x, w, EPS, 0.0, seeds, 2, ids, LAYER, index),
        "probes, seeds": lambda: launch.preconditioned_probes(x, w[0], EPS, 0.0, seeds, 2, ids, LAYER),
        "probes backward, index": lambda: launch.preconditioned_probes_backward(
            x, w, t, EPS, 0.0, seeds, ids, LAYER, index
        ),
        "probe_dot, seeds": lambda: launch.probe_dot(t, seeds, ids, LAYER),
        "probe_scale, seeds": lambda: launch.probe_scale(at(2, N_ROWS), n_cols, seeds, ids, LAYER, dtype),
    }


def cut(residency, n_cols, *rest, whole=plan.plan) -> plan.Plan:
    """A plan in two stages, always the same object."""
    key = residency, n_cols, *rest
    if key not in _cut:
        chosen = whole(*key)
        _cut[key] = type(chosen)(128, -(-n_cols // 128), 16, 4, 128, plan.BLOCKS, 2, chosen.unit)
    return _cut[key]


_cut = {}
several = [calls(), calls(skipped=1), calls(skipped=2), calls(dtype=F32), calls(dtype=torch.float64)]
several += [calls(n_cols=300), calls(skipped=8), calls(of_weight=BF16)]


def every_launch_is_what_triton_would_launch():
    """In any order, for every kernel, type, layout and alignment: the same function, grid and arguments."""
    remembered, seen = cached.Builds.launch, {}

    def compare(self, kernel, grid, pointers, integers, given, constants):
        for repeat in (0, 1):
            del handed[:]
            kernel[grid](*pointers, *integers, **constants())
            remembered(self, kernel, grid, pointers, integers, given, constants)
            truth, got = handed
            assert same(truth, got), (kernel.__name__, list(zip(bare(truth), bare(got), strict=True)))
            assert is_remembered(got) or not repeat, kernel.__name__
        seen.setdefault(kernel.__name__, set()).add(truth[4])

    with mock.patch.object(cached.Builds, "launch", compare):
        for choose in (plan.plan, cut):
            with mock.patch.object(plan, "plan", choose):
                for _ in range(2):
                    for some in several:
                        for call in some.values():
                            call()
    assert len(seen) == 14, sorted(seen)
    assert all(len(functions) > 2 for functions in seen.values()), seen


def _forward() -> tuple:
    del handed[:]
    several[0]["forward"]()
    (args,) = handed
    return args


def the_current_stream_is_followed():
    """A remembered launch goes to the stream that is current when it is made."""
    _forward()
    for stream in (7, 0, 9):
        active.streams[-1] = active.streams[0] = stream
        args = _forward()
        assert is_remembered(args) and args[3] == stream
    active.streams.clear()


def another_driver_is_asked_anew():
    """What one driver has loaded is nothing to another."""
    from triton.runtime import driver

    before = _forward()
    driver.set_active(FakeDriver(lambda *args: handed.append(args)))
    for kernel in vars(launch.rms_norm.kernels).values():
        if isinstance(kernel, JITFunction):
            kernel.device_caches.clear()
    assert not is_remembered(_forward())
    after = _forward()
    assert is_remembered(after) and after[4] != before[4]
    driver.set_active(active)
    _forward()


def whoever_takes_part_is_asked():
    """Hooks, also of a kernel, see every launch, and none once they are gone."""
    seen = []
    hook = lambda *args, **options: seen.append(1)  # noqa: E731 - the same object is taken away again
    chain = knobs.runtime.launch_enter_hook
    for add, remove in (
        (lambda: chain.add(hook), lambda: chain.remove(hook)),
        (
            lambda: knobs.runtime.launch_exit_hook.add(hook),
            lambda: knobs.runtime.launch_exit_hook.remove(hook),
        ),
        (
            lambda: setattr(knobs.runtime, "launch_enter_hook", hook),
            lambda: setattr(knobs.runtime, "launch_enter_hook", chain),
        ),
    ):
        assert is_remembered(_forward())
        add()
        assert not is_remembered(_forward())
        remove()
        assert is_remembered(_forward())
    hooks = launch.rms_norm.kernels.rms_norm_forward.pre_run_hooks
    hooks.append(hook)
    assert not is_remembered(_forward())
    assert seen == [1]
    hooks.clear()


def replacements_of_triton_see_every_launch():
    """The compile gate and the benchmarks watch in these two ways."""
    _forward()
    seen = []
    with mock.patch.object(JITFunction, "run", lambda self, *args, **options: seen.append(args)):
        several[0]["forward"]()
    with mock.patch.object(KernelInterface, "__getitem__", lambda *_: lambda *args, **_: seen.append(args)):
        several[0]["forward"]()
    assert len(seen) == 2
    assert is_remembered(_forward())


def an_integer_of_64_bits_takes_its_own_build():
    """Where a stride or a size doesn't fit 32 bits, Triton's types change."""
    kernel, builds = launch.rms_norm.kernels.rms_norm_forward, cached.Builds()
    x, w, y = at(N_ROWS, N_COLS), at(N_COLS, dtype=F32), at(N_ROWS, N_COLS)
    p = plan.plan(plan.FORWARD, N_COLS, BF16, 8)
    constants = {"EPS": EPS, "OFFSET": 0.0, "ROUND_X_HAT": False, **p._constants("row", x)}
    pointers, functions = (x, None, w, None, None, y, None, None), []
    for stride in (N_COLS, 2**31, N_COLS, 2**31):
        del handed[:]
        builds.launch(kernel, (1, 1), pointers, (stride, 0, 8, 0), (), lambda: constants)
        functions.append(handed[0][4])
    assert functions[0] == functions[2] != functions[1] == functions[3]


def a_launch_goes_to_the_device_of_its_tensors():
    """Another device than the current one is made current for as long as it takes."""
    entered = []

    class Elsewhere:
        dtype = BF16

        def get_device(self):
            return 1

        def data_ptr(self):
            return 32

    class Device:
        def __init__(self, index):
            self.index = index

        def __enter__(self):
            entered.append(self.index)
            current.append(self.index)

        def __exit__(self, *_):
            current.pop()

    current, launched = [0], []
    kernel = {(1, 1): lambda *args, **options: launched.append(current[-1])}
    with mock.patch.multiple(torch.cuda, device=Device, current_device=lambda: current[-1]):
        cached.launch(kernel, (1, 1), (Elsewhere(),), (1,))  # pyright: ignore[reportArgumentType]
    assert (entered, launched, current) == ([1], [1], [0])


def threads_may_launch_at_once():
    """Each launch of each thread is enqueued once, with its own arguments."""
    del handed[:]
    cached._BUILDS.clear()
    inputs = [at(N_ROWS, N_COLS, skipped=i % 2) for i in range(8)]
    w = at(N_COLS, dtype=F32)

    def work(x):
        for _ in range(50):
            launch.rms_norm_forward(x, w, EPS, 0.0, "hf")

    threads = [threading.Thread(target=work, args=(x,)) for x in inputs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    flat = [args[-1] if isinstance(args[-1], tuple) else args for args in handed]
    for x in inputs:
        assert sum(any(arg is x for arg in args) for args in flat) == 50
    assert len({args[4] for args in handed}) == 2


CHECKS = [
    every_launch_is_what_triton_would_launch,
    the_current_stream_is_followed,
    another_driver_is_asked_anew,
    whoever_takes_part_is_asked,
    replacements_of_triton_see_every_launch,
    an_integer_of_64_bits_takes_its_own_build,
    a_launch_goes_to_the_device_of_its_tensors,
    threads_may_launch_at_once,
]

if __name__ == "__main__":
    for check in CHECKS:
        check()
        print(check.__name__, flush=True)
