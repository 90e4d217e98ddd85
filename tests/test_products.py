"""Matrix products by oneDNN: the same numbers as PyTorch's own, on whatever processor the tests run."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from qlora_lab import products
from qlora_lab.lora import LoRALinear

has_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch is built without oneDNN")
sizes = st.integers(0, 70)


@pytest.fixture
def onednn(monkeypatch):
    monkeypatch.setattr(products, "_onednn_is_faster", lambda: True)


@pytest.fixture
def calls(monkeypatch, onednn):
    """How often oneDNN's operator ran, as a list that grows."""
    seen, run = [], products._onednn
    monkeypatch.setattr(products, "_onednn", lambda *args: seen.append(1) or run(*args))
    return seen


def close(ours, reference64):
    """Within what rounding each of k products and sums in float32 may do."""
    torch.testing.assert_close(ours.double(), reference64, rtol=1e-4, atol=1e-4)


@has_onednn
@given(n=sizes, k=sizes, m=sizes, seed=st.integers(0, 2**31), layout=st.integers(0, 3))
def test_matmul_is_the_product_for_any_shape_and_layout(n, k, m, seed, layout):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((k, n) if layout & 1 else (n, k), generator=generator)
    w = torch.randn((m, k) if layout & 2 else (k, m), generator=generator)
    x, w = x.t() if layout & 1 else x, w.t() if layout & 2 else w
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "_onednn_is_faster", lambda: True)
        y = products.matmul(x, w)
    assert y.shape == (n, m) and y.dtype == torch.float32
    close(y, x.double() @ w.double())


@has_onednn
def test_matmul_takes_onednn_only_for_float32(calls):
    products.matmul(torch.ones(2, 3), torch.ones(3, 4))
    assert len(calls) == 1
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        y = products.matmul(torch.ones(2, 3, dtype=dtype), torch.ones(3, 4, dtype=dtype))
        assert y.dtype == dtype and torch.equal(y, torch.full((2, 4), 3, dtype=dtype))
    assert len(calls) == 1


@has_onednn
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("leading", [(5,), (2, 3), (0,), ()])
def test_frozen_linear_and_its_gradient_are_those_of_linear(calls, leading, bias):
    linear = nn.Linear(24, 17, bias=bias).requires_grad_(False)
    x = torch.randn(*leading, 24, requires_grad=True)
    g = torch.randn(*leading, 17)
    y = products.frozen_linear(x, linear.weight, linear.bias)
    (dx,) = torch.autograd.grad(y, x, g)
    assert len(calls) == (2 if x.numel() else 0)
    reference = F.linear(x.double(), linear.weight.double(), linear.bias.double() if bias else None)
    close(y, reference)
    close(dx, g.double() @ linear.weight.double())
    assert y.shape == reference.shape and dx.shape == x.shape


@has_onednn
def test_frozen_linear_can_be_differentiated_twice(onednn):
    linear = nn.Linear(6, 5).requires_grad_(False)

    def function(x):
        return products.frozen_linear(x.float(), linear.weight, linear.bias).double().pow(3).sum()

    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(function(x), x, create_graph=True)
    (second,) = torch.autograd.grad(first.pow(2).sum(), x)
    weight, bias = linear.weight.double(), linear.bias.double()
    (first64,) = torch.autograd.grad(F.linear(x, weight, bias).pow(3).sum(), x, create_graph=True)
    (second64,) = torch.autograd.grad(first64.pow(2).sum(), x)
    torch.testing.assert_close(second, second64, rtol=1e-3, atol=1e-3)


@has_onednn
def test_a_lora_layer_takes_it_unless_someone_listens_to_its_base(calls):
    layer = LoRALinear(nn.Linear(8, 6), rank=2, alpha=4)
    x = torch.randn(3, 8, requires_grad=True)
    layer(x).sum().backward()
    assert len(calls) == 2 and layer.lora_B.grad is not None and layer.base.weight.grad is None
    heard = []
    layer.base.register_forward_hook(lambda module, args, output: heard.append(output))
    y = layer(x)
    assert len(calls) == 2 and len(heard) == 1
    close(y, F.linear(x.double(), layer.base.weight.double(), layer.base.bias.double()))


@has_onednn
def test_whoever_watches_or_transforms_sees_a_plain_product(calls):
    x, weight = torch.randn(4, 8), nn.Parameter(torch.randn(6, 8), requires_grad=False)
    with FlopCounterMode(display=False) as counter:
        products.matmul(x, weight.t())
        products.frozen_linear(x, weight)
    assert counter.get_total_flops() == 2 * (2 * 4 * 8 * 6)
    jacobian = torch.func.jacrev(lambda row: products.frozen_linear(row, weight))(x[0])
    torch.testing.assert_close(jacobian, weight.data)
    with torch.autocast("cpu", torch.bfloat16):
        assert products.frozen_linear(x, weight).dtype == torch.bfloat16
    with torch.backends.mkldnn.flags(enabled=False):
        assert torch.equal(products.matmul(x, weight.t()), x @ weight.t())
    assert not calls


@pytest.mark.parametrize(
    ("capability", "vendor", "faster"),
    [("AVX512", "AuthenticAMD", True), ("AVX512", "GenuineIntel", False), ("AVX2", "AuthenticAMD", False)],
)
def test_the_processor_decides(monkeypatch, tmp_path, capability, vendor, faster):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor : 0\nvendor_id : {vendor}\nmodel name : any\n")
    monkeypatch.setattr(products, "_CPUINFO", cpuinfo)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()):
        faster = False
    assert products._onednn_is_faster.__wrapped__() is faster


def test_an_operator_that_is_missing_or_does_something_else_is_not_used(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(products, "is_amd", lambda: True)
    for wrong in (lambda x, w, bias: x @ w.t(), lambda x, w: None):
        monkeypatch.setattr(products, "_onednn", wrong)
        assert products._onednn_is_faster.__wrapped__() is False
