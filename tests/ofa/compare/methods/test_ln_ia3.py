import pytest
import torch

from ofa.compare.methods.ln_ia3 import LNIA3
from ofa.decoder.norms import RMSNorm
from tests.ofa.compare.methods.test_lora import check_restores, check_training, setting_of, state_of
from tests.ofa.conftest import build_llama


def test_training(llama, tokenizer, task, shots):
    # our norm rounds where transformers' does, and sums in another order
    check_training(LNIA3(), llama, setting_of(llama, tokenizer, task, shots), rounding=1e-5)


def test_restores(llama, tokenizer, task, shots):
    check_restores(LNIA3(), llama, setting_of(llama, tokenizer, task, shots, max_steps=3))


def test_norms_and_factors_both_train_and_nothing_else(llama, tokenizer, task, shots):
    before = {name: value.clone() for name, value in llama.state_dict().items()}
    with LNIA3().fit(setting_of(llama, tokenizer, task, shots, max_steps=3)):
        after = {name.replace(".base_layer", ""): value for name, value in llama.state_dict().items()}
    factors = {name: value for name, value in after.items() if name not in before}
    assert len(factors) == 3 * 3 and all((value != 1).any() for value in factors.values())
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == {name for name in before if "norm" in name}


def test_flags_of_norms_that_were_frozen_come_back(llama, tokenizer, task, shots):
    llama.model.norm.weight.requires_grad_(False)
    state = state_of(llama)
    with LNIA3().fit(setting_of(llama, tokenizer, task, shots, max_steps=1)):
        assert llama.model.norm.weight.requires_grad
    assert state_of(llama) == state


@pytest.mark.filterwarnings("error")
def test_float32_in_a_bfloat16_model_and_quiet(tokenizer, task, shots, capfd):
    model = build_llama(torch.bfloat16)
    with LNIA3().fit(setting_of(model, tokenizer, task, shots, max_steps=3)) as fitted:
        trained = [p for p in model.parameters() if p.requires_grad]
        assert {p.dtype for p in trained} == {torch.float32}
        assert sum(isinstance(module, RMSNorm) for module in model.modules()) == 7
        # IA3's, and 24 numbers in each of 7 norms
        assert fitted.n_trainable == sum(p.numel() for p in trained) == 3 * (12 + 12 + 40) + 7 * 24
    assert capfd.readouterr() == ("", "")
