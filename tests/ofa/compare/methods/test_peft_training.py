"""What the loss of PEFT's methods is over."""

import pytest
import torch

from ofa.compare.methods import peft_training
from ofa.compare.variants import method_of
from tests.ofa.compare.methods.test_lora import setting_of


@pytest.mark.parametrize("name", ["lora", "ia3", "ln-ia3", "soft-prompt", "i2cl"])
@pytest.mark.parametrize("over", ["vocabulary", "labels"])
def test_the_loss_is_over_what_the_option_says(llama, tokenizer, task, shots, monkeypatch, name, over):
    seen, cross_entropy = [], peft_training.cross_entropy

    def spy(logits, following, labels, classes):
        seen.append(None if classes is None else classes.tolist())
        return cross_entropy(logits, following, labels, classes)

    monkeypatch.setattr(peft_training, "cross_entropy", spy)
    setting = setting_of(llama, tokenizer, task, shots, max_steps=2)
    with torch.random.fork_rng(), method_of(f"{name}:loss_over={over}+batch_size=3").fit(setting):
        pass
    assert len(seen) == 2
    if over == "vocabulary":
        assert seen == [None, None]
    else:
        tokens = task.label_ids(tokenizer)
        assert all(row == tokens for batch in seen for row in batch)
