"""The closed form against the simulation, against counts made by hand, and what it refuses."""

import contextlib
import itertools
from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
import torch
from tiny import tiny_model
from transformers import GPT2Config, LlamaConfig

from qlora_lab.lora import inject_lora
from qlora_lab.memory.closed_form import (
    ModelShape,
    adapter_activations,
    layer_activations,
    logit_bytes,
    predict_plan,
    predict_training,
    quantized_bytes,
)
from qlora_lab.memory.fit import predict_step
from qlora_lab.memory.plan import PRESETS, TrainingPlan
from qlora_lab.memory.records import CATEGORIES
from qlora_lab.memory.simulation import build_model, simulate_training
from qlora_lab.qlora import quantize_model
from qlora_lab.quantization.datatypes import DATATYPES, SINCE_NF4, get_datatype
from qlora_lab.quantization.tensor import QuantizedTensor

SMALL = LlamaConfig(
    vocab_size=4000, hidden_size=512, intermediate_size=1376, num_hidden_layers=4, num_attention_heads=8
)
GROUPED = LlamaConfig(
    vocab_size=32_000,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=5,
    num_attention_heads=9,
    num_key_value_heads=3,
    tie_word_embeddings=True,
)
WIDE = LlamaConfig(
    vocab_size=32_000, hidden_size=4096, intermediate_size=11_008, num_hidden_layers=2, num_attention_heads=32
)
CONFIGS = {"small": SMALL, "grouped": GROUPED, "wide": WIDE}
OPTIONS = {
    "full": [
        {},
        {"accumulation": 2, "dtype": torch.float32},
        {"moments_dtype": torch.bfloat16, "supervised_tokens": 16},
        {"optimizer": "sgd"},
    ],
    "lora": [
        {},
        {"adapter_dtype": torch.bfloat16, "supervised_tokens": 16, "rank": 64},
        {"dropout": 0.1, "dtype": torch.float32, "accumulation": 2},
        {"target_modules": ["q_proj", "v_proj"]},
    ],
    "qlora": [
        {},
        {"double_quant": False, "supervised_tokens": 16, "rank": 64, "adapter_dtype": torch.bfloat16},
        {"dropout": 0.1, "dtype": torch.float32, "accumulation": 2},
        {"target_modules": ["q_proj", "v_proj"], "optimizer": "sgd"},
    ],
}
GRID = [
    pytest.param(name, method, checkpointing, shape, options, marks=[pytest.mark.slow] if name != "wide" else [])
    for (name, (method, several)), shape in zip(
        itertools.product(CONFIGS, OPTIONS.items()), itertools.cycle([(1, 64), (4, 256), (1, 512), (2, 128)])
    )
    for options, checkpointing in zip(several, itertools.cycle(["none", "reentrant", "non-reentrant"]), strict=False)
]


@pytest.mark.parametrize(("name", "method", "checkpointing", "shape", "options"), GRID)
def test_the_budget_is_within_three_percent_of_the_simulation(name, method, checkpointing, shape, options):
    options = {"rank": 8, "checkpointing": checkpointing, **options}
    arguments = (CONFIGS[name], method, options.pop("rank"), *shape)
    predicted, simulated = predict_training(*arguments, **options), simulate_training(*arguments, **options)
    assert predicted.peak == pytest.approx(simulated.peak, rel=0.03)
    for category in ("quantized base", "base weights", "adapters"):
        assert predicted.by_category[category] == simulated.by_category[category]
    counters = 4 * 9 * CONFIGS[name].num_hidden_layers * 2 + 100  # AdamW's counts of steps
    assert predicted.by_category["optimizer state"] == pytest.approx(
        simulated.by_category["optimizer state"], abs=counters
    )


def test_counts_made_by_hand():
    """7B with rank 64, 512 tokens, adapters, gradients and moments in float32 and the rest in bfloat16."""
    plan = TrainingPlan("llama-7b", "qlora", 64, 1, 512, checkpointing="reentrant")
    shape = ModelShape.of(plan.config)
    linear = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11_008)
    assert shape.parameters == linear + 2 * 32_000 * 4096 + 65 * 4096 == 6_738_415_616
    found = predict_plan(plan).by_category
    adapters = 32 * 64 * (4 * 2 * 4096 + 3 * (4096 + 11_008))
    assert found["adapters"] == 4 * adapters and found["optimizer state"] == 8 * adapters
    half = predict_plan(replace(plan, adapter_dtype=torch.bfloat16, moments_dtype=torch.bfloat16)).by_category
    assert half["adapters"] == 2 * adapters and half["optimizer state"] == 4 * adapters
    blocks = linear // 64
    assert found["quantized base"] == linear // 2 + blocks + 4 * blocks // 256 + 4 * 32 * 7
    assert found["base weights"] == 2 * (2 * 32_000 * 4096 + 65 * 4096) + 2 * 64 * 4
    # d = 4096, m = 11008: attention 4 d, inputs 2 d + m, gate, activation and up 3 m; norms 2 d in float32
    assert layer_activations(shape, 2) == 2 * (6 * 4096 + 4 * 11_008) + 4 * (2 * 4096 + 32 + 2)
    assert adapter_activations([(4096, 64), (11_008, 64)], 2, dropout=False) == 2 * 128
    assert adapter_activations([(4096, 64)], 4, dropout=True) == 4 * (64 + 2 * 4096)
    assert logit_bytes(511, 32_000, 2, kept=True) == 12 * 511 * 32_000
    # a frozen head: 2**25 bytes of float32 logits are 262 rows, and the same rows in 16 bits
    assert logit_bytes(511, 32_000, 2, kept=False) == 262 * 32_000 * (4 + 2)
    assert logit_bytes(100, 32_000, 4, kept=False) == 100 * 32_000 * 4


@pytest.mark.parametrize("checkpointing", ["none", "non-reentrant"])
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_all_logits_at_once_are_billed_as_transformers_makes_them(method, checkpointing):
    """A large vocabulary and few layers, so that the peak is in the loss."""
    config = LlamaConfig(**{**SMALL.to_dict(), "vocab_size": 128_000})
    budgets = {}
    for chunked in (True, False):
        options = {"checkpointing": checkpointing, "chunked_loss": chunked}
        budgets[chunked] = predict_training(config, method, 8, 2, 128, **options)
        simulated = simulate_training(config, method, 8, 2, 128, **options)
        assert budgets[chunked].moment == "loss"
        assert budgets[chunked].peak == pytest.approx(simulated.peak, rel=0.03)
    assert budgets[False].peak - budgets[True].peak > 2 * 128 * 128_000 * 8


def test_adapters_are_billed_as_they_are_trained():
    billed = TrainingPlan(SMALL, "qlora")
    for prepare in (inject_lora, lambda model, rank, alpha: quantize_model(model, rank=rank, alpha=alpha)):
        model = prepare(tiny_model().to(billed.dtype), 4, 8)
        assert {p.dtype for p in model.parameters() if p.requires_grad} == {billed.adapter_dtype}


def test_full_training_takes_twelve_bytes_a_parameter():
    found = predict_training("llama-65b", "full")
    twelve = 12 * ModelShape.of(TrainingPlan("llama-65b").config).parameters
    assert found.moment == "update"
    assert found.peak == twelve + 4 * 32_000 * 8192 + 512
    assert twelve / 1e9 == pytest.approx(783.4, abs=0.1)


def test_categories_are_the_ledgers_and_add_up():
    found = predict_training(SMALL, "qlora", 8)
    assert tuple(found.by_category) == CATEGORIES
    assert found.peak == sum(found.by_category.values())


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_more_of_anything_never_takes_less(method):
    plan = TrainingPlan(SMALL, method, 8, 2, 128)
    peak = predict_plan(plan).peak
    for more in (
        {"batch_size": 4, "supervised_tokens": None},
        {"sequence_length": 256, "supervised_tokens": None},
        {"rank": 32},
        {"accumulation": 4},
        {"dtype": torch.float32, "adapter_dtype": torch.float32, "moments_dtype": torch.float32},
    ):
        assert predict_plan(replace(plan, **more)).peak >= peak
    assert predict_plan(replace(plan, checkpointing="reentrant")).peak <= peak


def test_predict_step_uses_the_same_formulas():
    """Of a built model, with padding's mask; its activations differ from the budget's by what padding adds."""
    plan = TrainingPlan(GROUPED, "qlora", 8, 2, 64, dtype=torch.float32)
    model = build_model(replace(plan, config=LlamaConfig(**{**GROUPED.to_dict(), "vocab_size": 100})))
    step = predict_step(model, 2, 64, 50)
    shape = ModelShape.of(model.config)
    layer = layer_activations(shape, 4, mask=64) + adapter_activations([(1, 8)] * 7, 4, dropout=False)
    assert step.activations == 2 * 64 * 5 * layer
    assert step.logits == logit_bytes(50, 100, 4, kept=False)
    saving = predict_step(model, 2, 64, 50, checkpointing=True)
    assert saving.activations == 2 * 64 * (layer + 5 * 4 * 576)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"config": "llama-8b"}, ", ".join(PRESETS)),
        ({"method": "prefix"}, "full, lora, qlora"),
        ({"rank": 513}, "rank 513 is above 512, the smaller dimension of q_proj .*1 to 512"),
        ({"rank": 2.5}, "whole number"),
        ({"batch_size": -3}, "batch_size -3"),
        ({"target_modules": ["lm_head"]}, "q_proj, k_proj, v_proj"),
        ({"target_modules": ".*q_proj"}, "all-linear"),
        ({"config": GPT2Config()}, "simulate_training"),
        ({"dtype": "int4"}, "bfloat16"),
    ],
)
def test_nonsense_is_answered_with_what_makes_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        predict_training(**{"config": SMALL, "method": "lora"} | arguments)


# -- whatever a configuration says


def configurations():
    """One of every family, with its own values: lists, None, several models in one."""
    from transformers import CONFIG_MAPPING

    for family, kind in CONFIG_MAPPING.items():
        with contextlib.suppress(Exception):  # some want a library that is not here
            yield family, kind()


@pytest.mark.slow
def test_every_configuration_of_transformers_has_a_shape():
    count = 0
    for family, config in configurations():
        shape = ModelShape.of(config)
        values = [getattr(shape, f.name) for f in fields(shape)]
        assert all(isinstance(value, int) and value >= 0 for value in values), family
        assert layer_activations(shape, 2) >= 0 and shape.parameters >= 0, family
        count += 1
    assert count > 300


@pytest.mark.slow
def test_a_step_of_a_model_with_any_configuration_is_predicted():
    from qlora_lab.memory.fit import check_fits

    class Model(torch.nn.Linear):
        config = None

    model = Model(3, 3)
    for family, config in configurations():
        model.config = config
        step = check_fits(model, 1, 2, 1, True)
        assert all(isinstance(value, int) for value in vars(step).values()), family


ODD = [None, {}, 7, [], [32, 48], (32, None), [None], "32", 1.5, True, -3, 0, float("nan"), {"hidden_size": 32}, object]


@pytest.mark.parametrize("odd", ODD, ids=map(str, ODD))
def test_odd_values_are_set_aside(odd):
    for field in (*ModelShape.__dataclass_fields__, "hidden_size", "num_attention_heads", "intermediate_size"):
        config = SimpleNamespace(hidden_size=32, num_attention_heads=4, num_hidden_layers=2, vocab_size=64)
        setattr(config, field, odd)
        shape = ModelShape.of(config)
        assert all(isinstance(getattr(shape, f.name), int) and getattr(shape, f.name) >= 0 for f in fields(shape))
    assert ModelShape.of(odd).hidden == 0


def test_the_largest_of_several_layers_counts():
    config = SimpleNamespace(hidden_size=32, intermediate_size=[48, 96, 64], num_attention_heads=[4, 8])
    shape = ModelShape.of(config)
    assert (shape.mlp, shape.heads) == (96, 8)


def test_a_configuration_that_cannot_say_which_text_it_is_of():
    class Two:
        hidden_size = 32

        def get_text_config(self):
            raise ValueError("Multiple valid text configs were found")

        @property
        def vocab_size(self):
            raise AttributeError("none here")

    assert ModelShape.of(Two()).hidden == 32


@pytest.mark.parametrize("model_type", ["gpt2", "gemma3n_text", "mixtral", "t5", "bert", "mamba"])
def test_what_the_closed_form_is_not_about_is_said(model_type):
    from transformers import CONFIG_MAPPING

    with pytest.raises(ValueError, match="use simulate_training instead"):
        predict_training(CONFIG_MAPPING[model_type]())


@pytest.mark.parametrize("datatype", (*DATATYPES, *SINCE_NF4))
def test_a_4_bit_base_is_billed_to_the_byte(datatype):
    for double_quant in (False, True) if get_datatype(datatype).allows_double_quant else (False,):
        plan = TrainingPlan(SMALL, "qlora", datatype=datatype, double_quant=double_quant)
        for count in (1, 511, 512, 4096 * 257 + 3):
            shape = torch.Size((count,))
            made = QuantizedTensor.empty(shape, torch.bfloat16, datatype, plan.block_size, double_quant)
            assert quantized_bytes(plan, count) == made.nbytes


def test_a_plan_is_told_what_its_data_type_has_not():
    with pytest.raises(ValueError, match="mxfp4 stores its scales in 8 bits already"):
        TrainingPlan(SMALL, "qlora", datatype="mxfp4")
    with pytest.raises(ValueError, match="blocks have 16 weights"):
        TrainingPlan(SMALL, "qlora", datatype="nvfp4", block_size=64, double_quant=False)
    assert TrainingPlan(SMALL, "qlora", datatype="nvfp4", double_quant=False).block_size == 16
