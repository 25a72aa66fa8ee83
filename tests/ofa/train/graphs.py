"""What stands in for CUDA graphs where there is no GPU, and what watches the work that is captured."""

from contextlib import nullcontext

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ofa.train import captured
from ofa.train import fit as trainer
from tests.fake_gpu import WAITING

# what Python's numbers become when they are copied to the device
FROM_HOST = {"lift_fresh", "is_nonzero", "item"}


class Called:
    """Stands for graphs: a replay calls the work, within a context of the test's."""

    def __init__(self, watch):
        self.watch, self.n_runs, self.n_replays, self.n_captures = watch, 0, 0, 0

    def _call(self, work):
        with self.watch(work):
            work()

    def run(self, work):
        self.n_runs += 1
        self._call(work)

    def capture(self, work):
        self.n_captures += 1

        def replay():
            self.n_replays += 1
            self._call(work)

        return replay


def stand_in(monkeypatch, watch=lambda _: nullcontext(), rounding=(1, 1)) -> Called:
    """Let `ofa.fit` capture on any device; batches keep their shapes unless they are to be rounded up."""
    graphs = Called(watch)
    monkeypatch.setattr(trainer, "why_not_captured", lambda *_: None)
    monkeypatch.setattr(trainer, "CudaGraphs", lambda _: graphs)
    for name, value in zip(("ROWS", "PLACES"), rounding, strict=True):
        monkeypatch.setattr(captured, name, value)
    return graphs


class Recorder(TorchDispatchMode):
    """What one piece of work launches: a replay is right only if it is the same the next time.

    Attributes:
        launches: every kernel by its name, with its numbers and which memory it is given: for what was there
            before, where that is, for what was made within, the number of the launch that made it.
        waits: the kernels among them whose result the host looks at, or that copy its memory.
    """

    def __init__(self):
        super().__init__()
        self.launches, self.waits = [], []
        self._made = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        name = function._schema.name.removeprefix("aten::")
        picked = name.startswith(("index", "_index")) and any(
            isinstance(leaf, Tensor) and leaf.dtype.itemsize == 1 for leaf in leaves
        )
        if name in WAITING | FROM_HOST or picked:
            self.waits.append(name)
        self.launches.append((str(function), [self._described(leaf) for leaf in leaves]))
        made = function(*args, **kwargs)
        given = {leaf.untyped_storage()._cdata for leaf in leaves if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in given:
                storage = leaf.untyped_storage()
                self._made[storage._cdata] = len(self.launches), StorageWeakRef(storage)
        return made

    def _described(self, leaf):
        if not isinstance(leaf, Tensor):
            return repr(leaf)
        number, storage = self._made.get(leaf.untyped_storage()._cdata, (None, None))
        within = storage is not None and not storage.expired()
        place = ("made by", number, leaf.storage_offset()) if within else ("at", leaf.data_ptr())
        return (*place, tuple(leaf.shape), leaf.stride(), leaf.dtype)

    def outliving(self):
        """The launches whose results are still there."""
        return [self.launches[n - 1][0] for n, storage in self._made.values() if not storage.expired()]


class Watch:
    """Records every piece of work, by its shape.

    Attributes:
        recorders: of each shape, one a step, in order.
        faults: why what was recorded can't be replayed.
    """

    def __init__(self):
        self.recorders, self.faults = {}, set()

    def __call__(self, work):
        return _Watched(self, id(work.args[0]))


class _Watched:
    def __init__(self, watch, shape):
        self.watch, self.shape = watch, shape

    def __enter__(self):
        self.recorder = Recorder()
        self.recorder.__enter__()

    def __exit__(self, *error):
        self.recorder.__exit__(*error)
        earlier = self.watch.recorders.setdefault(self.shape, [])
        faults = self.watch.faults
        faults |= {f"{name} waits" for name in self.recorder.waits}
        faults |= {f"the result of {name} lives on" for name in self.recorder.outliving()}
        if earlier and earlier[0].launches != self.recorder.launches:
            faults.add("other launches than before")
        earlier.append(self.recorder)
