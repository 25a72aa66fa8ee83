"""What does an optimiser step cost: cross-entropy only, OFA with 1 and 8 probes, the authors' objective?

A random model of SmolLM2-135M's shape (the weights don't change the cost), 8 prompts of 44 tokens, AdamW on
γ, one process. The baseline of each group is our own step with cross-entropy only.
"""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import ofa
from benchmarks.authors_step import authors_loss, frozen_gammas
from ofa.models import fast_dtype

ROWS, TOKENS = 8, 44
CE_ONLY = "CE only (LN-tuning)"
CONFIGS = {
    CE_ONLY: ofa.OFAConfig(lambda_step=0, lambda_sharp=0),
    "OFA, 1 probe": ofa.OFAConfig(n_probes=1),
    "OFA, 8 probes": ofa.OFAConfig(n_probes=8),
}
AUTHORS = "authors' objective"
DTYPES = list(dict.fromkeys((torch.float32, fast_dtype())))


@pytest.fixture(scope="module", params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def model(request):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).to(request.param).eval()
    ofa.patch_model(model)
    return model


@pytest.mark.parametrize("name", [*CONFIGS, AUTHORS])
def test_step(benchmark, model, name):
    torch.manual_seed(0)
    batch = {
        "input_ids": torch.randint(0, 49152, (ROWS, TOKENS)),
        "attention_mask": torch.ones(ROWS, TOKENS, dtype=torch.int64),
        "labels": torch.randint(0, 49152, (ROWS,)),
    }
    weights = [p for p in model.parameters() if p.requires_grad]
    # a learning rate of 0 keeps the model the same for every entry; the step does all of its work
    optimizer = torch.optim.AdamW(weights, lr=0.0)
    gammas = frozen_gammas(model)

    def step():
        if name == AUTHORS:
            loss = authors_loss(model, batch, gammas)
        else:
            loss = ofa.objective(model, batch, CONFIGS[name]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    benchmark.group = f"optimiser step, {ROWS} x {TOKENS} tokens, {str(model.dtype).removeprefix('torch.')}"
    benchmark.extra_info.update(label=name, baseline=name == CE_ONLY)
    loss = benchmark.pedantic(step, rounds=5, warmup_rounds=1)
    assert torch.isfinite(loss)
