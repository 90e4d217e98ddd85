"""The stand-in for a GPU raises where a GPU would, and only there."""

import pytest
import torch
from stand_in_gpu import stand_in_gpu
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from qlora_lab import MemoryTrace, quantize, quantize_model, simulate_training
from qlora_lab.paging import PagedAdamW

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here, which shows it itself")


@pytest.fixture
def gpu():
    with stand_in_gpu():
        yield
    assert not torch.cuda.is_available()


def there(*shape) -> torch.Tensor:
    return torch.ones(shape, device="cuda")


def test_everything_that_comes_of_a_tensor_there_is_there(gpu):
    x = there(3, 4).requires_grad_()
    y = (x * 2 + 1).exp()[:, :2].t()
    y.sum().backward()
    with MemoryTrace():
        watched = torch.autograd.grad(x[torch.tensor([0, 2], device="cuda")].sum(), x)[0]
    made = {
        "an operation": y,
        "a gradient": x.grad,
        "a gradient of a look-up": torch.autograd.grad(x[torch.tensor([0, 2], device="cuda")].sum(), x)[0],
        "a gradient while a ledger watches": watched,
        "new": x.new_zeros(3),
        "like": torch.zeros_like(x),
        "moved": torch.ones(3).to("cuda"),
        "moved beside": torch.ones(3).to(x),
        "a scalar of the CPU": x * torch.tensor(2.0),
        "indices of the CPU": x[torch.tensor([0, 2])],
        "asked for": torch.arange(3, device=x.device),
        "decoded": quantize(there(4, 64), double_quant=True).dequantize(),
    }
    assert {name: tensor.device.type for name, tensor in made.items()} == dict.fromkeys(made, "cuda")
    with torch.device("cuda"):
        assert torch.zeros(3).is_cuda
    assert not x.cpu().is_cuda
    assert not torch.zeros_like(x, device="cpu").is_cuda
    assert not torch.ones(3).is_cuda
    assert not torch.empty(3).copy_(there(3)).is_cuda
    assert torch.empty(3, device="meta").is_meta
    with torch.device("meta"):
        assert torch.empty(3).is_meta and nn.Linear(3, 4).weight.is_meta
    assert x.detach().cpu().numpy().sum() == 12


@pytest.mark.parametrize(
    "mixed",
    [
        lambda: there(3) + torch.ones(3),
        lambda: torch.ones(3) * there(),
        lambda: torch.bucketize(there(3), torch.ones(3)),
        lambda: torch.equal(there(3), torch.ones(3)),
        lambda: torch.equal(there(), torch.ones(())),
        lambda: torch.cat([there(3), torch.ones(3)]),
        lambda: torch.ones(3)[torch.zeros(2, dtype=torch.long, device="cuda")],
        lambda: torch.zeros(()).add_(there()),
        lambda: nn.Linear(3, 4).cuda()(torch.ones(2, 3)),
        lambda: nn.functional.embedding(torch.zeros(2, dtype=torch.long), there(5, 3)),
    ],
)
def test_what_does_not_lie_together_raises(gpu, mixed):
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        mixed()


def test_a_mistake_in_a_backward_pass_is_found(gpu):
    class Careless(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, g):
            return g * torch.full((3,), 2.0)

    with pytest.raises(RuntimeError, match="same device"):
        Careless.apply(there(3).requires_grad_()).sum().backward()


def test_a_simulation_is_left_alone(gpu):
    with FakeTensorMode():
        assert torch.ones(3, device="cpu").device.type == "cpu"
    before = simulate_training("SmolLM2-135M-Instruct", "qlora", sequence_length=64)
    assert quantize(torch.ones(64, 64), double_quant=True).dequantize().sum() > 0  # no fake was kept for later
    assert before.peak > 1e8


def test_numpy_and_generators_are_as_on_a_gpu(gpu):
    with pytest.raises(TypeError, match="to numpy"):
        there(3).numpy()
    for generator, device in ((torch.Generator(), "cuda"), (torch.Generator("cuda"), "cpu")):
        with pytest.raises(RuntimeError, match="device type for generator"):
            torch.randn(3, generator=generator, device=device)
    torch.randn(3, generator=torch.Generator("cuda").manual_seed(0), device="cuda")


def test_a_step_of_training_with_pages_on_three_tiers(gpu, tmp_path):
    model = quantize_model(nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256)), rank=8, device="cuda")
    trained = [p for p in model.parameters() if p.requires_grad]
    options = {"device_budget": 2**14, "host_budget": 2**13, "directory": tmp_path, "page_size": 4096}
    with PagedAdamW(trained, **options) as optimizer:
        for _ in range(2):
            model(there(4, 256)).square().mean().backward()
            optimizer.step()
        assert {p.device.type for p in trained} == {"cuda"}
        assert all(optimizer.residency().values()), optimizer.residency()
