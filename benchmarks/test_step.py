"""What does an optimiser step cost: LN-tuning by PEFT or ours, OFA, and the authors' objective?

A random model of SmolLM2-135M's shape (the weights don't change the cost), random prompts, no padding.
`python -m benchmarks.step_cost` does the same with the real model and real prompts, and measures memory.
"""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.harness.inputs import DRAW_SEED
from benchmarks.harness.tables import to_rich
from benchmarks.step_cost import CONTENDERS, HEADER, OFA_1, ROWS, make_step, rows_of, time_in_turns
from ofa.models import fast_dtype

TOKENS, ROUNDS = 44, 3
VOCABULARY = 49152
DTYPES = list(dict.fromkeys((torch.float32, fast_dtype())))


def random_model(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(DRAW_SEED)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    return nn.Module.to(LlamaForCausalLM(config), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_step(benchmark, add_table, dtype):
    batch = {
        "input_ids": torch.randint(VOCABULARY, (ROWS, TOKENS)),
        "attention_mask": torch.ones(ROWS, TOKENS, dtype=torch.int64),
        "labels": torch.randint(VOCABULARY, (ROWS,)),
    }
    steps = {name: make_step(name, random_model(dtype)) for name in CONTENDERS}
    if benchmark.disabled:
        losses = {name: step(batch) for name, step in steps.items()}
        assert all(loss.isfinite() for loss in losses.values()), losses
        benchmark(steps[OFA_1], batch)
        return
    times = time_in_turns(steps, batch, ROUNDS)
    title = f"optimiser step, {ROWS} x {TOKENS} tokens, {str(dtype).removeprefix('torch.')}"
    benchmark.group = OFA_1
    add_table(to_rich(title, HEADER, rows_of(times)), {"steps": title, "times": times}, times[OFA_1])
