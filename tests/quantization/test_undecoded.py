"""A tensor in 4 bits computes what its decoded values compute, bit for bit, and is not kept decoded."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from qlora_lab import quantize
from qlora_lab.quantization.tensor import QuantizedTensor
from qlora_lab.quantization.undecoded import UndecodedTensor


def both(*shape, datatype="nf4", block_size=16, double_quant=True, dtype=torch.float32, seed=0):
    """The same tensor undecoded and decoded."""
    torch.manual_seed(seed)
    weight = quantize(torch.randn(*shape).to(dtype), datatype, block_size, double_quant)
    return UndecodedTensor(weight), weight.dequantize()


def a_view(draw, tensor: torch.Tensor):
    """(words, function) of a view that this tensor allows."""
    n = tensor.ndim
    dim = draw(st.integers(0, max(0, n - 1)))
    options = [("unsqueeze", lambda t: t.unsqueeze(dim)), ("view as it is", lambda t: t.view(t.shape))]
    if n:
        size = tensor.shape[dim]
        other = draw(st.integers(0, n - 1))
        options += [("transpose", lambda t: t.transpose(dim, other)), ("split", lambda t: t.split(2, dim)[-1])]
        options += [("permute", lambda t: t.permute(*reversed(range(n)))), ("squeeze", lambda t: t.squeeze(dim))]
        options += [("expand", lambda t: t.unsqueeze(0).expand(2, *t.shape)), ("flatten", lambda t: t.flatten())]
        if size:
            index = draw(st.integers(-size, size - 1))
            start, step = draw(st.integers(0, size - 1)), draw(st.integers(1, 3))
            options += [
                ("select", lambda t: t.select(dim, index)),
                ("slice", lambda t: t[(slice(None),) * dim + (slice(start, None, step),)]),
                ("index", lambda t: t[(slice(None),) * dim + (torch.tensor([index, start, index]),)]),
                ("unbind", lambda t: t.unbind(dim)[index]),
                ("chunk", lambda t: t.chunk(2, dim)[0]),
            ]
    return draw(st.sampled_from(options))


@given(st.data())
@settings(deadline=None, max_examples=150)
def test_any_chain_of_views_means_the_same_values(data):
    shape = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=4))
    undecoded, decoded = both(
        *shape,
        datatype=data.draw(st.sampled_from(["nf4", "fp4", "int4"])),
        block_size=data.draw(st.sampled_from([16, 32])),
        double_quant=data.draw(st.booleans()),
        dtype=data.draw(st.sampled_from([torch.float32, torch.bfloat16])),
    )
    for _ in range(data.draw(st.integers(0, 4))):
        _, view = a_view(data.draw, decoded)
        undecoded, decoded = view(undecoded), view(decoded)
        if isinstance(undecoded, UndecodedTensor):
            assert undecoded.shape == decoded.shape
            assert undecoded.stride() == decoded.stride() or not decoded.numel()  # where strides lead nowhere
            assert undecoded.dtype == decoded.dtype
    found = undecoded.decode() if isinstance(undecoded, UndecodedTensor) else undecoded
    assert torch.equal(found, decoded) and found.dtype == decoded.dtype


@pytest.mark.parametrize("double_quant", [False, True])
def test_only_the_part_that_is_meant_is_decoded(double_quant, monkeypatch):
    undecoded, decoded = both(8, 256, 128, block_size=64, double_quant=double_quant)
    sizes, right = [], QuantizedTensor.dequantize
    monkeypatch.setattr(
        QuantizedTensor,
        "dequantize",
        lambda self, dtype=None: (sizes.append(self.shape.numel()), right(self, dtype))[1],
    )
    assert torch.equal(undecoded[3].t().decode(), decoded[3].t())
    assert torch.equal(F.linear(torch.ones(1, 128), undecoded[5]), F.linear(torch.ones(1, 128), decoded[5]))
    expert, at_most_before = 256 * 128, 64 * 256
    assert len(sizes) == 2 and all(expert <= size < expert + at_most_before for size in sizes)


COMPUTED = {
    "linear": lambda x, w: F.linear(x[0], w[1]),
    "linear with a bias": lambda x, w: F.linear(x[0], w[1], torch.ones(w.shape[1])),
    "matmul": lambda x, w: x[0] @ w[1].T,
    "matmul of all": lambda x, w: x @ w.transpose(1, 2),
    "bmm": lambda x, w: torch.bmm(x, w.mT),
    "einsum": lambda x, w: torch.einsum("eni,eoi->eno", x, w),
    "experts chosen for each row": lambda x, w: torch.bmm(w[torch.tensor([2, 0, 2, 1])], x[0, :4, :, None]),
    "one expert by a number in a tensor": lambda x, w: F.linear(x[0], w[torch.tensor(2)]),
    "grouped": lambda x, w: F.grouped_mm(x[0], w.transpose(1, 2), offs=torch.tensor([2, 2, 8], dtype=torch.int32)),
    "view and select": lambda x, w: F.linear(x[0], w.view(-1, w.shape[2])[2:18]),
    "product of elements": lambda x, w: x * w[:, :8],
    "made contiguous": lambda x, w: x @ w.transpose(1, 2).contiguous(),
    "cast": lambda x, w: x.double() @ w.double().transpose(1, 2),
    "concatenated": lambda x, w: x @ torch.cat((w[:, :4], w[:, 8:]), 1).transpose(1, 2),
    "cut in two": lambda x, w: F.linear(x[0], w[1].chunk(2, 0)[1]),
    "saved by a function of one's own": lambda x, w: Own.apply(x[0], w[1]),
}
# What keeps a result of its own, made of the weight, for the backward pass: that is what was asked for.
KEEP_A_COPY = ("made contiguous", "concatenated")


class Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(w)
        return x @ w.t()

    @staticmethod
    def backward(ctx, g):
        w = ctx.saved_tensors[0]
        return g.to(w.dtype) @ w, None


def with_gradient(compute, w, autocast=None):
    torch.manual_seed(1)
    x = torch.randn(3, 8, 32, requires_grad=True)
    saved = []
    noticed = torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t)
    with noticed, torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
        y = compute(x, w)
    y.backward(torch.linspace(-1, 1, y.numel()).view(y.shape).to(y.dtype))
    return y.detach(), x.grad, saved


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["", "autocast"])
@pytest.mark.parametrize("how", COMPUTED)
def test_values_and_gradients_are_those_of_the_decoded_weight_and_it_is_not_kept(how, autocast):
    undecoded, decoded = both(3, 32, 32)
    y, gradient, saved = with_gradient(COMPUTED[how], undecoded, autocast)
    expected, expected_gradient, _ = with_gradient(COMPUTED[how], decoded, autocast)
    assert type(y) is torch.Tensor and torch.equal(y, expected)
    assert torch.equal(gradient, expected_gradient)
    plain = [t for t in saved if not isinstance(t, UndecodedTensor)]
    values = {v.item() for v in decoded.flatten()}
    if how not in KEEP_A_COPY:
        for tensor in plain:  # none of them holds a row of the weight
            assert not (tensor.numel() >= 32 and {v.item() for v in tensor.detach().float().flatten()} <= values)


CHANGES = {
    "mul_": lambda w: w.mul_(2),
    "an expert": lambda w: w[1].zero_(),
    "a row": lambda w: w.__setitem__((0, 0), 1.0),
    "copy_": lambda w: w.copy_(torch.zeros(w.shape)),
    "out=": lambda w: torch.add(torch.ones(w.shape), 1, out=w),
    "a cast copy": lambda w: w.bfloat16().mul_(2),
    "chosen experts": lambda w: w[torch.tensor([0, 1])].add_(1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_it_cannot_be_changed_and_says_so(change):
    undecoded, decoded = both(3, 32, 32)
    with pytest.raises(RuntimeError, match="4 bits; change a decoded copy"):
        CHANGES[change](undecoded)
    assert torch.equal(undecoded.decode(), decoded)
    mine = undecoded.clone().mul_(2)
    assert type(mine) is torch.Tensor and torch.equal(mine, 2 * decoded)


def test_what_is_chosen_stays_chosen():
    undecoded, decoded = both(3, 32, 32)
    which = torch.tensor([2, 0])
    chosen = undecoded[which]
    which.fill_(1)
    assert torch.equal(chosen.decode(), decoded[[2, 0]])


def test_copies_and_pickles_are_plain_tensors():
    undecoded, decoded = both(3, 32, 32)
    for made in (copy.deepcopy(undecoded), pickle.loads(pickle.dumps(undecoded)), undecoded.detach().clone()):
        assert type(made) is torch.Tensor and torch.equal(made, decoded)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_decoded_to_another_dtype_it_is_rounded_once(dtype):
    undecoded, decoded = both(3, 32, 32)
    other = UndecodedTensor(undecoded.weight, dtype)
    assert other.dtype == dtype and torch.equal(other.decode(), decoded.to(dtype))


def test_fake_tensors_pass_through():
    with FakeTensorMode() as mode:
        weight = QuantizedTensor.empty(torch.Size((4, 64, 32)), torch.bfloat16, double_quant=True)
        undecoded = UndecodedTensor(weight)
        x = torch.empty(5, 32, dtype=torch.bfloat16, requires_grad=True)
        y = F.linear(x, undecoded[2])
        y.sum().backward()
    assert y.shape == (5, 64) and y.fake_mode is mode and x.grad.shape == x.shape


def test_it_says_what_it_is():
    undecoded, _ = both(3, 32, 48)
    assert repr(undecoded) == "UndecodedTensor(nf4, shape=(3, 32, 48), dtype=torch.float32)"
    assert undecoded.numel() == math.prod((3, 32, 48)) and undecoded.data_ptr() == 0 and not undecoded.requires_grad
