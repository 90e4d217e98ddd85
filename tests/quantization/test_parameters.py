"""4-bit weights of modules: states that say what they are, and experts that compute as their decoded weights do."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from qlora_lab import QLoRALinear, inject_lora, quantize_model
from qlora_lab.quantization.tensor import as_record, read_record

PLAIN = {"datatype": "nf4", "block_size": 64, "double_quant": True}


class Experts(nn.Module):
    """A mixture of two experts that says itself what it computes, as models of transformers do."""

    def __init__(self, n_in=32, n_out=48):
        super().__init__()
        self.up = nn.Parameter(torch.randn(2, n_out, n_in))
        self.down = nn.Parameter(torch.randn(2, n_in, n_out))
        self.up_bias = nn.Parameter(torch.randn(2, n_out))

    def forward(self, x):  # (n, in) -> (n, in)
        for i in range(2):
            x = torch.relu(x @ self.up[i].T + self.up_bias[i]) @ self.down[i].T
        return x


def model_of(n_in=32, n_out=48, seed=0, experts=True, **options) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Linear(n_in, n_out), nn.Linear(n_out, n_in)] + ([Experts(n_in, n_out)] if experts else [])
    model = nn.Sequential(*layers)
    return quantize_model(model, rank=0, **PLAIN | options) if options.pop("quantized", True) else model


def plain_model(**options) -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(32, 48), nn.Linear(48, 32), Experts())


def without_records(state: dict) -> dict:
    """As earlier versions wrote it."""
    return {name: tensor for name, tensor in state.items() if read_record(tensor) is None}


def through_a_file(state, tmp_path):
    save_file(state, tmp_path / "state.safetensors")
    return load_file(tmp_path / "state.safetensors")


def through_torch(state, tmp_path):
    torch.save(state, tmp_path / "state.pt")
    return torch.load(tmp_path / "state.pt", weights_only=True)


def values(model) -> dict:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize(
    "way", [lambda state, _: state, through_a_file, through_torch], ids=["", "safetensors", "torch"]
)
@pytest.mark.parametrize(
    "options",
    [{}, {"datatype": "fp4"}, {"double_quant": False}, {"datatype": "int4_affine", "double_quant": False}],
    ids=str,
)
def test_a_state_goes_to_a_model_quantized_in_the_same_way(options, way, assign, tmp_path):
    one, other = model_of(seed=1, **options), model_of(seed=2, **options)
    other.load_state_dict(way(one.state_dict(), tmp_path), assign=assign)
    x = torch.randn(3, 32)
    assert torch.equal(one(x), other(x))
    assert_same(one.state_dict(), other.state_dict())


@pytest.mark.parametrize("strict", [True, False])
def test_a_state_of_an_earlier_version_has_no_record_and_loads(strict):
    one, other = model_of(seed=1), model_of(seed=2)
    state = without_records(one.state_dict())
    assert len(state) == len(one.state_dict()) - 4
    other.load_state_dict(state, strict=strict)
    assert torch.equal(one(torch.ones(1, 32)), other(torch.ones(1, 32)))


OTHERS = {
    "another data type": (lambda: model_of(seed=1, datatype="fp4"), "fp4"),
    "one more": (lambda: model_of(seed=1, datatype="int4"), "int4"),
    "a data type with offsets": (lambda: model_of(seed=1, datatype="int4_affine", double_quant=False), "int4_affine"),
    "another block size": (lambda: model_of(seed=1, block_size=32), "block_size"),
    "no double quantization": (lambda: model_of(seed=1, double_quant=False), "double_quant"),
    "another shape with as many weights": (lambda: model_of(48, 32, seed=1), "shape"),
    "full precision": (plain_model, "float32"),
    "16 bits": (lambda: plain_model().half(), "float16"),
    "adapters on full precision": (lambda: inject_lora(plain_model(), 2, 4), "float32"),
}


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("other", OTHERS)
def test_a_state_of_another_kind_is_refused_before_anything_is_changed(other, strict, assign):
    make, word = OTHERS[other]
    model, state = model_of(), make().state_dict()
    before = values(model)
    with pytest.raises(RuntimeError, match=word):
        model.load_state_dict(state, strict=strict, assign=assign)
    assert_same(model.state_dict(), before)
    wrapped = nn.ModuleDict({"inner": model})
    with pytest.raises(RuntimeError, match=word):
        wrapped.load_state_dict(
            {f"inner.{name}": tensor for name, tensor in state.items()}, strict=strict, assign=assign
        )
    assert_same(model.state_dict(), before)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("other", ["another data type", "another shape with as many weights", "full precision"])
@pytest.mark.parametrize("part", [0, 2], ids=["a layer", "experts"])
def test_a_part_of_a_model_refuses_it_too(part, other, strict):
    layer, state = model_of()[part], OTHERS[other][0]()[part].state_dict()
    before = values(layer)
    with pytest.raises(RuntimeError):
        layer.load_state_dict(state, strict=strict)
    assert_same(layer.state_dict(), before)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("make", [plain_model, lambda: inject_lora(plain_model(), 2, 4)], ids=["plain", "adapters"])
def test_a_model_in_full_precision_refuses_a_4_bit_state(make, strict):
    model = make()
    for state in (model_of(seed=1).state_dict(), quantize_model(plain_model(), rank=2).state_dict()):
        with pytest.raises(RuntimeError):
            model.load_state_dict(state, strict=strict)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("0.scale_codes"),
        lambda state: state.update({"0.codes": state["0.codes"].float()}),
        lambda state: state.update({"1.scale_scales": state["1.scale_scales"].bfloat16()}),
        lambda state: state.update({"1.codes": state["1.codes"][:-1]}),
        lambda state: state.update({"2.in_four_bits.up.codes": state["2.in_four_bits.up.codes"][:-1]}),
        lambda state: state.update({"0.weight": state["0.weight"][:-1]}),
        lambda state: state.update({"0.weight": state["2.up"]}),
        lambda state: state.update(
            {"0.weight": as_record(read_record(state["0.weight"]) | {"format": "qlora_lab.QuantizedTensor.2"})}
        ),
    ],
    ids=[
        "without its scales",
        "codes as floats",
        "scales in 16 bits",
        "codes cut off",
        "an expert's codes cut off",
        "half a record",
        "another's record",
        "a later version",
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_a_damaged_state_is_refused(change, strict):
    model, state = model_of(), dict(model_of(seed=1).state_dict())
    change(state)
    before = values(model)
    with pytest.raises(RuntimeError):
        model.load_state_dict(state, strict=strict)
    assert_same(model.state_dict(), before)


def test_adapters_alone_go_from_one_kind_of_base_to_the_other():
    on_codes, on_floats = quantize_model(plain_model(), rank=2), inject_lora(plain_model(), 2, 4)
    for one, other in ((on_codes, on_floats), (on_floats, on_codes)):
        for name, parameter in one.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter)
        adapters = {name: tensor for name, tensor in one.state_dict().items() if "lora_" in name}
        assert not other.load_state_dict(adapters, strict=False).unexpected_keys
        assert torch.equal(one[0].lora_B, other[0].lora_B)


def test_models_of_another_dtype_take_a_state():
    one, other = model_of(seed=1), quantize_model(plain_model().bfloat16(), rank=0)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one[0].codes, other[0].codes)


@given(
    n_in=st.integers(1, 70),
    n_out=st.integers(1, 70),
    datatype=st.sampled_from(["nf4", "fp4", "int4"]),
    block_size=st.sampled_from([16, 32, 64, 128]),
    double_quant=st.booleans(),
    other=st.fixed_dictionaries(
        {},
        optional={
            "n_in": st.integers(1, 70),
            "n_out": st.integers(1, 70),
            "datatype": st.sampled_from(["nf4", "fp4", "int4"]),
            "block_size": st.sampled_from([16, 32, 64, 128]),
            "double_quant": st.booleans(),
        },
    ),
    strict=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_a_layers_state_loads_exactly_where_it_was_quantized_alike(
    n_in, n_out, datatype, block_size, double_quant, other, strict
):
    def layer(n_in, n_out, datatype, block_size, double_quant):
        return QLoRALinear.from_linear(nn.Linear(n_in, n_out), 0, 1, datatype, block_size, double_quant)

    own = {"n_in": n_in, "n_out": n_out, "datatype": datatype, "block_size": block_size, "double_quant": double_quant}
    one, two = layer(**own), layer(**own | other)
    if own | other == own:
        two.load_state_dict(one.state_dict(), strict=strict)
        assert torch.equal(one.base_weight(), two.base_weight())
    else:
        with pytest.raises(RuntimeError):
            two.load_state_dict(one.state_dict(), strict=strict)
