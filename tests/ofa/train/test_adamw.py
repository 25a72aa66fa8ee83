import pytest
import torch

from ofa.train.adamw import AdamWUpdate
from ofa.train.adapter_stack import AdapterStack


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_many_adapters_are_each_updated_as_pytorch_updates_one(dtype):
    """To the bit, with rates, decays and counts of their own, also for those that join later and leave."""
    start = torch.randn(3, 24, dtype=dtype)  # three norms
    rates, decays, joined = (1e-2, 3e-3, 0.5), (0.0, 0.1, 1e-3), (0, 0, 7)
    alone = [[row.clone().requires_grad_() for row in start] for _ in rates]
    optimizers = [
        torch.optim.AdamW(weights, weight_decay=d) for weights, d in zip(alone, decays, strict=True)
    ]
    stack, present, good = AdapterStack.of(start, 2), [0, 1], None
    for step in range(20):
        if step == 7:
            stack.join(AdapterStack.of(start, 1))
            present = [0, 1, 2]
        if step == 15:
            stack.keep([0, 2])
            present = [0, 2]
        gradients = torch.randn(3, len(present), 24, dtype=dtype) * 10 ** torch.randn(3, len(present), 1)
        gradients = gradients.to(dtype)
        lrs = [rates[i] * (step % 4) for i in present]
        good = [[weight.detach().clone() for weight in alone[i]] for i in present]
        for a, i in enumerate(present):
            optimizers[i].param_groups[0]["lr"] = lrs[a]
            for weight, gradient in zip(alone[i], gradients[:, a], strict=True):
                weight.grad = gradient.clone()
            optimizers[i].step()
        stack.update(gradients, [step + 1 - joined[i] for i in present], lrs, [decays[i] for i in present])
        for a, i in enumerate(present):
            assert torch.equal(stack.gammas[:, a], torch.stack(list(alone[i])))
            assert torch.equal(stack.good[:, a], torch.stack(good[a]))
