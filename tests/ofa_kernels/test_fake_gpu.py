"""The fake GPU refuses what a card would refuse, so that these tests also run where there is one."""

import pytest
import torch

import ofa_kernels as ok
from tests.fake_gpu import fake_gpu

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real GPU")


@pytest.fixture(autouse=True)
def device():
    """The traffic with a device that no other test has used."""
    with fake_gpu() as traffic:
        yield traffic


def on_gpu(*shape):
    return torch.randn(shape, device="cuda")


def test_a_tensor_says_where_it_is():
    x = on_gpu(3, 4).requires_grad_()
    made = [x, x.detach(), x[1:], x + 1, x.new_empty(2), torch.zeros_like(x), x.double(), torch.ones(2).to(x)]
    made += torch.autograd.grad((x * x).sum(), x)
    made += torch.func.vmap(torch.func.grad(lambda row: (row.to(row.device) ** 3).sum()))(x).unbind()
    assert {(t.device.type, t.is_cuda, t.get_device()) for t in made} == {("cuda", True, 0)}
    for t in (torch.ones(2), x.cpu(), torch.zeros(2, device="cpu"), torch.zeros_like(x, device="cpu")):
        assert (t.device.type, t.is_cuda) == ("cpu", False)


def test_a_triton_kernel_gets_no_memory_of_the_host(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("OFA_BACKEND", "triton")
    assert ok.rms_norm(on_gpu(2, 3), torch.ones(3, device="cuda")).is_cuda
    with pytest.raises(ValueError, match="cannot be accessed from Triton"):
        ok.rms_norm(torch.ones(2, 3), torch.ones(3))


def test_two_devices_do_not_mix():
    with pytest.raises(RuntimeError, match="same device"):
        on_gpu(3) + torch.ones(3)
    with pytest.raises(TypeError, match="numpy"):
        on_gpu(3).numpy()
    assert (on_gpu(3) + torch.tensor(1.0)).is_cuda  # one number is passed by value


TRAFFIC = {
    "item": (lambda x: x.sum().item(), "_local_scalar_dense"),
    "bool": (lambda x: bool((x > 0).all()), "_local_scalar_dense"),
    "tolist": (lambda x: x.tolist(), "tolist"),
    "nonzero": (lambda x: x.nonzero(), "nonzero"),
    "mask": (lambda x: x[x > 0], "index"),
    "put at a mask": (lambda x: x.index_put((x > 0,), x[0]), "index_put"),
    "equal": (lambda x: torch.equal(x, x), "equal"),
    "repeats": (lambda x: x.repeat_interleave((x > 0).long()), "repeat_interleave"),
    "numbers": (lambda x: torch.tensor([1], device=x.device), "tensor of host memory"),
    "to the host": (lambda x: x.cpu(), "copy to cpu"),
    "to the device": (lambda x: torch.ones(3).to(x), "copy to cuda"),
    "into": (lambda x: x.copy_(torch.ones(3)), "copy_ of host memory"),
    "ids of the host": (lambda x: x[torch.tensor([0, 2])], "index of host memory"),
}


@pytest.mark.parametrize("name", TRAFFIC)
def test_traffic_is_written_down(device, name):
    call, expected = TRAFFIC[name]
    x = on_gpu(3)
    x.exp().sum(), x.to(torch.float64), torch.full((2,), 3, device=x.device), x[1:], x.masked_fill(x > 0, 1.0)
    assert device == []
    call(x)
    assert device == [expected]


def test_poisoned_memory_leaves_a_leaf_alone(nan_poisoned_empty):
    assert torch.empty(2).isnan().all()
    assert torch.empty(2, requires_grad=True).is_leaf
