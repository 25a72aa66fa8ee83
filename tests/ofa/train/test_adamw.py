import pytest
import torch

from ofa.train.adamw import AdamWUpdate


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_updates_are_those_of_pytorch_to_the_bit(dtype, weight_decay):
    sizes = (1, 7, 24, 33, 576)  # whole vectors of a CPU, and not
    weights = [torch.randn(size, dtype=dtype, requires_grad=True) for size in sizes]
    copies = [weight.detach().clone().requires_grad_() for weight in weights]
    expected = torch.optim.AdamW(weights, weight_decay=weight_decay)
    optimizer = torch.optim.AdamW(copies, weight_decay=weight_decay)
    update = AdamWUpdate(optimizer)
    for step in range(40):
        lr = 1e-2 * (step % 7)
        gradients = [torch.randn_like(w) * 10 ** torch.randn_like(w) for w in weights]
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        expected.param_groups[0]["lr"] = lr
        expected.step()
        update.apply([gradient.detach() for gradient in gradients], update.numbers(lr))
        update.count()
        if step == 20:  # as a run that goes on
            update = AdamWUpdate(optimizer)
    for weight, copy in zip(weights, copies, strict=True):
        assert torch.equal(weight, copy)
        states = expected.state[weight], optimizer.state[copy]
        assert all(
            torch.equal(states[0][name], states[1][name]) for name in ("step", "exp_avg", "exp_avg_sq")
        )
