"""The QLoRA layer: the gradients of LoRA on the decoded weight, and no weight kept to compute them."""

import copy
import gc
import pickle
import subprocess
import sys
import weakref
from pathlib import Path

import numpy
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_llama import (
    DEVICES,
    LINEAR_NAMES,
    assert_close,
    assert_unchanged,
    copy_adapters,
    loss_and_gradients,
    quantize_with_bitsandbytes,
    randomize_adapters,
    snapshot,
    tiny_llama,
    token_batch,
)
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn import functional as F

from qlora_lab import (
    DATATYPES,
    SINCE_NF4,
    LoRALinear,
    QLoRALinear,
    QuantizedTensor,
    count_parameters,
    get_datatype,
    inject_lora,
    merge,
    merge_and_unload,
    quantize,
    quantize_model,
    save_adapter,
    unmerge,
)
from qlora_lab.lora import LoRALayer, adapted_layers

devices = pytest.mark.parametrize(
    "device", [pytest.param(name, marks=pytest.mark.cuda if name == "cuda" else ()) for name in DEVICES]
)
all_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])

# float32 on both sides; the order of additions differs: 1e-5 of the largest value is 170 roundings
FLOAT32 = 1e-5
# a rounding to this dtype, relative
ROUNDING = {torch.float32: 2**-24, torch.bfloat16: 2**-8, torch.float16: 2**-11}


def layer_of(n_in=32, n_out=48, rank=4, bias=True, seed=0, **options) -> QLoRALinear:
    torch.manual_seed(seed)
    layer = QLoRALinear.from_linear(nn.Linear(n_in, n_out, bias), rank, 8, **options)
    if rank:
        nn.init.normal_(layer.lora_B)
    return layer


def decoded_twin(layer: QLoRALinear) -> LoRALinear:
    """The same layer with its base decoded: what the 4-bit layer must equal."""
    base = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
    with torch.no_grad():
        base.weight.copy_(layer.base_weight())
        if layer.bias is not None:
            base.bias.copy_(layer.bias)
    twin = LoRALinear(base, layer.rank, layer.alpha, layer.dropout, layer.use_rslora).to(layer.codes.device)
    if layer.rank:
        twin.lora_A.data.copy_(layer.lora_A)
        twin.lora_B.data.copy_(layer.lora_B)
    return twin.train(layer.training)


def gradients_of(layer, x, g) -> dict[str, torch.Tensor]:
    inputs = {"x": x, "A": layer.lora_A, "B": layer.lora_B}
    inputs = {name: tensor for name, tensor in inputs.items() if tensor is not None and tensor.requires_grad}
    return dict(zip(inputs, torch.autograd.grad(layer(x), list(inputs.values()), g), strict=True))


@pytest.fixture
def decoded(monkeypatch):
    """Weak references to every weight that is decoded, in order."""
    references, dequantize = [], QuantizedTensor.dequantize

    def watched(self, dtype=None):
        weight = dequantize(self, dtype)
        references.append(weakref.ref(weight))
        return weight

    monkeypatch.setattr(QuantizedTensor, "dequantize", watched)
    return references


# --- the same as LoRA on the decoded weight


@settings(max_examples=60, deadline=None)
@given(
    n_in=st.integers(1, 70),
    n_out=st.integers(1, 70),
    rank=st.integers(0, 9),
    use_rslora=st.booleans(),
    bias=st.booleans(),
    datatype=st.sampled_from((*DATATYPES, *SINCE_NF4)),
    block_size=st.sampled_from([16, 32, 64, 128]),
    double_quant=st.booleans(),
    lead=st.lists(st.integers(0, 4), max_size=3),
    seed=st.integers(0, 2**31),
)
def test_output_and_gradients_equal_those_of_the_decoded_weight(
    n_in, n_out, rank, use_rslora, bias, datatype, block_size, double_quant, lead, seed
):
    layer = layer_of(
        n_in,
        n_out,
        rank,
        bias,
        seed,
        datatype=datatype,
        block_size=get_datatype(datatype).block_size or block_size,
        double_quant=double_quant and get_datatype(datatype).allows_double_quant,
        use_rslora=use_rslora,
    )
    x, g = torch.randn(*lead, n_in, requires_grad=True), torch.randn(*lead, n_out)
    exact, magnitudes = decoded_twin(layer).double(), decoded_twin(layer).double()
    for parameter in magnitudes.parameters():
        parameter.data.abs_()
    x64, g64 = x.detach().double().requires_grad_(), g.double()
    abs_x, abs_g = x.detach().double().abs().requires_grad_(), g64.abs()

    assert layer(x).shape == (*lead, n_out)
    actual = {"y": layer(x), **gradients_of(layer, x, g)}
    expected = {"y": exact(x64), **gradients_of(exact, x64, g64)}
    summed = {"y": magnitudes(abs_x), **gradients_of(magnitudes, abs_x, abs_g)}
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        # a sum of n float32 products is off by at most n 2^-24 of the sum of their magnitudes; n is below 150 here
        assert ((value - expected[name]).abs() <= 150 * 2**-24 * summed[name]).all(), name


@devices
@pytest.mark.parametrize("double_quant", [False, True])
def test_a_layer_large_enough_for_the_compiled_kernel(device, double_quant):
    layer = layer_of(256, 320, double_quant=double_quant).to(device)
    x = torch.randn(2, 5, 256, device=device, requires_grad=True)
    g = torch.randn(2, 5, 320, device=device)
    assert_close(layer(x), decoded_twin(layer)(x), FLOAT32)
    assert_close(gradients_of(layer, x, g), gradients_of(decoded_twin(layer), x, g), FLOAT32)


@devices
@all_dtypes
@pytest.mark.parametrize("bias", [False, True])
def test_the_first_forward_equals_the_decoded_base(device, dtype, bias):
    """On a GPU to a rounding: cuBLAS may take another way for a product that is added to something."""
    layer = layer_of(bias=bias).to(device)
    layer.lora_B.data.zero_()
    x = torch.randn(3, 7, 32, device=device, dtype=dtype)
    weight = layer.quantized.dequantize(dtype)
    y, expected = layer(x), F.linear(x.view(21, 32), weight, layer.bias.to(dtype) if bias else None).view(3, 7, 48)
    if device == "cpu":
        assert torch.equal(y, expected)
    else:
        assert_close(y, expected, FLOAT32 if dtype == torch.float32 else 2 * ROUNDING[dtype])


def test_dropout_is_the_one_of_a_lora_layer():
    layer = layer_of(dropout=0.4)
    twin = decoded_twin(layer)
    x, g = torch.randn(2, 9, 32, requires_grad=True), torch.randn(2, 9, 48)
    results = []
    for each in (layer, twin):
        torch.manual_seed(1)
        results.append(gradients_of(each, x, g))
    assert_close(results[0], results[1], FLOAT32)
    assert_close(layer.eval()(x), twin.eval()(x), FLOAT32)
    assert torch.equal(layer(x), layer(x))


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("trained", ["A", "B", "x", "Ax", "Bx", "AB"])
def test_whatever_needs_a_gradient_gets_it(dropout, trained):
    layer = layer_of(dropout=dropout)
    layer.lora_A.requires_grad_("A" in trained)
    layer.lora_B.requires_grad_("B" in trained)
    twin = decoded_twin(layer)
    twin.lora_A.requires_grad_("A" in trained)
    twin.lora_B.requires_grad_("B" in trained)
    x, g = torch.randn(9, 32, requires_grad="x" in trained), torch.randn(9, 48)
    results = []
    for each in (layer, twin):
        torch.manual_seed(1)
        results.append(gradients_of(each, x, g))
    assert set(results[0]) == set(trained)
    assert_close(results[0], results[1], FLOAT32)


def test_tensors_that_do_not_lie_in_rows():
    layer = layer_of()
    twin = decoded_twin(layer)
    x = torch.randn(32, 9, 2, requires_grad=True)
    g = torch.randn(48, 2, 9).permute(2, 1, 0)
    for each_g in (g, torch.ones(1, 1, 1).expand(9, 2, 48)):
        results = []
        for each in (layer, twin):
            results.append(torch.autograd.grad(each(x.permute(1, 2, 0)), (x, each.lora_A, each.lora_B), each_g))
        assert_close(results[0], results[1], FLOAT32)


def test_a_second_derivative_is_refused_not_wrong():
    layer = layer_of()
    x = torch.randn(3, 32, requires_grad=True)
    (dx,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


@pytest.mark.parametrize("shape", [(31,), (4, 64), (2, 16, 2), ()])
def test_inputs_of_another_width(shape):
    layer = layer_of()
    layer.path = "model.layers.3.mlp.up_proj"
    with pytest.raises(ValueError, match=r"layers.3.mlp.up_proj takes \(\.\.\., 32\)"):
        layer(torch.randn(shape))


def test_layers_that_cannot_be():
    with pytest.raises(ValueError, match="two dimensions"):
        QLoRALinear(quantize(torch.randn(64)), None, 4, 8)
    with pytest.raises(TypeError, match=r"compute_dtype torch.float64.*torch.bfloat16"):
        layer_of(compute_dtype=torch.float64)
    with pytest.raises(ValueError, match="rank -1"):
        layer_of(rank=-1)


# --- memory


@pytest.mark.parametrize(("rank", "dropout"), [(0, 0.0), (4, 0.0), (4, 0.3)])
def test_no_decoded_weight_outlives_forward_or_backward(decoded, rank, dropout):
    layer = layer_of(128, 160, rank, dropout=dropout)
    saved = []
    x = torch.randn(3, 128, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = layer(x)
    assert [reference() for reference in decoded] == [None]
    storages = {t.untyped_storage().data_ptr() for t in layer.parameters()}
    kept = [t for t in saved if t.untyped_storage().data_ptr() not in storages]
    assert all(t.numel() <= x.numel() for t in kept)
    y.sum().backward()
    assert [reference() for reference in decoded] == [None, None]


def test_what_the_graph_holds_beside_saved_tensors_is_the_layers_own_storage():
    layer = layer_of(128, 160)
    node = layer(torch.randn(3, 128, requires_grad=True)).grad_fn
    while not hasattr(node, "weight"):
        node = node.next_functions[0][0]
    held = [node.weight.codes, *node.weight.stored.values()]
    own = {t.untyped_storage().data_ptr() for t in layer.parameters()}
    assert {t.untyped_storage().data_ptr() for t in held} <= own
    assert not [value for value in vars(node).values() if isinstance(value, torch.Tensor)]


def test_without_an_adapter_not_even_the_input_is_kept():
    layer, saved = layer_of(rank=0), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer(torch.randn(3, 32, requires_grad=True))
    assert saved == []


@pytest.mark.parametrize("needs_gradient", [False, True])
def test_the_second_decoding_is_skipped_where_the_input_needs_no_gradient(decoded, needs_gradient):
    layer = layer_of()
    layer(torch.randn(3, 32, requires_grad=needs_gradient)).sum().backward()
    assert layer.lora_A.grad is not None
    assert len(decoded) == 1 + needs_gradient


@pytest.mark.cuda
def test_peak_memory_on_a_gpu():
    """Forward and backward of one layer never hold more than one decoded weight."""
    layer = layer_of(4096, 4096, bias=False).cuda()
    x = torch.randn(16, 4096, device="cuda", requires_grad=True)
    for _ in range(2):  # kernels are compiled, cuBLAS takes its workspace
        layer(x).sum().backward()
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    y = layer(x)
    assert torch.cuda.memory_allocated() - before < 4 * y.numel() * 4
    y.sum().backward()
    assert torch.cuda.max_memory_allocated() - before < 1.1 * 4096 * 4096 * 4


# --- a model: checkpointing, generation, compilation


@devices
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(device, use_reentrant, dropout):
    model = randomize_adapters(quantize_model(tiny_llama(), rank=4, alpha=8, dropout=dropout)).to(device).train()
    tokens = token_batch().to(device)
    torch.manual_seed(1)
    expected = loss_and_gradients(model, tokens)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    if use_reentrant:
        model.enable_input_require_grads()
    torch.manual_seed(1)
    loss, gradients = loss_and_gradients(model, tokens)
    assert torch.equal(loss, expected[0])
    assert gradients.keys() == expected[1].keys()
    for name, gradient in gradients.items():
        assert gradient.abs().max() > 0
        assert torch.equal(gradient, expected[1][name]), name


@devices
def test_generating_between_two_steps_changes_no_gradient(device):
    model = randomize_adapters(quantize_model(tiny_llama(), rank=4, alpha=8)).to(device).train()
    tokens = token_batch().to(device)
    expected = loss_and_gradients(model, tokens)
    model.eval()
    generated = model.generate(tokens, min_new_tokens=6, max_new_tokens=6, do_sample=False)
    assert generated.shape == (2, 15)
    with torch.no_grad():
        model(tokens)
    with torch.inference_mode():
        model(tokens)
    model.train()
    loss, gradients = loss_and_gradients(model, tokens)
    assert torch.equal(loss, expected[0])
    assert all(torch.equal(gradients[name], expected[1][name]) for name in expected[1])
    assert all(gradient.abs().max() > 0 for gradient in gradients.values())


def test_generating_with_and_without_the_cache_agrees():
    model = randomize_adapters(quantize_model(tiny_llama(), rank=4, alpha=8)).eval()
    tokens = token_batch()
    options = {"min_new_tokens": 8, "max_new_tokens": 8, "do_sample": False}
    assert torch.equal(model.generate(tokens, **options), model.generate(tokens, use_cache=False, **options))


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(64, 96), nn.Linear(96, 32, bias=False)

    def forward(self, x):
        return self.down(torch.tanh(self.up(x)))


@pytest.mark.slow
@devices
@all_dtypes
def test_torch_compile_of_a_model(device, dtype):
    torch.manual_seed(0)
    model = randomize_adapters(quantize_model(TwoLayers(), rank=4, alpha=8, double_quant=False)).to(device)
    x = torch.randn(3, 7, 64, device=device, dtype=dtype)
    results = []
    for run in (model, torch.compile(model, fullgraph=True)):
        model.zero_grad()
        y = run(x)
        y.float().square().sum().backward()
        results.append((y.detach(), {name: p.grad for name, p in model.named_parameters() if p.requires_grad}))
    tolerance = FLOAT32 if dtype == torch.float32 else 8 * ROUNDING[dtype]  # fused steps round less often
    assert results[1][0].dtype == dtype
    assert_close(results[1], results[0], tolerance)


def test_fake_tensors_pass_through():
    """A step over tensors without values, as a memory ledger does; float16 checks values, of which there are none."""
    with FakeTensorMode():
        weight = QuantizedTensor(
            torch.empty(48 * 32 // 2, dtype=torch.uint8),
            {"scales": torch.empty(48 * 32 // 64)},
            torch.Size((48, 32)),
            torch.bfloat16,
        )
        layer = QLoRALinear(weight, None, 4, 8, compute_dtype=torch.float16)
        y = layer(torch.empty(5, 32, requires_grad=True))
        y.sum().backward()
        assert y.shape == (5, 48)
        assert layer.lora_A.grad.shape == (4, 32)


def test_meta_tensors_pass_through():
    layer = layer_of(compute_dtype=torch.float16).to("meta")
    x = torch.empty(2, 3, 32, device="meta", requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.shape == x.shape


# --- dtypes


@devices
@all_dtypes
@pytest.mark.parametrize("compute_dtype", [None, torch.float32, torch.bfloat16, torch.float16])
def test_compute_dtype(device, dtype, compute_dtype):
    layer = layer_of(compute_dtype=compute_dtype).to(device)
    computed_in = compute_dtype or dtype
    x = torch.randn(5, 32, device=device, dtype=dtype, requires_grad=True)
    g = torch.randn(5, 48, device=device, dtype=dtype)
    y = layer(x)
    assert y.dtype == dtype
    if torch.promote_types(dtype, computed_in) == computed_in:
        assert torch.equal(y, layer(x.to(computed_in)).to(dtype))
    gradients = gradients_of(layer, x, g)
    assert [gradient.dtype for gradient in gradients.values()] == [dtype, torch.float32, torch.float32]
    twin = decoded_twin(layer)
    x32 = x.detach().float().requires_grad_()
    tolerance = 8 * max(ROUNDING[computed_in], ROUNDING[dtype])  # a handful of roundings on the way
    assert_close(y, twin(x32), tolerance)
    assert_close(gradients, gradients_of(twin, x32, g.float()), tolerance)


@devices
@pytest.mark.parametrize(("dtype", "compute_dtype"), [(torch.bfloat16, None), (torch.float32, torch.bfloat16)])
def test_an_adapter_far_smaller_than_the_output_is_not_rounded_away(device, dtype, compute_dtype):
    """Added to an output that is bfloat16 already, a share of a thousandth would nearly always vanish."""
    layer = layer_of(256, 512, rank=4, bias=False, compute_dtype=compute_dtype).to(device)
    x, g = torch.randn(64, 256, device=device, dtype=dtype), torch.randn(64, 512, device=device, dtype=dtype)
    wanted, base = {}, {}
    kept = {}
    layer.lora_B.data *= 1e-3 * (x.float() @ layer.base_weight().t()).norm() / (x.float() @ layer.delta().t()).norm()
    wanted["y"], wanted["dx"] = x.float() @ layer.delta().t(), g.float() @ layer.delta()
    for name, scale in (("with", 1), ("without", 0)):
        layer.scaling *= scale
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        (dx,) = torch.autograd.grad(y, leaf, g)
        base[name] = {"y": y.detach().float(), "dx": dx.float()}
    for name, share in wanted.items():
        difference = base["with"][name] - base["without"][name]
        kept[name] = (difference * share).sum() / (share * share).sum()
    # 1 on average; roundings that are independent of the share scatter it by less than a tenth over so many elements
    assert all(abs(share - 1) < 0.2 for share in kept.values()), kept


@devices
@pytest.mark.parametrize("compute_dtype", [None, torch.float32, torch.bfloat16])
def test_autocast(device, compute_dtype):
    """Without a compute dtype the layer does as nn.Linear does under autocast; with one, autocast has no say."""
    layer = layer_of(compute_dtype=compute_dtype).to(device)
    plain = nn.Linear(32, 48).to(device)
    x, g = torch.randn(5, 32, device=device, requires_grad=True), torch.randn(5, 48, device=device)
    with torch.autocast(device, torch.bfloat16):
        y = layer(x)
        assert y.dtype == (plain(x).dtype if compute_dtype is None else torch.float32)
        gradients = gradients_of(layer, x, g.to(y.dtype))  # backward under autocast too
    outside = layer(x if compute_dtype else x.bfloat16())
    assert torch.equal(y, outside)
    assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}
    tolerance = FLOAT32 if compute_dtype == torch.float32 else 8 * ROUNDING[torch.bfloat16]
    assert_close(gradients, gradients_of(decoded_twin(layer), x, g), tolerance)


@devices
def test_autocast_of_a_model(device):
    model = randomize_adapters(quantize_model(tiny_llama(), rank=4, alpha=8)).to(device)
    tokens = token_batch().to(device)
    expected = loss_and_gradients(model, tokens)
    with torch.autocast(device, torch.bfloat16):
        loss, gradients = loss_and_gradients(model, tokens)
    assert_close(loss, expected[0], 0.03)  # bfloat16 has eight bits: each product is off by up to 0.4 %
    assert_close(gradients, expected[1], 0.1)


@devices
@pytest.mark.parametrize("value", [300.0, -300.0, float("nan"), float("inf")])
def test_leaving_the_range_of_float16_names_the_layer(device, value):
    model = quantize_model(TwoLayers(), rank=4, alpha=8, compute_dtype=torch.float16).to(device)
    x = torch.full((2, 3, 64), 0.5, device=device, dtype=torch.float16)
    model(x)
    if abs(value) == 300.0:
        model.up.bias.data.fill_(20.0)  # every input of the second layer becomes 1
        model.down.lora_A.data.fill_(8.0)
        model.down.lora_B.data.fill_(value)
        name = "down"
    else:
        x[1, 2, 3] = value
        name = "up"
    with pytest.raises(FloatingPointError, match=rf"^{name} left the range of float16.*torch.float32"):
        model(x)
    for layer in (model.up, model.down):
        layer.compute_dtype = torch.bfloat16
    model(x)  # has the range, or passes on what it was given


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double", "to", "type"])
@pytest.mark.parametrize("datatype", ["nf4", "int4_affine", "nvfp4", "q4_1"])
@pytest.mark.parametrize("double_quant", [False, True])
def test_casting_a_model_leaves_codes_and_scales_bit_for_bit(cast, datatype, double_quant):
    double_quant = double_quant and get_datatype(datatype).allows_double_quant
    model = quantize_model(TwoLayers(), datatype, double_quant=double_quant, rank=4, alpha=8)
    names = ("codes", *model.up.stored_names)
    before = {name: getattr(model.up, name).detach().clone() for name in names}
    weight = model.up.base_weight()
    arguments = {"to": (torch.float16,), "type": (torch.float16,)}.get(cast, ())
    getattr(model, cast)(*arguments)
    for name, tensor in before.items():
        after = getattr(model.up, name)
        assert isinstance(after, nn.Parameter)
        assert after.dtype == tensor.dtype
        assert torch.equal(after, tensor)
    assert torch.equal(model.up.base_weight(), weight)
    assert model.up.lora_A.dtype == model.up.bias.dtype != torch.float32
    if cast != "double":
        x = torch.randn(3, 64, dtype=model.up.lora_A.dtype)
        model(x).sum().backward()
        assert model.up.lora_A.grad.dtype == x.dtype


@pytest.mark.cuda
def test_moving_to_the_gpu_and_back_changes_no_bit():
    layer = layer_of()
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    layer.cuda().half()
    assert all(parameter.is_cuda for parameter in layer.parameters())
    layer.float().cpu()
    for name in ("codes", *layer.stored_names):
        assert torch.equal(layer.state_dict()[name], before[name])


# --- copies


@pytest.mark.parametrize("datatype", (*DATATYPES, *SINCE_NF4))
def test_the_weight_is_what_was_given_and_can_be_saved(tmp_path, datatype):
    torch.manual_seed(0)
    double_quant = get_datatype(datatype).allows_double_quant
    given_weight = quantize(torch.randn(48, 32), datatype, double_quant=double_quant)
    layer = QLoRALinear(given_weight, None, 4, 8)
    assert all(parameter.ndim for parameter in layer.parameters())  # torch's FSDP shards no scalars
    layer.quantized.save(tmp_path / "weight.safetensors")
    loaded = QuantizedTensor.load(tmp_path / "weight.safetensors")
    assert torch.equal(loaded.codes, given_weight.codes)
    assert loaded.stored.keys() == given_weight.stored.keys()
    assert all(torch.equal(loaded.stored[name], tensor) for name, tensor in given_weight.stored.items())
    assert torch.equal(layer.base_weight(), given_weight.dequantize())


@pytest.mark.slow
def test_reloading_the_module_works():
    """Jupyter's autoreload runs a module again; PyTorch lets an operator's name be defined only once."""
    code = "import importlib, qlora_lab.qlora as q; importlib.reload(q); importlib.reload(q); print('fine')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout == "fine\n", result.stderr


@pytest.mark.parametrize("double_quant", [False, True])
def test_state_dict_goes_to_another_model(double_quant):
    options = {"rank": 4, "alpha": 8, "double_quant": double_quant}
    model = randomize_adapters(quantize_model(tiny_llama(0, bias=True), **options))
    other = quantize_model(tiny_llama(1, bias=True), **options)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(token_batch()).logits, model(token_batch()).logits)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
@pytest.mark.parametrize("double_quant", [False, True])
def test_copies_are_equal_and_independent(duplicate, double_quant):
    layer = layer_of(double_quant=double_quant, dropout=0.1, compute_dtype=torch.bfloat16).eval()
    twin = duplicate(layer)
    x = torch.randn(3, 32)
    expected = layer(x)
    assert torch.equal(twin(x), expected)
    assert repr(twin) == repr(layer)
    layer.codes.data.zero_()
    layer.lora_B.data.zero_()
    assert torch.equal(twin(x), expected)
    assert not twin.training


def test_repr_says_what_the_layer_is():
    text = repr(layer_of(datatype="fp4", block_size=128))
    for word in ("in_features=32", "out_features=48", "rank=4", "alpha=8", "fp4", "block_size=128", "double_quant"):
        assert word in text


# --- bitsandbytes and PEFT


@devices
@pytest.mark.parametrize("double_quant", [False, True])
def test_loss_and_gradients_equal_those_of_bitsandbytes_with_peft(device, double_quant):
    """In float32. Never in eval() mode before: bitsandbytes would repack its weights for a kernel without gradients.

    bitsandbytes on the CPU looks 8-bit scales up in a table, which misses the nearest value for about 0.16 % of them;
    the comparison takes its stored scales over (and checks that few differ). Its build for GPUs divides less exactly:
    should one of the weights, all but on a threshold, have gone to the other side, its code is taken over as well.
    """
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    base = quantize_with_bitsandbytes(tiny_llama(bias=True), double_quant, device)
    reference = randomize_adapters(peft.get_peft_model(base, config)).train()
    model = quantize_model(tiny_llama(bias=True), rank=4, alpha=8, double_quant=double_quant, device=device).train()
    copy_adapters(reference, model)
    scales = differing = other_codes = 0
    for path, layer in adapted_layers(model):
        weight = reference.get_submodule(f"base_model.model.{path}.base_layer").weight
        state = weight.quant_state
        other_codes += int((layer.codes != weight.flatten()).sum())
        layer.codes.data.copy_(weight.flatten())
        if double_quant:
            scales += state.absmax.numel()
            differing += int((layer.scale_codes != state.absmax).sum())
            layer.scale_codes.data.copy_(state.absmax)
            torch.testing.assert_close(layer.scale_scales.data, state.state2.absmax, rtol=1e-6, atol=0)
            torch.testing.assert_close(layer.scale_offset.data, state.offset.view(1), rtol=1e-6, atol=0)
            layer.scale_scales.data.copy_(state.state2.absmax)
            layer.scale_offset.data.copy_(state.offset)
        else:
            assert torch.equal(layer.scales, state.absmax)
    assert differing <= 0.02 * scales
    assert other_codes <= (0 if device == "cpu" else 1)
    tokens = token_batch().to(device)
    expected_loss, expected = loss_and_gradients(reference, tokens)
    loss, gradients = loss_and_gradients(model, tokens)
    assert_close(loss, expected_loss, FLOAT32)
    assert_close(gradients, expected, FLOAT32)
    assert len(gradients) == 2 * 2 * len(LINEAR_NAMES)
    assert all(gradient.abs().max() > 0 for gradient in gradients.values())


# --- quantize_model


@pytest.mark.parametrize("tied", [False, True])
def test_embeddings_and_head_stay_as_they_are_unless_named(tied):
    model = tiny_llama(tied=tied)
    embeddings, head = model.model.embed_tokens, model.lm_head
    assert quantize_model(model, rank=4) is model
    assert model.model.embed_tokens is embeddings
    assert model.lm_head is head
    assert (head.weight is embeddings.weight) == tied
    quantized = {name for name, module in model.named_modules() if isinstance(module, QLoRALinear)}
    assert {name.rpartition(".")[2] for name in quantized} == set(LINEAR_NAMES)
    assert len(quantized) == 2 * len(LINEAR_NAMES)
    assert all(layer.path == name for name, layer in adapted_layers(model))
    assert not any(p.requires_grad for n, p in model.named_parameters() if "lora_" not in n)


@pytest.mark.parametrize("tied", [False, True])
def test_a_head_that_is_named_is_quantized_and_its_embeddings_are_not(tied):
    model = tiny_llama(tied=tied)
    embeddings = model.model.embed_tokens.weight.clone()
    quantize_model(model, rank=4, alpha=8, target_modules=["lm_head", "q_proj"])
    assert isinstance(model.lm_head, QLoRALinear)
    assert torch.equal(model.model.embed_tokens.weight, embeddings)
    adapted = {name for name, layer in adapted_layers(model) if layer.rank}
    assert adapted == {"lm_head", *(f"model.layers.{i}.self_attn.q_proj" for i in (0, 1))}
    assert len(list(adapted_layers(model))) == 1 + 2 * len(LINEAR_NAMES)  # all are in 4 bits
    _, gradients = loss_and_gradients(randomize_adapters(model), token_batch())
    assert all(gradient.abs().max() > 0 for gradient in gradients.values())


def test_the_layers_are_those_of_from_linear():
    options = {"datatype": "fp4", "block_size": 32, "double_quant": False}
    model = tiny_llama(bias=True)
    model.model.layers[0].eval()
    weights = {name: module for name, module in tiny_llama(bias=True).named_modules() if isinstance(module, nn.Linear)}
    quantize_model(model, rank=3, alpha=5, dropout=0.2, use_rslora=True, compute_dtype=torch.bfloat16, **options)
    for name, layer in adapted_layers(model):
        assert torch.equal(layer.codes, quantize(weights[name].weight, **options).codes)
        assert (layer.bias is None) == (weights[name].bias is None)
        assert (layer.rank, layer.alpha, layer.dropout, layer.scaling) == (3, 5, 0.2, 5 / 3**0.5)
        assert (layer.compute_dtype, layer.datatype, layer.block_size) == (torch.bfloat16, "fp4", 32)
        assert layer.training == (".layers.0." not in name)


def test_rank_0_quantizes_alone_and_adapters_can_follow():
    model = quantize_model(tiny_llama(), rank=0)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    before = model(token_batch()).logits
    codes = {name: layer.codes for name, layer in adapted_layers(model)}
    inject_lora(model, 4, 8, ["q_proj"])
    assert torch.equal(model(token_batch()).logits, before)
    assert all(layer.codes is codes[name] for name, layer in adapted_layers(model))
    torch.manual_seed(3)
    at_once = randomize_adapters(quantize_model(tiny_llama(), rank=4, alpha=8, target_modules=["q_proj"]))
    assert_close(
        loss_and_gradients(randomize_adapters(model), token_batch()),
        loss_and_gradients(at_once, token_batch()),
        FLOAT32,
    )


def test_weights_are_freed_as_they_are_replaced_and_progress_is_told():
    """Else the peak would be the whole model twice, which is what quantizing layer by layer avoids."""
    model = tiny_llama()
    heads = {model.lm_head}
    weights = [weakref.ref(m.weight) for m in model.modules() if isinstance(m, nn.Linear) and m not in heads]
    seen = []

    def progress(done, total):
        seen.append((done, total))
        assert sum(reference() is not None for reference in weights) == total - done

    quantize_model(model, rank=4, progress=progress)
    assert seen == [(i, len(weights)) for i in range(1, len(weights) + 1)]


@devices
def test_the_model_goes_to_the_device(device):
    model = quantize_model(tiny_llama(tied=True), rank=4, alpha=8, device=device)
    assert {parameter.device.type for parameter in model.parameters()} == {device}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model(token_batch().to(device))


@pytest.mark.cuda
def test_a_model_goes_to_the_gpu_layer_by_layer():
    model = nn.Sequential(*(nn.Linear(1024, 1024, bias=False) for _ in range(8)))
    quantize_model(copy.deepcopy(model[:1]), rank=0, device="cuda")  # kernels are compiled, which takes memory
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    quantize_model(model, rank=0, device="cuda")
    # the 4-bit model, and what one layer needs: its weight and temporaries of quantize
    assert torch.cuda.max_memory_allocated() - before < 8 * 1024 * 1024 * 0.6 + 6 * 1024 * 1024 * 4


def _spoil(value):
    def change(model):
        model.model.layers[1].mlp.down_proj.weight.data[5, 6] = value

    return change


def _widen(model):
    model.model.layers[1].mlp.down_proj.double()


@pytest.mark.parametrize(
    ("change", "options", "error", "words"),
    [
        (None, {"datatype": "nf5"}, ValueError, "unknown data type 'nf5'"),
        (None, {"block_size": 0}, ValueError, "block_size 0"),
        (None, {"block_size": 65}, ValueError, "block_size 65"),
        (None, {"datatype": "int4_affine"}, ValueError, "double quantization"),
        (None, {"datatype": "mxfp4"}, ValueError, "mxfp4 stores its scales in 8 bits already"),
        (None, {"datatype": "mxfp4", "block_size": 64, "double_quant": False}, ValueError, "blocks have 32 weights"),
        (None, {"compute_dtype": torch.int8}, TypeError, "compute_dtype torch.int8"),
        (None, {"rank": -2}, ValueError, "rank -2"),
        (None, {"alpha": 0}, ValueError, "alpha 0"),
        (None, {"dropout": 1.0}, ValueError, "dropout 1.0"),
        (None, {"target_modules": ["query"]}, ValueError, "'query' matches no module.*q_proj"),
        (_spoil(float("nan")), {}, ValueError, r"layers.1.mlp.down_proj: weight\[5, 6\] is nan"),
        (_spoil(float("-inf")), {}, ValueError, r"layers.1.mlp.down_proj: weight\[5, 6\] is -inf"),
        (_widen, {}, TypeError, r"layers.1.mlp.down_proj: cannot quantize torch.float64"),
        (lambda model: model.lm_head.double(), {"target_modules": ["lm_head"]}, TypeError, "lm_head: cannot quantize"),
    ],
)
def test_an_error_leaves_the_model_as_it_was(change, options, error, words):
    model = tiny_llama()
    if change is not None:
        change(model)
    before = snapshot(model)
    calls = []
    with pytest.raises(error, match=words):
        quantize_model(model, **{"rank": 4, "alpha": 8, **options}, progress=lambda *args: calls.append(args))
    assert_unchanged(model, before)
    assert not calls


def test_large_weights_are_not_mistaken_for_infinite():
    model = nn.Sequential(nn.Linear(16, 16))
    with torch.no_grad():
        model[0].weight.fill_(3e38)
    quantize_model(model, rank=0, double_quant=False)
    torch.testing.assert_close(model[0].base_weight(), torch.full((16, 16), 3e38))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_quantized_model_lets_go_of_the_file_it_was_loaded_from(tmp_path):
    model = nn.Sequential(nn.Embedding(64, 64), nn.Linear(64, 64), nn.LayerNorm(64))
    model[2].weight.data = model[2].bias.data  # tied: one storage
    path = tmp_path / "model.safetensors"
    save_file({"embedding": model[0].weight.detach(), "linear": model[1].weight.detach()}, path)
    loaded = load_file(path)
    model[0].weight = nn.Parameter(loaded.pop("embedding"))
    model[1].weight = nn.Parameter(loaded.pop("linear"))
    before = model[0].weight
    maps = Path("/proc/self/maps")
    mapped = str(path) in maps.read_text()  # where safetensors does not map, there is nothing to let go of
    quantize_model(model)
    assert mapped and str(path) not in maps.read_text()
    assert model[0].weight is before
    assert model[2].weight.data_ptr() == model[2].bias.data_ptr()


def test_models_without_values_or_without_linear_layers():
    with torch.device("meta"):
        model = TwoLayers()
    with pytest.raises(ValueError, match="up is on the meta device"):
        quantize_model(model)
    with pytest.raises(ValueError, match="no linear layers"):
        quantize_model(nn.Sequential(nn.ReLU()))
    quantized = quantize_model(TwoLayers(), rank=0)
    with pytest.raises(ValueError, match="quantized already"):
        quantize_model(quantized)
    with pytest.raises(ValueError, match="has adapters already"):
        quantize_model(inject_lora(TwoLayers(), 2, 4))


# -- looked at before it is changed


class Twice(nn.Module):
    """One module at two places."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(32, 32)
        self.second = self.first
        self.listed = nn.ModuleList([self.first])

    def forward(self, x):
        return self.listed[0](self.second(self.first(x)))


@pytest.mark.parametrize("change", [lambda m: inject_lora(m, 2, 4), lambda m: quantize_model(m, rank=2, alpha=4)])
def test_a_module_at_several_places_stays_one(change):
    torch.manual_seed(0)
    model, x = Twice(), torch.randn(3, 32)
    change(model)
    assert model.first is model.second is model.listed[0] and isinstance(model.first, LoRALayer)
    model.first.lora_B.data.normal_(0, 0.1)
    y = model(x)
    merged = merge_and_unload(model)
    assert merged.first is merged.second is merged.listed[0] and type(merged.first) is nn.Linear
    torch.testing.assert_close(merged(x), y, rtol=1e-4, atol=1e-5)


class Stacks(nn.Module):
    """Matrices too small to be quantized."""

    def __init__(self):
        super().__init__()
        self.router, self.stacks = nn.Linear(8, 4), nn.Parameter(torch.randn(9, 8, 8))


@pytest.mark.parametrize(
    "model, told",
    [
        (Stacks, r"95% .* \(1 parameters, the largest are stacks\)"),  # 576 of 576 + 32
        (
            lambda: nn.Sequential(nn.Conv1d(8, 8, 9), nn.Linear(8, 8)),
            r"90% .* the largest are 0.weight\)",
        ),
    ],
)
def test_weights_that_stay_in_full_precision_are_told(model, told):
    with pytest.warns(UserWarning, match=told):
        quantize_model(model(), rank=0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("model", [lambda: nn.Sequential(nn.Linear(8, 8)), lambda: TwoLayers()])
def test_a_model_of_linear_layers_is_no_reason_to_warn(model):
    quantize_model(model(), rank=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_merged_layers_follow_a_cast(dtype):
    model = quantize_model(TwoLayers(), rank=2).to(dtype)
    kinds = {p.dtype for p in merge_and_unload(model).parameters()}
    assert kinds == {dtype}


@pytest.mark.parametrize("change", [lambda m: inject_lora(m, 2, 4), lambda m: quantize_model(m, rank=2, alpha=4)])
def test_what_is_changed_in_inference_mode_can_be_trained(change):
    model, x = TwoLayers(), torch.randn(2, 64)
    with torch.inference_mode():
        change(model)
    model(x).sum().backward()
    assert model.up.lora_B.grad is not None and model.down.lora_B.grad.abs().sum() > 0


@pytest.mark.parametrize("rank, alpha", [(numpy.int64(2), numpy.float32(4)), (numpy.uint8(2), numpy.int16(4))])
def test_numbers_of_numpy_are_numbers(rank, alpha, tmp_path):
    model = quantize_model(TwoLayers(), rank=rank, alpha=alpha)
    save_adapter(model, tmp_path)
    assert type(model.up.rank) is int and model.up.scaling == 2


@pytest.mark.parametrize(
    "make", [lambda: LoRALinear(nn.Linear(4, 3), 2, 4), lambda: QLoRALinear.from_linear(nn.Linear(4, 3), 2, 4)]
)
def test_the_input_may_be_given_by_name(make):
    layer, x = make(), torch.randn(2, 4)
    assert torch.equal(layer(input=x), layer(x))


# -- code that does not call the layer


class Reads(nn.Module):
    """Computes with a layer's weight, or asks for its dtype and size, instead of calling it."""

    def __init__(self, how):
        super().__init__()
        self.first, self.second, self.how = nn.Linear(32, 32), nn.Linear(32, 32), how

    def forward(self, x):
        return self.how(self.second, self.first(x).relu())


READ = {
    "dtype, as T5 does": lambda layer, x: layer(x.to(layer.weight.dtype)),
    "all of it, as torch's attention does": lambda layer, x: F.linear(x, layer.weight, layer.bias),
    "as Mamba does": lambda layer, x: x @ layer.weight.t() + layer.bias,
    "its norm": lambda layer, x: layer(x) / layer.weight.norm(),
    "shape and device": lambda layer, x: layer(x.to(layer.weight.device)) + layer.weight.shape[0] + layer.weight.ndim,
}
CHANGES = [lambda m, **o: inject_lora(m, 2, 4, **o), lambda m, **o: quantize_model(m, rank=2, alpha=4, **o)]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("how", READ.values(), ids=READ)
def test_a_weight_that_is_read_is_what_the_layer_computes_with(how, change):
    torch.manual_seed(0)
    model, x = randomize_adapters(change(Reads(how))), torch.randn(3, 32)
    y = model(x)
    y.square().sum().backward()
    gradient = model.second.lora_B.grad.clone()
    plain = merge_and_unload(copy.deepcopy(model)).requires_grad_(True)
    expected = plain(x)
    assert_close(y, expected, FLOAT32)
    expected.square().sum().backward()  # dL/dB = s dL/dW A^T
    layer = model.second
    assert_close(gradient, layer.scaling * plain.second.weight.grad @ layer.lora_A.detach().t(), 10 * FLOAT32)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 1e-2), (torch.float64, 1e-6)])
def test_the_first_parameter_of_a_layer_tells_a_dtype_that_it_takes(dtype, tolerance):
    torch.manual_seed(0)
    plain, x = nn.Linear(32, 8).to(dtype), torch.randn(3, 32)
    made = [inject_lora(nn.Sequential(copy.deepcopy(plain)), 2, 4)[0]]
    if dtype != torch.float64:
        made.append(QLoRALinear.from_linear(plain, 2, 4))
    for layer in made:
        y = layer(x.to(next(layer.parameters()).dtype))
        assert_close(y, F.linear(x.to(dtype), layer.weight, layer.bias), tolerance)


@pytest.mark.parametrize("compute_dtype", [None, torch.float32])
def test_or_that_of_codes_which_is_refused_as_nn_linear_refuses_integers(compute_dtype):
    layer = QLoRALinear.from_linear(nn.Linear(32, 8), 0, 1, compute_dtype=compute_dtype)
    with pytest.raises(TypeError, match=r"this layer takes floating-point numbers, not torch\.uint8"):
        layer(torch.ones(2, 32).to(next(layer.parameters()).dtype))


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n", [4, 64, 65])  # one short block, one whole, both
def test_a_weight_is_the_same_under_autocast(n, dtype, autocast):
    layer = QLoRALinear.from_linear(nn.Linear(n, 1).to(dtype), 0, 1)
    weight = layer.weight
    with torch.autocast("cpu", autocast):
        assert torch.equal(layer.weight, weight) and layer.weight.dtype == dtype


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("norm_first", [True, False])
def test_torchs_encoder_computes_with_adapters_on_its_fast_path_too(norm_first, change):
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=norm_first).eval()
    model, x = randomize_adapters(change(encoder)), torch.randn(2, 5, 16)
    with torch.no_grad():
        fast = model(x)
    assert_close(fast, model(x), FLOAT32)
    assert_close(fast, merge_and_unload(model)(x), FLOAT32)


def test_t5_runs_and_trains():
    config = transformers.T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4)
    config.decoder_start_token_id = 0
    torch.manual_seed(0)
    model = randomize_adapters(quantize_model(transformers.T5ForConditionalGeneration(config), rank=2)).eval()
    tokens = torch.arange(3, 12)[None]
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    assert all(layer.lora_B.grad is not None for _, layer in adapted_layers(model) if layer.rank)
    assert_close(merge_and_unload(model)(input_ids=tokens, labels=tokens).loss, loss, FLOAT32)


@pytest.mark.parametrize("change", CHANGES)
def test_hooks_go_over_to_the_new_layer_and_to_the_merged_one(change):
    torch.manual_seed(0)
    model, x, seen = nn.Sequential(nn.Linear(32, 32)), torch.randn(2, 32), []
    model[0].register_forward_pre_hook(lambda layer, inputs: (inputs[0] * 0.5,))
    handle = model[0].register_forward_hook(lambda layer, inputs, y: seen.append(type(layer)) or y * 3)
    model = randomize_adapters(change(model))
    y = model(x)
    kind = type(model[0])
    assert_close(merge_and_unload(model)(x), y, FLOAT32)
    assert seen == [kind, nn.Linear]
    handle.remove()
    assert_close(3 * model(x), y, FLOAT32)


# -- layers that are not what they inherit from


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Router(nn.Linear):
    def forward(self, x):
        return super().forward(x).topk(2)


class SameAgain(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight, self.bias)


def replaced():
    layer = nn.Linear(32, 32)
    layer.forward = lambda x: 3 * F.linear(x, layer.weight)
    return layer


@pytest.mark.parametrize("make", [lambda: Scaled(32, 32), replaced])
def test_a_forward_of_its_own_is_not_lost(make):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(32, 32), make()), torch.randn(2, 32)
    with pytest.warns(UserWarning, match="1 linear layers compute something else .*: 1"):
        quantized = quantize_model(copy.deepcopy(model), rank=2)
    assert type(quantized[1]) is type(model[1]) and isinstance(quantized[0], QLoRALinear)
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"1 is a .* cannot be stored in 4 bits"):
        quantize_model(model, rank=2, target_modules=["1"])
    assert_unchanged(model, before)
    want = model(x)
    adapted = inject_lora(model, 2, 4)  # beside it an adapter may stand; in its weight it would be another
    assert_close(adapted(x), want, FLOAT32)
    for change in (merge, merge_and_unload):
        with pytest.raises(ValueError, match=r"1 is a .* keep the adapter apart"):
            change(adapted)
    assert isinstance(adapted[0], LoRALinear) and not adapted[0].merged


@pytest.mark.filterwarnings("ignore:1 linear layers compute")
@pytest.mark.parametrize("change", CHANGES)
def test_routers_get_no_adapter(change):
    model = change(nn.Sequential(nn.Linear(32, 32), Router(32, 4)))
    assert type(model[1]) is Router and model(torch.randn(2, 32)).values.shape == (2, 2)
    with pytest.raises(ValueError, match=r"1, a Router, which does not give one tensor|1 is a Router"):
        change(nn.Sequential(nn.Linear(32, 32), Router(32, 4)), target_modules=["1"])


@pytest.mark.filterwarnings("error")
def test_a_subclass_that_computes_the_same_is_a_linear_layer():
    assert isinstance(quantize_model(nn.Sequential(SameAgain(32, 32)), rank=2)[0], QLoRALinear)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("n_in, n_out", [(0, 4), (4, 0)])
def test_layers_without_features(n_in, n_out, change):
    model = change(nn.Sequential(nn.Linear(n_in, n_out)))
    for shape in ((2, 3, n_in), (n_in,)):
        assert model(torch.randn(shape)).shape == (*shape[:-1], n_out)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    "make, options, words",
    [
        (lambda: nn.Sequential(nn.LazyLinear(4)), {}, "0 is a LazyLinear without a weight yet"),
        (lambda: nn.Sequential(nn.Linear(4, 4)), {"target_modules": None}, "target_modules=None is not allowed"),
        (lambda: nn.Sequential(nn.Linear(4, 4)), {"target_modules": 3}, "target_modules=3 is not allowed"),
    ],
)
def test_what_cannot_be_changed_is_told_in_a_sentence(make, options, words, change):
    with pytest.raises((ValueError, TypeError), match=words):
        change(make(), **options)


# -- the state says what it is


OTHER = [
    ({"datatype": "fp4"}, "datatype 'nf4', not 'fp4'"),
    ({"datatype": "int4"}, "datatype 'nf4', not 'int4'"),
    ({"block_size": 32}, "block_size '64', not '32'"),
    ({"double_quant": False}, "double_quant '1', not '0'"),
]


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("options, said", OTHER, ids=[str(options) for options, _ in OTHER])
def test_a_state_of_another_kind_is_refused(options, said, strict):
    state = quantize_model(TwoLayers(), rank=2).state_dict()
    other = quantize_model(TwoLayers(), rank=2, **options)
    before = {name: p.clone() for name, p in other.named_parameters() if "codes" in name}
    with pytest.raises(RuntimeError, match=f"the state of up says of itself that it has {said}:"):
        other.load_state_dict(state, strict=strict)
    assert all(torch.equal(p, before[name]) for name, p in other.named_parameters() if name in before)


def test_a_state_of_an_earlier_version_is_taken():
    model = quantize_model(TwoLayers(), rank=2)
    state = {name: t for name, t in model.state_dict().items() if name not in ("up.weight", "down.weight")}
    assert len(state) < len(model.state_dict())
    other = quantize_model(TwoLayers(), rank=2)
    assert not any(other.load_state_dict(state)) and torch.equal(other.up.codes, model.up.codes)


# -- merged and counted


def test_a_float64_weight_is_merged_in_float64():
    torch.manual_seed(0)
    model, x = (
        randomize_adapters(inject_lora(nn.Sequential(nn.Linear(32, 32).double()), 2, 4)),
        torch.randn(2, 32).double(),
    )
    y, weight = model(x), model[0].base.weight.clone()
    assert_close(merge(model)(x), y, 1e-6)  # the update itself is float32
    torch.testing.assert_close(unmerge(model)[0].base.weight, weight, rtol=0, atol=1e-15)
    assert_close(merge_and_unload(model)(x), y, 1e-6)


@pytest.mark.parametrize("part", [lambda w: w, lambda w: w.t(), lambda w: w[:, :16]])
def test_merge_refuses_a_weight_whose_memory_is_anothers_too(part):
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    model[1].weight = nn.Parameter(part(model[0].weight.data))
    with pytest.raises(ValueError, match="shares its weight with another module"):
        merge(inject_lora(model, 2, 4, target_modules=["0"]))


def test_weights_that_lie_side_by_side_in_one_memory_are_merged():
    memory = torch.randn(2, 8, 8)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    for layer, weight in zip(model, memory, strict=True):
        layer.weight = nn.Parameter(weight)
    assert merge(inject_lora(model, 2, 4))[0].merged


def test_a_wrapped_layer_is_counted_once():
    model = quantize_model(nn.Sequential(checkpoint_wrapper(nn.Linear(32, 32, bias=False))), rank=2)
    assert count_parameters(model) == (128, 32 * 32 + 128)


def test_a_model_cast_to_float64_computes_the_same_numbers_there():
    model = randomize_adapters(quantize_model(tiny_llama(), rank=2)).eval()
    tokens = token_batch()
    before = model(tokens).logits
    model.double()
    after = model(tokens).logits
    assert after.dtype == torch.float64
    torch.testing.assert_close(before.double(), after, rtol=1e-4, atol=1e-5)
    after.sum().backward()
    torch.testing.assert_close(merge_and_unload(model)(tokens).logits, after, rtol=1e-9, atol=1e-9)


def test_a_layer_without_weights_counts_none():
    model = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 0), nn.Linear(0, 5))
    plain = sum(p.numel() for p in model.parameters())
    found = count_parameters(quantize_model(model, rank=2))
    assert found.total - found.trainable == plain


def test_an_input_in_float64_is_computed_in_float64():
    layer, x = layer_of(), torch.randn(3, 32, dtype=torch.float64)
    y = layer(x)
    assert y.dtype == torch.float64
    torch.testing.assert_close(y, layer(x.float()).double(), rtol=1e-5, atol=1e-5)
