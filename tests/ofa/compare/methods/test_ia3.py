import pytest
import torch

from ofa.compare.methods.ia3 import IA3
from tests.ofa.compare.methods.test_lora import check_restores, check_training, setting_of
from tests.ofa.conftest import build_llama


def test_training(llama, tokenizer, task, shots):
    check_training(IA3(), llama, setting_of(llama, tokenizer, task, shots))


def test_restores(llama, tokenizer, task, shots):
    check_restores(IA3(), llama, setting_of(llama, tokenizer, task, shots, max_steps=3))


@pytest.mark.filterwarnings("error")
def test_float32_in_a_bfloat16_model_and_quiet(tokenizer, task, shots, capfd):
    model = build_llama(torch.bfloat16)
    with IA3().fit(setting_of(model, tokenizer, task, shots, max_steps=3)) as fitted:
        trained = [p for p in model.parameters() if p.requires_grad]
        assert {p.dtype for p in trained} == {torch.float32}
        # a factor for each of 12 keys, 12 values and 40 hidden units, in three layers
        assert fitted.n_trainable == sum(p.numel() for p in trained) == 3 * (12 + 12 + 40)
    assert capfd.readouterr() == ("", "")
