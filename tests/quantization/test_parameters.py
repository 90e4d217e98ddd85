"""4-bit weights of modules: states that say what they are, and experts that compute as their decoded weights do."""

import copy
import pickle
import re
import warnings

import peft
import pytest
import torch
import transformers
from bitsandbytes.nn.parametrize import replace_parameter_4bit
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from qlora_lab import (
    MemoryTrace,
    QLoRALinear,
    count_parameters,
    inject_lora,
    load_adapter,
    merge_and_unload,
    quantize,
    quantize_model,
    save_adapter,
)
from qlora_lab.quantization.parameters import dequantize_parameters, find_stacks, quantized_parameters
from qlora_lab.quantization.tensor import as_record, read_record
from qlora_lab.quantization.undecoded import UndecodedTensor

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
    [
        {}, {"datatype": "fp4"}, {"double_quant": False}, {"datatype": "int4_affine", "double_quant": False},
        {"datatype": "nvfp4", "block_size": 16, "double_quant": False},
        {"datatype": "q4_1", "block_size": 32, "double_quant": False},
    ],
    ids=str,
)  # fmt: skip
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
    "scales in eight bits": (lambda: model_of(seed=1, datatype="mxfp4", block_size=32, double_quant=False), "mxfp4"),
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


# -- experts


LANGUAGE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MIXTURES = {
    "Mixtral": lambda: transformers.MixtralConfig(**LANGUAGE, num_local_experts=4),
    "Qwen3Moe": lambda: transformers.Qwen3MoeConfig(
        **LANGUAGE, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, head_dim=8
    ),
    "Qwen2Moe": lambda: transformers.Qwen2MoeConfig(
        **LANGUAGE, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, shared_expert_intermediate_size=32
    ),
    "GptOss": lambda: transformers.GptOssConfig(
        **LANGUAGE, num_local_experts=4, num_experts_per_tok=2, head_dim=8, sliding_window=16
    ),
    "DeepseekV3": lambda: transformers.DeepseekV3Config(
        **LANGUAGE | {"num_key_value_heads": 4},
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        first_k_dense_replace=1,
        n_group=1,
        topk_group=1,
        kv_lora_rank=16,
        q_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
    ),
    "Olmoe": lambda: transformers.OlmoeConfig(**LANGUAGE, num_experts=4, num_experts_per_tok=2),
    "Llama4Text": lambda: transformers.Llama4TextConfig(
        **LANGUAGE, num_local_experts=4, intermediate_size_mlp=64, head_dim=8, attention_chunk_size=32
    ),
    "JetMoe": lambda: transformers.JetMoeConfig(
        **LANGUAGE | {"num_key_value_heads": 2}, num_local_experts=4, num_experts_per_tok=2, kv_channels=16
    ),
    "Dbrx": lambda: transformers.DbrxConfig(
        d_model=32,
        n_heads=4,
        n_layers=2,
        max_seq_len=64,
        vocab_size=64,
        pad_token_id=0,
        attn_config={"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},  # the last, since transformers forgets it
        ffn_config={"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    ),
}
TOKENS = torch.arange(3, 19).view(2, 8)


def mixture(name: str, implementation: str | None = None):
    config = MIXTURES[name]()
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    if implementation is not None:
        model.config._experts_implementation = implementation
    for parameter in model.parameters():  # some of these are zero at first
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return model


def with_adapters(model, seed=1, scale=0.2):
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return model


def stepped(model, **options):
    """Logits, and gradients of everything that has one."""
    model.zero_grad()
    logits = model(input_ids=TOKENS, use_cache=False, **options).logits
    logits.float().log_softmax(-1)[..., 5].sum().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_step(one, other) -> None:
    assert torch.equal(one[0], other[0])
    assert_same(one[1], other[1])


def experts_decoded(name, implementation=None, **options):
    """The model with layers in 4 bits, and with experts whose plain weights were coded and decoded."""
    model = mixture(name, implementation)
    for path, parameter in find_stacks(model):
        module = model.get_submodule(path)
        weight = getattr(module, parameter)
        weight.data = quantize(weight, **PLAIN | options).dequantize()
    return with_adapters(quantize_only_linears(model, **options))


def quantize_only_linears(model, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qlora_lab.qlora.find_stacks", lambda model: [])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return quantize_model(model, rank=2, **PLAIN | options)


@pytest.fixture(autouse=True)
def _quiet_transformers():
    transformers.logging.set_verbosity_error()


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_computes_what_its_decoded_experts_compute(name, implementation):
    expected = experts_decoded(name, implementation)
    with warnings.catch_warnings(record=True) as told:
        model = with_adapters(quantize_model(mixture(name, implementation), rank=2))
    told = [str(warning.message) for warning in told]  # nothing large stays as it was
    if name == "Llama4Text":  # whose routers inherit from nn.Linear
        assert len(told) == 1 and re.match(r"2 linear layers compute something else .*\.router$", told[0])
    else:
        assert told == []
    kept = {f"{type(module).__name__}.{parameter}" for module, parameter, _ in quantized_parameters(model)}
    assert kept and not any("bias" in parameter for parameter in kept)
    assert all(p.ndim < 3 for p in model.parameters())
    assert_same_step(stepped(model), stepped(expected))
    assert count_parameters(model) == count_parameters(expected)
    assert sum(p.nbytes for p in model.parameters()) < 0.7 * sum(p.nbytes for p in expected.parameters())


@pytest.mark.parametrize("name", ["Mixtral", "GptOss"])
@pytest.mark.parametrize(
    "options",
    [
        {"datatype": "fp4"},
        {"datatype": "int4_affine", "double_quant": False},
        {"datatype": "nvfp4", "block_size": 16, "double_quant": False},
        {"block_size": 32, "double_quant": False},
    ],
    ids=str,
)
def test_in_every_data_type(name, options):
    model = with_adapters(quantize_model(mixture(name), rank=2, **PLAIN | options))
    assert_same_step(stepped(model), stepped(experts_decoded(name, **options)))


def test_experts_equal_those_of_bitsandbytes_bit_for_bit():
    # Blocks of 32: bitsandbytes' build for CPUs decodes a block to wrong numbers where it spans rows of the weight.
    theirs = mixture("Mixtral")
    ours = quantize_model(mixture("Mixtral"), rank=0, block_size=32, double_quant=False)
    found = list(quantized_parameters(ours))
    assert len(found) == 4
    for (path, name), (module, same_name, _) in zip(find_stacks(theirs), found, strict=True):
        assert name == same_name
        of = theirs.get_submodule(path)
        replace_parameter_4bit(of, name, compress_statistics=False, quant_type="nf4", blocksize=32)
        with torch.no_grad():
            assert torch.equal(getattr(module, name).decode(), getattr(of, name))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_that_is_cast_reads_experts_of_its_dtype(dtype):
    model = quantize_model(mixture("Mixtral"), rank=2).to(dtype)
    kept = {id(k): k for _, _, k in quantized_parameters(model)}
    assert kept and all(k.codes.dtype == torch.uint8 and k.scale_scales.dtype == torch.float32 for k in kept.values())
    experts = model.model.layers[0].mlp.experts
    assert experts.down_proj.dtype == dtype
    dequantized = quantize_model(mixture("Mixtral"), rank=2)
    dequantize_parameters(dequantized)
    assert torch.equal(experts.down_proj.decode(), dequantized.to(dtype).model.layers[0].mlp.experts.down_proj)
    if dtype != torch.float64:  # of which the layers in 4 bits know nothing
        assert model(input_ids=TOKENS).logits.dtype == dtype


@pytest.mark.parametrize("name", ["Mixtral", "GptOss"])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(name, use_reentrant):
    model = with_adapters(quantize_model(mixture(name), rank=2)).train()
    expected = stepped(model)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    assert_same_step(stepped(model), expected)


def test_under_autocast_they_compute_what_decoded_ones_do():
    model, expected = (
        with_adapters(quantize_model(mixture("Mixtral", "eager"), rank=2)),
        experts_decoded("Mixtral", "eager"),
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert_same_step(stepped(model), stepped(expected))


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_no_decoded_expert_is_kept_for_the_backward_pass(implementation):
    model = with_adapters(quantize_model(mixture("Mixtral", implementation), rank=2)).train()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        model(input_ids=TOKENS)
    assert any(isinstance(t, UndecodedTensor) and t.numel() >= 64 * 32 for t in saved)  # of an expert's matrix
    decoded = torch.cat([kept.quantized.dequantize().flatten() for _, _, kept in quantized_parameters(model)])
    plain = [t for t in saved if not isinstance(t, UndecodedTensor) and t.dtype == decoded.dtype and t.numel() >= 64]
    assert plain and not any(torch.isin(t, decoded).all() for t in plain)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("name", ["Mixtral", "GptOss", "Dbrx"])
def test_copies_are_equal_and_independent(name, duplicate):
    model = with_adapters(quantize_model(mixture(name), rank=2))
    other = duplicate(model)
    assert_same_step(stepped(other), stepped(model))
    for _, _, kept in quantized_parameters(other):
        kept.codes.zero_()
    assert not torch.equal(stepped(other)[0], stepped(model)[0])
    assert [type(m) for m in other.modules()] == [type(m) for m in model.modules()]


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("way", [lambda state, _: state, through_a_file], ids=["", "safetensors"])
def test_the_state_of_a_mixture_goes_to_another(way, assign, tmp_path):
    model = with_adapters(quantize_model(mixture("Mixtral"), rank=2))
    torch.manual_seed(9)
    other = quantize_model(transformers.AutoModelForCausalLM.from_config(MIXTURES["Mixtral"]()), rank=2)
    other.config._attn_implementation = "eager"
    other.load_state_dict(way(model.state_dict(), tmp_path), assign=assign)
    assert torch.equal(other(input_ids=TOKENS).logits, model(input_ids=TOKENS).logits)
    wrong = quantize_model(mixture("Mixtral"), "fp4", rank=2).state_dict()
    experts_only = {name: tensor for name, tensor in wrong.items() if ".experts." in name}
    with pytest.raises(RuntimeError, match=r"experts\.in_four_bits\.gate_up_proj.*'fp4', not 'nf4'"):
        other.load_state_dict(experts_only, strict=False)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_merging_gives_plain_parameters_back(dtype):
    model, plain = quantize_model(mixture("Mixtral"), rank=2), mixture("Mixtral")
    expected = {
        f"{path}.{name}": quantize(getattr(plain.get_submodule(path), name), **PLAIN).dequantize(dtype)
        for path, name in find_stacks(plain)
    }
    merge_and_unload(model, dtype)
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert model.state_dict().keys() == plain.state_dict().keys()
    for name, weight in expected.items():
        found = model.get_parameter(name)
        assert torch.equal(found, weight) and not found.requires_grad


def test_adapters_of_a_mixture_open_in_peft_and_come_back(tmp_path):
    model = with_adapters(quantize_model(mixture("Mixtral"), rank=2), scale=0.05)  # more would enlarge rounding errors
    save_adapter(model, tmp_path)
    again = load_adapter(quantize_model(mixture("Mixtral"), rank=0), tmp_path)
    assert torch.equal(again(input_ids=TOKENS).logits, model(input_ids=TOKENS).logits)
    plain = mixture("Mixtral")
    for path, name in find_stacks(plain):
        weight = getattr(plain.get_submodule(path), name)
        weight.data = quantize(weight, **PLAIN).dequantize()
    for name, layer in plain.named_modules():
        if isinstance(layer, nn.Linear) and name != "lm_head":
            layer.weight.data = quantize(layer.weight, **PLAIN).dequantize()
    theirs = peft.PeftModel.from_pretrained(plain, tmp_path)
    found, expected = model(input_ids=TOKENS).logits, theirs(input_ids=TOKENS).logits
    tolerance = 1e-5 * expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    with theirs.disable_adapter():
        assert (theirs(input_ids=TOKENS).logits - expected).abs().max() > 1000 * tolerance


def test_the_ledger_sees_codes_as_base_and_decoded_experts_as_temporary():
    model = with_adapters(quantize_model(mixture("Mixtral", "grouped_mm"), rank=2)).train()
    with MemoryTrace(model) as trace:
        stepped(model)
    held = sum(t.nbytes for _, _, kept in quantized_parameters(model) for t in kept.parameters())
    layers = sum(m.quantized.nbytes for m in model.modules() if isinstance(m, QLoRALinear))
    at_start = [r for r in trace.records if r.step == 0]
    base = sum(r.nbytes for r in at_start if r.category == "quantized base")
    assert base == held + layers
    whole = 4 * (4 * 128 * 32)
    decoded = [r for r in trace.records if r.nbytes == whole and r.step > 0]
    assert decoded and {r.category for r in decoded} == {"temporary"}


# -- what else there is


class Others(nn.Module):
    """Weights that are neither linear layers nor stacks."""

    def __init__(self, kind: str):
        super().__init__()
        self.linear = nn.Linear(32, 32)
        self.kind = kind
        if kind == "a matrix":
            self.other = nn.Parameter(torch.randn(64, 32))
        elif kind == "a convolution":
            self.other = nn.Conv1d(32, 32, 3)
        elif kind == "a recurrent layer":
            self.other = nn.LSTM(32, 32)
        elif kind == "a bilinear layer":
            self.other = nn.Bilinear(32, 32, 8)

    def get_output_embeddings(self):
        return None


@pytest.mark.parametrize("kind", ["a matrix", "a convolution", "a recurrent layer", "a bilinear layer"])
def test_what_stays_is_told_with_its_share_and_names(kind):
    model = Others(kind)
    before = {name: p.clone() for name, p in model.named_parameters() if name.startswith("other")}
    with pytest.warns(UserWarning, match=r"\d\d% of the weights .*other") as told:
        quantize_model(model, rank=0)
    assert len(told) == 1
    assert all(torch.equal(model.get_parameter(name), p) for name, p in before.items())


@pytest.mark.parametrize("kind", ["embeddings", "little"])
def test_embeddings_and_little_are_not_told(kind):
    other = nn.Embedding(1000, 32) if kind == "embeddings" else nn.LayerNorm(32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize_model(nn.Sequential(nn.Linear(32, 64), other), rank=0)


NOT_STACKS = {
    "a table of positions": lambda m: m.register_parameter("position_embeddings", nn.Parameter(torch.randn(2, 64, 32))),
    "one matrix with a dimension more": lambda m: m.register_parameter("query", nn.Parameter(torch.randn(1, 64, 32))),
    "biases": lambda m: m.register_parameter("proj_bias", nn.Parameter(torch.randn(4, 64, 32))),
    "kernels of a convolution": lambda m: m.register_parameter("kernels", nn.Parameter(torch.randn(32, 32, 3, 3))),
    "a torch layer": lambda m: m.add_module("conv", nn.Conv3d(16, 16, 16)),
    "integers": lambda m: m.register_parameter("ids", nn.Parameter(torch.ones(2, 64, 32).int(), requires_grad=False)),
}


@pytest.mark.parametrize("kind", NOT_STACKS)
def test_what_is_no_stack_of_matrices_stays(kind):
    model = Others("nothing more")
    NOT_STACKS[kind](model)
    assert find_stacks(model) == []


def test_what_two_modules_share_stays():
    one, other = Experts(), Experts()
    other.up = one.up
    assert find_stacks(nn.Sequential(one, other)) == [("0", "down"), ("1", "down")]


def test_an_error_in_the_experts_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(32, 48), nn.Linear(48, 32), Experts())
    model[2].down.data[1, 3, 5] = float("nan")
    with pytest.raises(ValueError, match=r"^2\.down: weight\[1, 3, 5\] is nan"):
        quantize_model(model, rank=0)
    assert [type(m) for m in model] == [nn.Linear, nn.Linear, Experts] and model[2].up.requires_grad


def test_experts_without_any_linear_layer_are_quantized():
    model = nn.Sequential(Experts())
    expected = [quantize(getattr(model[0], name), **PLAIN).dequantize() for name in ("up", "down")]
    told = []
    quantize_model(model, rank=0, progress=lambda *counts: told.append(counts))
    assert [torch.equal(getattr(model[0], n).decode(), e) for n, e in zip(("up", "down"), expected, strict=True)]
    assert told == [(1, 2), (2, 2)]
    with pytest.raises(ValueError, match="quantized already"):
        quantize_model(model, rank=0)


def test_a_parameter_put_in_its_place_by_hand_is_the_one_that_counts():
    model = quantize_model(nn.Sequential(Experts()), rank=0)
    mine = nn.Parameter(torch.zeros(2, 48, 32))
    before = values(model)
    with pytest.raises(TypeError, match="up is stored in 4 bits"):
        model[0].up = torch.zeros(2, 48, 32)
    assert_same(values(model), before)
    model[0].up = mine
    assert model[0].up is mine and [name for _, name, _ in quantized_parameters(model)] == ["down"]
    assert model.state_dict()["0.up"].shape == (2, 48, 32)
    assert torch.equal(model(torch.ones(1, 32)), model(torch.zeros(1, 32)))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_torch_compile_of_experts(backend):
    model = quantize_model(nn.Sequential(Experts()), rank=0)
    x = torch.randn(4, 32, requires_grad=True)
    expected = model(x)
    (gradient,) = torch.autograd.grad(expected.sum(), x)
    found = torch.compile(model, backend=backend, fullgraph=True)(x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), x)[0], gradient)
