"""What `test_hf_trainer` starts in two processes: `accelerate launch … -m tests.ofa.launched FOLDER`."""

import gc
import json
import sys
from pathlib import Path

import torch

from tests.ofa.train.test_hf import FirstGradients, gammas, trainer


def run(folder: Path, dtype: torch.dtype) -> None:
    rows = json.loads((folder / "rows.json").read_text())
    first = FirstGradients()
    runner = trainer(rows, folder, dtype, per_device_train_batch_size=3, callbacks=[first])
    assert runner.accelerator.num_processes == 2
    runner.train()
    name = str(dtype).removeprefix("torch.")
    torch.save((gammas(runner), first.found), folder / f"{name}-{runner.accelerator.process_index}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for dtype in (torch.float64, torch.float32):
        run(Path(sys.argv[1]), dtype)
    gc.collect()  # a data-parallel wrapper that outlives its gloo group may hang as it is freed
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
