"""Matrix products by oneDNN: the same numbers as PyTorch's own, on whatever processor the tests run."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch.utils.flop_counter import FlopCounterMode

from qlora_lab.machine import matmul, processor

has_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch is built without oneDNN")
sizes = st.integers(0, 70)


@pytest.fixture
def onednn(monkeypatch):
    monkeypatch.setattr(matmul, "_onednn_is_faster", lambda: True)


@pytest.fixture
def calls(monkeypatch, onednn):
    """How often oneDNN's operator ran, as a list that grows."""
    seen, run = [], matmul._onednn
    monkeypatch.setattr(matmul, "_onednn", lambda *args: seen.append(1) or run(*args))
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
        patch.setattr(matmul, "_onednn_is_faster", lambda: True)
        y = matmul.matmul(x, w)
        rows = torch.full((n + 1, m), 7.0)
        matmul.matmul(x, w, out=rows[:n])
    assert y.shape == (n, m) and y.dtype == torch.float32
    close(y, x.double() @ w.double())
    assert torch.equal(rows[:n], y) and (rows[n:] == 7).all()


@has_onednn
def test_matmul_takes_onednn_only_for_float32(calls):
    matmul.matmul(torch.ones(2, 3), torch.ones(3, 4))
    assert len(calls) == 1
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        y = matmul.matmul(torch.ones(2, 3, dtype=dtype), torch.ones(3, 4, dtype=dtype))
        assert y.dtype == dtype and torch.equal(y, torch.full((2, 4), 3, dtype=dtype))
    assert len(calls) == 1


@has_onednn
def test_onednn_gets_no_layout_that_it_has_no_fast_code_for(monkeypatch, onednn):
    seen, run = [], matmul._onednn
    monkeypatch.setattr(matmul, "_onednn", lambda *args: seen.extend(args) or run(*args))
    one, wide = torch.randn(()), torch.randn(8, 6, 2)
    for x, w in (
        (one.expand(5, 8), wide[..., 0]),
        (wide[..., 1].t(), one.expand(8, 3)),
        (one.expand(4, 1), wide[:1, 0]),
    ):
        close(matmul.matmul(x, w), x.double() @ w.double())
    assert len(seen) == 6 and all(1 in t.stride() and 0 not in t.stride() for t in seen)


@has_onednn
def test_whoever_watches_or_transforms_sees_a_plain_product(calls):
    x, w = torch.randn(4, 8), torch.randn(8, 6)
    with FlopCounterMode(display=False) as counter:
        matmul.matmul(x, w)
    assert counter.get_total_flops() == 2 * 4 * 8 * 6
    mapped = torch.func.vmap(matmul.matmul, in_dims=(0, None))(torch.stack([x, 2 * x]), w)
    torch.testing.assert_close(mapped, torch.stack([x @ w, 2 * (x @ w)]))
    with torch.autocast("cpu", torch.bfloat16):
        assert matmul.matmul(x, w).dtype == torch.bfloat16
    assert not calls


@has_onednn
def test_inside_plain_products_are_those_of_pytorch(calls):
    x, w = torch.randn(4, 8), torch.randn(8, 6)
    with pytest.raises(KeyError), matmul.plain(), matmul.plain():
        assert torch.equal(matmul.matmul(x, w), x @ w)
        raise KeyError
    assert not calls
    matmul.matmul(x, w)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("capability", "vendor", "faster"),
    [("AVX512", "AuthenticAMD", True), ("AVX512", "GenuineIntel", False), ("AVX2", "AuthenticAMD", False)],
)
def test_the_processor_decides(monkeypatch, tmp_path, capability, vendor, faster):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor : 0\nvendor_id : {vendor}\nmodel name : any\n")
    monkeypatch.setattr(processor, "_CPUINFO", cpuinfo)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()):
        faster = False
    assert matmul._onednn_is_faster.__wrapped__() is faster


def test_an_operator_that_is_missing_or_does_something_else_is_not_used(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(processor, "is_amd", lambda: True)
    for wrong in (lambda x, w: x @ w, lambda x, w: 2 * (x @ w.t()), lambda x: None):
        monkeypatch.setattr(matmul, "_onednn", wrong)
        assert matmul._onednn_is_faster.__wrapped__() is False
