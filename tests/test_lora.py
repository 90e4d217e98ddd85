"""LoRA layers: parity with PEFT, and the properties that make an adapter an adapter."""

import copy
import threading

import pytest
import torch
import torch.nn.utils.prune
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
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
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from qlora_lab import (
    LoRALinear,
    count_parameters,
    inject_lora,
    merge,
    merge_and_unload,
    quantize_model,
    unmerge,
)
from qlora_lab.lora import adapted_layers, disabled, find_targets, output_head

devices = pytest.mark.parametrize(
    "device", [pytest.param(name, marks=pytest.mark.cuda if name == "cuda" else ()) for name in DEVICES]
)

# float32 on both sides; the order of additions differs: 1e-5 of the largest value is 170 roundings
FLOAT32 = 1e-5


def peft_model(base, **options):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="CAUSAL_LM", lora_dropout=options.pop("lora_dropout", 0.0), **options)
    return randomize_adapters(peft.get_peft_model(base, config))


# --- parity with PEFT


@devices
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize(
    ("targets", "rank", "alpha"),
    [("all-linear", 4, 8), (["q_proj", "v_proj"], 3, 5), (r".*\.1\..*(k|down)_proj", 8, 1.5)],
)
def test_logits_and_gradients_equal_pefts(device, bias, use_rslora, targets, rank, alpha):
    reference = peft_model(
        tiny_llama(bias=bias), r=rank, lora_alpha=alpha, target_modules=targets, use_rslora=use_rslora
    ).to(device)
    model = inject_lora(tiny_llama(bias=bias), rank, alpha, targets, use_rslora=use_rslora).to(device)
    copy_adapters(reference, model)
    tokens = token_batch().to(device)
    assert_close(model(tokens).logits, reference(tokens).logits, FLOAT32)
    expected_loss, expected = loss_and_gradients(reference, tokens)
    loss, gradients = loss_and_gradients(model, tokens)
    assert_close(loss, expected_loss, FLOAT32)
    assert_close(gradients, expected, FLOAT32)
    assert all(gradient.abs().max() > 0 for gradient in gradients.values())


def test_the_adapter_changes_the_logits():
    """Without this, the parity above could hold of two models that ignore their adapters."""
    model = inject_lora(tiny_llama(), 4, 8)
    before = model(token_batch()).logits
    after = randomize_adapters(model)(token_batch()).logits
    assert (after - before).abs().max() > 0.1 * before.abs().max()


def test_dropout_draws_pefts_masks():
    reference = peft_model(tiny_llama(), r=4, lora_alpha=8, target_modules="all-linear", lora_dropout=0.4).train()
    model = inject_lora(tiny_llama(), 4, 8, dropout=0.4).train()
    copy_adapters(reference, model)
    results = []
    for each in (reference, model):
        torch.manual_seed(7)
        results.append(loss_and_gradients(each, token_batch()))
    assert_close(results[1][0], results[0][0], FLOAT32)
    assert_close(results[1][1], results[0][1], FLOAT32)


def test_initialization_has_pefts_distribution():
    peft = pytest.importorskip("peft")
    reference = peft.get_peft_model(tiny_llama(), peft.LoraConfig(r=64, target_modules=["down_proj"]))
    theirs = torch.cat([p.flatten() for n, p in reference.named_parameters() if "lora_A" in n])
    torch.manual_seed(3)
    model = inject_lora(tiny_llama(), 64, 8, ["down_proj"])
    ours = torch.cat([layer.lora_A.detach().flatten() for _, layer in adapted_layers(model)])
    bound = 128**-0.5
    for a in (ours, theirs):
        assert a.abs().max() <= bound
        assert a.abs().max() > 0.999 * bound
        # 16,384 draws: five standard errors of the mean and of the standard deviation of U(-bound, bound)
        assert abs(a.mean()) < 5 * bound / 3**0.5 / len(a) ** 0.5
        assert abs(a.std() / (bound / 3**0.5) - 1) < 5 * 0.45 / len(a) ** 0.5
    assert all(not layer.lora_B.any() for _, layer in adapted_layers(model))


# --- the layer


@settings(max_examples=40, deadline=None)
@given(
    n_in=st.integers(1, 40),
    n_out=st.integers(1, 40),
    rank=st.integers(1, 12),
    alpha=st.floats(0.25, 64),
    use_rslora=st.booleans(),
    bias=st.booleans(),
    lead=st.lists(st.integers(0, 4), max_size=3),
    seed=st.integers(0, 2**31),
)
def test_a_layer_equals_the_formula_with_the_full_weight(n_in, n_out, rank, alpha, use_rslora, bias, lead, seed):
    """In float64, where y = (W + s B A) x can be differentiated by autograd with no rounding to speak of."""
    torch.manual_seed(seed)
    layer = LoRALinear(nn.Linear(n_in, n_out, bias, dtype=torch.float64), rank, alpha, use_rslora=use_rslora).double()
    nn.init.normal_(layer.lora_B)
    x = torch.randn(*lead, n_in, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    g = torch.randn_like(y)
    inputs = (x, layer.lora_A, layer.lora_B)
    scaling = alpha / (rank**0.5 if use_rslora else rank)
    expected = F.linear(x, layer.base.weight + scaling * layer.lora_B @ layer.lora_A, layer.base.bias)
    assert y.shape == (*lead, n_out)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(torch.autograd.grad(y, inputs, g), torch.autograd.grad(expected, inputs, g))


@devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_first_forward_equals_the_base_bit_for_bit(device, dtype):
    model = tiny_llama(bias=True).to(device, dtype)
    tokens = token_batch().to(device)
    before = model(tokens).logits
    assert torch.equal(inject_lora(model, 8, 16, dropout=0.3)(tokens).logits, before)


@devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_adapters_are_float32_and_the_output_has_the_bases_dtype(device, dtype):
    model = inject_lora(tiny_llama().to(device, dtype), 4, 8)
    _, gradients = loss_and_gradients(randomize_adapters(model), token_batch().to(device))
    assert model(token_batch().to(device)).logits.dtype == dtype
    assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}
    assert {gradient.device.type for gradient in gradients.values()} == {device}


@devices
def test_autocast(device):
    model = randomize_adapters(inject_lora(tiny_llama(), 4, 8)).to(device)
    tokens = token_batch().to(device)
    expected = loss_and_gradients(model, tokens)
    with torch.autocast(device, torch.bfloat16):
        loss, gradients = loss_and_gradients(model, tokens)
    assert_close(loss, expected[0], 0.03)  # bfloat16 has eight bits: each product is off by up to 0.4 %
    assert_close(gradients, expected[1], 0.1)


def test_only_adapters_get_gradients_and_modes_are_kept():
    model = tiny_llama()
    model.model.layers[0].eval()
    inject_lora(model, 4, 8)
    loss_and_gradients(model, token_batch())
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("lora_" in name), name
        assert (parameter.grad is not None) == ("lora_" in name), name
    for path, layer in adapted_layers(model):
        assert layer.training == layer.base.training == (".layers.0." not in path)


def test_dropout_drops_and_rescales_inputs_of_a_only():
    p, n = 0.3, 20_000
    layer = LoRALinear(nn.Linear(1, 1, bias=False), 1, 1, dropout=p)
    with torch.no_grad():
        layer.base.weight.fill_(10.0)
        layer.lora_A.fill_(1.0)
        layer.lora_B.fill_(1.0)
    torch.manual_seed(0)
    x = torch.ones(n, 1)
    update = layer(x) - 10
    kept = update != 0
    torch.testing.assert_close(update[kept], torch.full_like(update[kept], 1 / (1 - p)))
    assert abs(kept.float().mean() - (1 - p)) < 5 * (p * (1 - p) / n) ** 0.5  # five standard errors
    assert torch.equal(layer.eval()(x), torch.full((n, 1), 11.0))


def test_a_seed_gives_the_same_adapter_again():
    models = []
    for seed in (5, 5, 6):
        base = tiny_llama()
        torch.manual_seed(seed)
        models.append(
            torch.cat([layer.lora_A.detach().flatten() for _, layer in adapted_layers(inject_lora(base, 2, 4))])
        )
    assert torch.equal(models[0], models[1])
    assert not torch.equal(models[0], models[2])


@pytest.mark.cuda
def test_a_seed_gives_the_same_adapter_on_every_device():
    adapters = []
    for device in DEVICES:
        base = nn.Linear(16, 8, device=device)
        torch.manual_seed(0)
        adapters.append(LoRALinear(base, 4, 8).lora_A)
    assert adapters[1].is_cuda
    assert torch.equal(adapters[0], adapters[1].cpu())


def test_default_dtype_and_device_of_torch_do_not_matter():
    base = nn.Linear(8, 8)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            layer = LoRALinear(base, 2, 4)
    finally:
        torch.set_default_dtype(torch.float32)
    for parameter in (layer.lora_A, layer.lora_B):
        assert parameter.dtype == torch.float32
        assert parameter.device.type == "cpu"


def test_a_deep_copy_is_independent():
    model = randomize_adapters(inject_lora(tiny_llama(), 2, 4))
    twin = copy.deepcopy(model)
    before = twin(token_batch()).logits
    for _, layer in adapted_layers(model):
        layer.lora_B.data.zero_()
    assert torch.equal(twin(token_batch()).logits, before)


# --- which layers


def paths(*names, layers=(0, 1)):
    return {
        f"model.layers.{i}.{'mlp' if name in LINEAR_NAMES[4:] else 'self_attn'}.{name}"
        for i in layers
        for name in names
    }


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("all-linear", paths(*LINEAR_NAMES)),
        (["q_proj"], paths("q_proj")),
        (("q_proj", "down_proj"), paths("q_proj", "down_proj")),
        ({"v_proj"}, paths("v_proj")),
        (["self_attn.q_proj"], paths("q_proj")),
        (["layers.1.self_attn.q_proj"], paths("q_proj", layers=[1])),
        (["model.layers.1.self_attn.q_proj", "up_proj"], paths("q_proj", layers=[1]) | paths("up_proj")),
        (["lm_head"], {"lm_head"}),
        (r".*\.0\.mlp\..*_proj", paths("gate_proj", "up_proj", "down_proj", layers=[0])),
        (r"lm_head|.*\.q_proj", paths("q_proj") | {"lm_head"}),
    ],
)
def test_targets_mean_what_they_mean_in_peft(targets, expected):
    peft = pytest.importorskip("peft")
    model = inject_lora(tiny_llama(), 2, 4, targets)
    ours = {path for path, _ in adapted_layers(model)}
    options = targets if isinstance(targets, str) else list(targets)
    theirs = {
        name.removeprefix("base_model.model.")
        for name, module in peft_model(tiny_llama(), r=2, target_modules=options).named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
    }
    assert ours == theirs == expected


@pytest.mark.parametrize("tied", [False, True])
def test_all_linear_never_touches_the_output_head(tied):
    model = inject_lora(tiny_llama(tied=tied), 2, 4)
    assert type(model.lm_head) is nn.Linear
    assert output_head(model) is model.lm_head
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


def test_a_model_that_does_not_know_its_head_is_adapted_everywhere():
    model = inject_lora(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), 2, 4)
    assert [path for path, _ in adapted_layers(model)] == ["0", "2"]


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (["query"], ["'query' matches no module", *LINEAR_NAMES, "lm_head"]),
        (["q_proj", "proj"], ["'proj' matches no module", "q_proj"]),  # a suffix of a name is not a name
        ("q_proj", ["regular expression", "did you mean ['q_proj']", "down_proj"]),
        (r".*\.(q_proj", ["not a regular expression", "q_proj"]),
        (r".*nothing.*", ["matches no module", "q_proj"]),
        ([], ["empty", "all-linear", "q_proj"]),
        (["mlp"], ["matches model.layers.0.mlp, a LlamaMLP", "q_proj"]),
        (["embed_tokens"], ["model.embed_tokens, a Embedding", "q_proj"]),
        ("all-Linear", ["matches no module", "q_proj"]),
    ],
)
@pytest.mark.parametrize("adapt", [inject_lora, quantize_model])
def test_targets_that_mean_nothing(adapt, targets, words):
    model = tiny_llama()
    before = snapshot(model)
    with pytest.raises(ValueError) as raised:
        adapt(model, rank=4, alpha=8, target_modules=targets)
    for word in words:
        assert word in str(raised.value)
    assert_unchanged(model, before)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rank": 0}, "rank 0"),
        ({"rank": -1}, "rank -1"),
        ({"rank": 2.0}, "whole number"),
        ({"rank": True}, "rank True"),
        ({"alpha": 0}, "alpha 0"),
        ({"alpha": -8}, "positive"),
        ({"alpha": float("nan")}, "alpha nan"),
        ({"alpha": "16"}, "alpha '16'"),
        ({"dropout": 1.0}, "dropout 1.0"),
        ({"dropout": -0.1}, "probability"),
        ({"dropout": float("nan")}, "dropout nan"),
        ({"dropout": "0.1"}, "dropout '0.1'"),
    ],
)
def test_arguments_that_make_no_sense(options, words):
    model = tiny_llama()
    before = snapshot(model)
    with pytest.raises(ValueError, match=words):
        inject_lora(model, **{"rank": 4, "alpha": 8, **options})
    assert_unchanged(model, before)


def test_adapters_are_not_put_on_adapters():
    model = inject_lora(tiny_llama(), 2, 4, ["q_proj"])
    before = snapshot(model)
    with pytest.raises(ValueError, match="has adapters already"):
        inject_lora(model, 2, 4, ["v_proj"])
    assert_unchanged(model, before)


def test_no_linear_layers():
    with pytest.raises(ValueError, match="no linear layers"):
        inject_lora(nn.Sequential(nn.ReLU()), 2, 4)


def test_a_layer_whose_adapter_was_taken_away_can_get_another():
    model = inject_lora(tiny_llama(), 2, 4, ["q_proj"])
    for _, layer in adapted_layers(model):
        layer.reset_adapter(0, 1)
    assert set(find_targets(model, "all-linear")) == paths(*LINEAR_NAMES)
    inject_lora(model, 3, 4)
    assert {layer.rank for _, layer in adapted_layers(model)} == {3}
    assert not any(isinstance(layer.base, LoRALinear) for _, layer in adapted_layers(model))


# --- counting


def llama_7b():
    return LlamaConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32
    )


def llama_3_8b():
    return LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    )


@pytest.mark.parametrize(
    ("config", "rank", "base", "trainable"),
    [(llama_7b, 64, 6_738_415_616, 159_907_840), (llama_3_8b, 16, 8_030_261_248, 41_943_040)],
)
def test_published_parameter_counts(config, rank, base, trainable):
    with torch.device("meta"):
        model = LlamaForCausalLM(config())
    assert count_parameters(model) == (base, base)
    inject_lora(model, rank, 16)
    assert count_parameters(model) == (trainable, base + trainable)
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]])
def test_counts_equal_pefts(tied, targets):
    reference = peft_model(tiny_llama(tied=tied), r=4, target_modules=targets)
    counted = count_parameters(inject_lora(tiny_llama(tied=tied), 4, 8, targets))
    assert counted == reference.get_nb_trainable_parameters()
    assert counted == count_parameters(reference)
    assert counted.trainable < counted.total


@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_counts_of_a_bitsandbytes_model_equal_pefts(double_quant, tied):
    base = quantize_with_bitsandbytes(tiny_llama(tied=tied, bias=True), double_quant)
    assert base.model.layers[0].self_attn.q_proj.weight.dtype == torch.uint8
    assert count_parameters(base).total == count_parameters(tiny_llama(tied=tied, bias=True)).total
    reference = peft_model(base, r=4, target_modules="all-linear")
    assert count_parameters(reference) == reference.get_nb_trainable_parameters()


@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_a_4_bit_weight_counts_with_what_it_encodes(double_quant, tied):
    plain = count_parameters(inject_lora(tiny_llama(tied=tied, bias=True), 4, 8))
    assert (
        count_parameters(quantize_model(tiny_llama(tied=tied, bias=True), rank=4, double_quant=double_quant)) == plain
    )
    without = count_parameters(quantize_model(tiny_llama(tied=tied, bias=True), rank=0, double_quant=double_quant))
    assert without == (0, plain.total - plain.trainable)


def test_an_odd_number_of_weights_is_counted_exactly():
    model = quantize_model(nn.Sequential(nn.Linear(5, 7)), rank=2, alpha=4)
    assert count_parameters(model) == (2 * (5 + 7), 5 * 7 + 7 + 2 * (5 + 7))


# --- merging


@devices
@pytest.mark.parametrize("use_rslora", [False, True])
def test_merge_keeps_the_logits_and_unmerge_restores_the_weights(device, use_rslora):
    model = randomize_adapters(inject_lora(tiny_llama(), 4, 8, use_rslora=use_rslora)).to(device)
    tokens = token_batch().to(device)
    logits = model(tokens).logits
    weights = {name: layer.base.weight.clone() for name, layer in adapted_layers(model)}
    assert merge(model) is model
    assert_close(model(tokens).logits, logits, FLOAT32)
    merged = model(tokens).logits
    merge(model)  # a second time changes nothing
    assert torch.equal(model(tokens).logits, merged)
    for name, layer in adapted_layers(model):
        assert not torch.equal(layer.base.weight, weights[name])
    unmerge(model)
    for name, layer in adapted_layers(model):
        assert_close(layer.base.weight, weights[name], 2**-23)
    unmerge(model)
    assert_close(model(tokens).logits, logits, FLOAT32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_merged_weights_are_rounded_once(dtype):
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(64, 48, dtype=dtype), 4, 8)
    nn.init.normal_(layer.lora_B, std=0.05)
    expected = (layer.base.weight.float() + 2 * layer.lora_B @ layer.lora_A).to(dtype)
    assert torch.equal(layer.merged_linear().weight, expected)
    layer.merge()
    assert torch.equal(layer.base.weight, expected)
    assert torch.equal(layer.merged_linear().weight, expected)  # what is merged is not added again


@pytest.mark.parametrize("was_merged", [False, True])
def test_merge_and_unload_gives_a_plain_model_with_the_same_logits(was_merged):
    model = randomize_adapters(inject_lora(tiny_llama(bias=True), 4, 8))
    logits = model(token_batch()).logits
    if was_merged:
        merge(model)
    model.model.layers[1].eval()
    assert merge_and_unload(model) is model
    assert not list(adapted_layers(model))
    assert not model.model.layers[1].mlp.down_proj.training
    assert model.state_dict().keys() == tiny_llama(bias=True).state_dict().keys()
    assert_close(model(token_batch()).logits, logits, FLOAT32)


def test_merge_and_unload_equals_pefts():
    reference = peft_model(tiny_llama(), r=4, lora_alpha=8, target_modules="all-linear")
    model = inject_lora(tiny_llama(), 4, 8)
    copy_adapters(reference, model)
    merge_and_unload(model)
    assert_close(model.state_dict(), reference.merge_and_unload().state_dict(), 1e-6)


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_merge_and_unload_decodes_a_4_bit_base(dtype):
    model = randomize_adapters(quantize_model(tiny_llama(bias=True), rank=4, alpha=8, target_modules=["q_proj"]))
    logits = model(token_batch()).logits
    merge_and_unload(model, dtype)
    assert type(model.model.layers[0].mlp.up_proj) is nn.Linear  # 4-bit, but without an adapter
    assert model.model.layers[0].self_attn.q_proj.weight.dtype == (dtype or torch.float32)
    model.float()
    assert_close(model(token_batch()).logits, logits, 0.05 if dtype == torch.bfloat16 else FLOAT32)


def test_merge_refuses_a_4_bit_base():
    model = randomize_adapters(quantize_model(tiny_llama(), rank=4, alpha=8))
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"q_proj has a 4-bit base.*merge_and_unload"):
        merge(model)
    assert_unchanged(model, before)


def test_merge_refuses_a_tied_weight_and_merge_and_unload_unties_it():
    model = randomize_adapters(inject_lora(tiny_llama(tied=True), 4, 8, ["q_proj", "lm_head"]))
    logits, before = model(token_batch()).logits, snapshot(model)
    embeddings = model.model.embed_tokens.weight.clone()
    with pytest.raises(ValueError, match=r"lm_head shares its weight.*merge_and_unload"):
        merge(model)
    assert_unchanged(model, before)
    merge_and_unload(model)
    assert torch.equal(model.model.embed_tokens.weight, embeddings)
    assert_close(model(token_batch()).logits, logits, FLOAT32)


def test_a_bitsandbytes_base_can_be_trained_but_not_merged():
    model = randomize_adapters(inject_lora(quantize_with_bitsandbytes(tiny_llama(), True), 4, 8))
    _, gradients = loss_and_gradients(model, token_batch())
    assert len(gradients) == 2 * 2 * len(LINEAR_NAMES)
    before = snapshot(model)
    for attempt in (merge, merge_and_unload):
        with pytest.raises(ValueError, match=r"Linear4bit keeps its weight as packed torch.uint8"):
            attempt(model)
    assert_unchanged(model, before)


def test_a_layer_without_an_adapter_has_no_delta():
    layer = LoRALinear(nn.Linear(4, 4), 0, 1)
    with pytest.raises(ValueError, match="no adapter"):
        layer.delta()
    x = torch.randn(3, 4)
    assert torch.equal(layer(x), layer.base(x))


# --- adapters switched off


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("kind", ["lora", "qlora"])
def test_switched_off_the_model_is_its_base_to_the_bit_and_on_again_it_is_itself(kind, mode):
    def make(rank):
        if kind == "qlora":
            return quantize_model(tiny_llama(), rank=rank, alpha=8, dropout=0.0)
        return inject_lora(tiny_llama(), rank, 8) if rank else tiny_llama()

    base, model = make(0), randomize_adapters(make(4))
    getattr(base, mode)(), getattr(model, mode)()
    tokens = token_batch(0, (3, 11))
    before, values = model(tokens).logits, snapshot(model)
    with disabled(model) as same:
        assert same is model
        assert torch.equal(model(tokens).logits, base(tokens).logits)
    assert torch.equal(model(tokens).logits, before) and not torch.equal(before, base(tokens).logits)
    assert_unchanged(model, values)


def test_switched_off_nothing_is_dropped_and_no_adapter_gets_a_gradient():
    model = randomize_adapters(quantize_model(tiny_llama(), rank=4, alpha=8, dropout=0.5)).train()
    model.model.embed_tokens.weight.requires_grad_(True)  # something that does get one
    with disabled(model):
        one, other = model(token_batch()).logits, model(token_batch()).logits
        one.sum().backward()
    assert torch.equal(one, other)
    assert all(layer.lora_A.grad is None and layer.lora_B.grad is None for _, layer in adapted_layers(model))
    assert model.model.embed_tokens.weight.grad.abs().max() > 0


def test_they_are_on_again_after_an_error_and_after_the_outermost_of_two():
    model = randomize_adapters(inject_lora(tiny_llama(), 4, 8))
    tokens = token_batch()
    tuned = model(tokens).logits
    with pytest.raises(RuntimeError, match="stop"), disabled(model):
        raise RuntimeError("stop")
    assert torch.equal(model(tokens).logits, tuned)
    with disabled(model):
        with disabled(model):
            base = model(tokens).logits
        assert torch.equal(model(tokens).logits, base) and not torch.equal(base, tuned)
    assert torch.equal(model(tokens).logits, tuned)


def test_what_is_merged_cannot_be_switched_off():
    model = merge(randomize_adapters(inject_lora(tiny_llama(), 4, 8)))
    with pytest.raises(ValueError, match="call unmerge first"), disabled(model):
        pass
    with disabled(unmerge(model)):
        assert_close(model(token_batch()).logits, tiny_llama()(token_batch()).logits, FLOAT32)
    with disabled(tiny_llama()):  # no adapters: nothing to switch
        pass


def test_two_threads_switch_off_and_leave_it_on():
    model = stirred(inject_lora(nn.Sequential(nn.Linear(8, 8)), 2, 4))
    inside, both, left = (threading.Event() for _ in range(3))

    def one():
        with disabled(model):
            inside.set()
            both.wait(5)
        left.set()

    def two():
        inside.wait(5)
        with disabled(model):
            both.set()
            left.wait(5)
            assert model[0].switched_off

    threads = [threading.Thread(target=work) for work in (one, two)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not model[0].switched_off


def stirred(model):
    for _, layer in adapted_layers(model):
        layer.lora_B.data.normal_(0, 0.3)
    return model


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_merging_under_autocast_is_merging(dtype):
    torch.manual_seed(0)
    model = stirred(inject_lora(nn.Sequential(nn.Linear(32, 32)), 2, 4))
    twin = copy.deepcopy(model)
    with torch.autocast("cpu", dtype):
        merge(model)
        unloaded = merge_and_unload(copy.deepcopy(twin))
    assert torch.equal(model[0].base.weight, merge(twin)[0].base.weight)
    assert torch.equal(unloaded[0].weight, twin[0].base.weight)


@pytest.mark.parametrize(
    "wrap",
    [
        torch.nn.utils.parametrizations.weight_norm,
        torch.nn.utils.parametrizations.spectral_norm,
        lambda layer: torch.nn.utils.prune.l1_unstructured(layer, "weight", 0.5),
    ],
)
def test_an_update_of_a_computed_weight_is_not_lost_without_a_word(wrap):
    model = stirred(inject_lora(nn.Sequential(nn.Linear(8, 8), wrap(nn.Linear(8, 8))), 2, 4)).eval()
    x = torch.randn(2, 8)
    before, y = model[0].base.weight.clone(), model(x)
    with pytest.raises(ValueError, match="1 computes its weight from other parameters"):
        merge(model)
    assert torch.equal(model[0].base.weight, before)
    torch.testing.assert_close(merge_and_unload(model)(x), y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("change", [lambda m: inject_lora(m, 2, 4), lambda m: quantize_model(m, rank=2)])
def test_a_model_of_conv1d_is_refused_by_name(change):
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=4)
    )
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match=r"% of its weights lie in 4 Conv1D layers"):
        change(model)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before


def test_an_update_without_memory_has_a_shape():
    with torch.device("meta"):
        model = inject_lora(nn.Sequential(nn.Linear(4, 3)), 2, 4)
    assert model[0].delta().shape == (3, 4) and model[0].delta().is_meta


def test_an_expanded_weight_is_not_merged_into_and_merge_and_unload_gives_it_one_of_its_own():
    layer = nn.Linear(6, 5)
    layer.weight = nn.Parameter(torch.randn(5, 1).expand(5, 6))
    model = randomize_adapters(inject_lora(nn.Sequential(layer), 2, 4))
    x = torch.randn(3, 6)
    before = model(x)
    with pytest.raises(ValueError, match=r"0 has an expanded weight.* merge_and_unload"):
        merge(model)
    assert torch.equal(model(x), before)
    torch.testing.assert_close(merge_and_unload(model)(x), before)


# --- adapters in 16 bits


@pytest.mark.parametrize("kind", ["lora", "qlora"])
@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16])
def test_adapters_in_16_bits_train_and_are_saved(kind, base, tmp_path):
    """In PEFT's format as others, and what the file holds is what was trained, to the bit."""
    from qlora_lab import load_adapter, save_adapter

    def prepared(**options):
        if kind == "lora":
            return inject_lora(tiny_llama().to(base), 4, 8, **options)
        return quantize_model(tiny_llama().to(base), rank=4, alpha=8, **options)

    torch.manual_seed(0)
    model = prepared(adapter_dtype=torch.bfloat16).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.bfloat16}
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(8):
        loss, _ = loss_and_gradients(model, token_batch())
        losses.append(float(loss))
        assert {p.grad.dtype for p in trained} == {torch.bfloat16}
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    assert {layer.delta().dtype for _, layer in adapted_layers(model)} == {torch.float32}
    save_adapter(model, tmp_path)
    other = load_adapter(prepared() if kind == "qlora" else tiny_llama().to(base), tmp_path)
    for (_, ours), (_, theirs) in zip(adapted_layers(model), adapted_layers(other), strict=True):
        assert torch.equal(ours.lora_A, theirs.lora_A.to(torch.bfloat16))
        assert torch.equal(ours.lora_B, theirs.lora_B.to(torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.float16, torch.int8, "bfloat16", None])
def test_what_adapters_are_not_trained_in_is_refused(dtype):
    for prepare in (
        lambda m: inject_lora(m, 4, 8, adapter_dtype=dtype),
        lambda m: quantize_model(m, adapter_dtype=dtype),
    ):
        model = tiny_llama()
        before = snapshot(model)
        with pytest.raises(TypeError, match=r"float32 or torch\.bfloat16"):
            prepare(model)
        assert_unchanged(model, before)
