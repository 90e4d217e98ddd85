"""The simulated step against the real one, operation by operation, and against the paper's sizes."""

import gc
import sys
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig
from workers import alone

from qlora_lab.lora import inject_lora
from qlora_lab.memory.ledger import MemoryTrace
from qlora_lab.memory.plan import PRESETS, TrainingPlan
from qlora_lab.memory.simulation import MixedAdamW, build_optimizer, simulate_training, train_step
from qlora_lab.qlora import quantize_model

TINY = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}


def tiny_config(**changed) -> LlamaConfig:
    return LlamaConfig(**TINY | changed)


def real_trace(plan: TrainingPlan) -> MemoryTrace:
    """The plan's step on a model with values, made by the functions that a user would call."""
    model = AutoModelForCausalLM.from_config(plan.config, dtype=plan.dtype, attn_implementation="sdpa")
    if plan.method == "lora":
        inject_lora(model, plan.rank, plan.alpha, plan.target_modules, plan.dropout, adapter_dtype=plan.adapter_dtype)
    elif plan.method == "qlora":
        options = {"target_modules": plan.target_modules, "dropout": plan.dropout, "adapter_dtype": plan.adapter_dtype}
        quantize_model(model, plan.datatype.name, plan.block_size, plan.double_quant, plan.rank, plan.alpha, **options)
    model.train()
    if plan.checkpointing != "none":
        model.gradient_checkpointing_enable({"use_reentrant": plan.checkpointing == "reentrant"})
        if plan.checkpointing == "reentrant":
            model.enable_input_require_grads()
    optimizer = build_optimizer(plan, model)
    train_step(plan, model, optimizer)  # makes the optimizer's state
    gc.collect()
    gc.disable()
    try:
        with MemoryTrace(model, optimizer) as trace:
            train_step(plan, model, optimizer)
    finally:
        gc.enable()
    return trace


def events(trace) -> list[tuple]:
    return [(r.event, r.nbytes, r.category, r.operation, r.module) for r in trace.records]


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", ["none", "reentrant", "non-reentrant"])
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_a_simulated_step_equals_the_real_one_operation_by_operation(method, checkpointing):
    options = {"checkpointing": checkpointing, "accumulation": 2, "dropout": 0.1, "adapter_dtype": torch.float32}
    arguments = (tiny_config(), method, 4, 3, 20)
    simulated, real = simulate_training(*arguments, **options), real_trace(TrainingPlan(*arguments, **options))
    assert events(simulated) == events(real)
    assert simulated.peak == real.peak and simulated.by_category == real.by_category


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": torch.float32},
        {"double_quant": False, "block_size": 32, "target_modules": ["q_proj", "down_proj"]},
        {"datatype": "int4_affine", "double_quant": False, "optimizer": "sgd"},
        {"datatype": "nvfp4", "double_quant": False, "optimizer": "sgd"},
        {"adapter_dtype": torch.bfloat16, "dropout": 0.1},
        {"chunked_loss": False, "checkpointing": "non-reentrant"},
    ],
    ids=["float32", "single", "affine", "nvfp4", "16-bit adapters", "all logits"],
)
def test_every_kind_of_step_equals_the_real_one(options):
    arguments = (tiny_config(tie_word_embeddings=True), "qlora", 4, 2, 16)
    assert events(simulate_training(*arguments, **options)) == events(real_trace(TrainingPlan(*arguments, **options)))


@pytest.mark.parametrize("method", ["lora", "qlora"])
@pytest.mark.parametrize(
    "experts, dtype", [("grouped_mm", "bfloat16"), ("batched_mm", "bfloat16"), ("batched_mm", "float32")]
)
def test_a_step_of_a_mixture_of_experts_equals_the_real_one(experts, dtype, method):
    config = transformers.MixtralConfig(**TINY, num_local_experts=4)
    config._experts_implementation = experts
    arguments = (config, method, 4, 2, 16)
    simulated, real = simulate_training(*arguments, dtype=dtype), real_trace(TrainingPlan(*arguments, dtype=dtype))
    assert events(simulated) == events(real)
    assert simulated.peak == real.peak and simulated.by_category == real.by_category
    if method == "qlora":  # two layers of four experts, 4.127 bits and not 16 or 32
        assert simulated.by_category["quantized base"] > 2 * 4 * 3 * 64 * 160 / 2
        assert simulated.by_category["base weights"] < 4 * 3 * 97 * 64


def test_nothing_changes_from_run_to_run():
    one, other = (simulate_training(tiny_config(), "qlora", 4, 2, 16) for _ in range(2))
    assert one.records == other.records


def test_the_step_leaves_weights_and_state_and_nothing_else():
    trace = simulate_training(tiny_config(), "lora", 4, 2, 16)
    assert trace.live == sum(r.nbytes for r in trace.records if r.step == 0)
    assert {r.category for r in trace.records if r.step == 0} == {"base weights", "adapters", "optimizer state"}


def test_tied_embeddings_count_once():
    tied, untied = (simulate_training(tiny_config(tie_word_embeddings=tie), "lora", 4) for tie in (True, False))
    assert untied.by_category["base weights"] - tied.by_category["base weights"] == 97 * 64 * 2


def test_accumulation_holds_gradients_while_activations_are_alive():
    one, two, three = (simulate_training(tiny_config(), "full", 4, accumulation=n) for n in (1, 2, 3))
    assert one.peak < two.peak == three.peak


def test_other_architectures_can_be_simulated_too():
    config = GPT2Config(vocab_size=97, n_embd=64, n_layer=2, n_head=4)
    trace = simulate_training(config, "full", 4, 2, 16)
    assert trace.by_category["gradients"] > 0


@pytest.mark.slow
def test_the_default_model_has_the_shape_it_has():
    trace = simulate_training("SmolLM2-135M-Instruct", "lora", 8, dtype="float32")
    assert trace.by_category["base weights"] == pytest.approx(4 * 134_515_008, abs=1000)  # and positions' frequencies


def test_moments_in_float32_learn_as_torchs_adamw_does():
    torch.manual_seed(0)
    start, x = torch.randn(5, 3), torch.randn(7, 3)
    results = []
    for make in (torch.optim.AdamW, lambda p, lr: MixedAdamW(p, lr, torch.float32)):
        weight = torch.nn.Parameter(start.clone())
        optimizer = make([weight], lr=0.1)
        for _ in range(5):
            (x @ weight.t()).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        results.append(weight.detach())
    assert torch.equal(*results)
    half = torch.nn.Parameter(start.bfloat16())
    optimizer = MixedAdamW([half], 0.1, torch.float32)
    half.square().sum().backward()
    optimizer.step()
    assert optimizer.state[half]["exp_avg"].dtype == torch.float32 and half.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"config": "llama-8b"}, "llama-65b"),
        ({"method": "lorra"}, "full, lora, qlora"),
        ({"rank": 0}, "rank 0"),
        ({"batch_size": -1}, "batch_size -1"),
        ({"sequence_length": 1}, "at least 2"),
        ({"method": "lora", "rank": 65}, "rank 65 is above 32, the smaller dimension of .*k_proj"),
        ({"method": "lora", "target_modules": ["k_prog"]}, "k_proj"),
        ({"checkpointing": "yes"}, "none, reentrant, non-reentrant"),
        ({"optimizer": "lion"}, "adamw, sgd"),
        ({"dtype": torch.int8}, "bfloat16"),
        ({"moments_dtype": "float8"}, "bfloat16"),
        ({"datatype": "nf5"}, "nf4"),
        ({"supervised_tokens": 10**6}, "supervised_tokens"),
        ({"device": "meta"}, "cpu"),
        ({"device": "tpu"}, "tpu|device"),
    ],
)
def test_nonsense_is_answered_with_what_makes_sense(arguments, message):
    with pytest.raises((ValueError, RuntimeError), match=message):
        simulate_training(**{"config": tiny_config()} | arguments)


def test_a_config_file_is_read(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    by_config = simulate_training(tiny_config(), "lora", 4)
    assert simulate_training(tmp_path, "lora", 4).peak == by_config.peak
    assert simulate_training(str(tmp_path / "config.json"), "lora", 4).peak == by_config.peak
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not a model configuration"):
        simulate_training(tmp_path, "lora", 4)
    with pytest.raises(TypeError, match="int"):
        simulate_training(7)


def test_transformers_is_left_as_it_was():
    from transformers.utils import import_utils

    before = import_utils.is_fake_tensor
    with pytest.raises(ValueError):
        simulate_training(tiny_config(), "lora", 65)
    assert import_utils.is_fake_tensor is before and gc.isenabled()


def peaks_of_65b(method: str, options: dict) -> tuple[int, int]:
    """Bytes: what the step would take, and what this process took to find it out."""
    trace = simulate_training("llama-65b", method, 64, 1, 512, **options)
    # Not getrusage: a child's ru_maxrss starts at what its parent held.
    status = Path("/proc/self/status").read_text()
    return trace.peak, int(status.split("VmHWM:")[1].split()[0]) * 1024


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the process's peak memory")
@pytest.mark.parametrize(
    ("method", "options", "gb"),
    [
        ("full", {}, 784.5),  # 12 bytes for each of 65.3 billion parameters, and one float32 copy of the embedding
        ("lora", {"checkpointing": "reentrant"}, 143.6),
        ("qlora", {"checkpointing": "non-reentrant"}, 47.8),
        ("qlora", {"checkpointing": "non-reentrant", "adapter_dtype": torch.bfloat16}, 41.4),
    ],
)
def test_a_65b_step_on_a_laptop(method, options, gb):
    peak, resident = alone(peaks_of_65b, method, options)
    assert peak / 1e9 == pytest.approx(gb, rel=0.005)
    assert resident < 2e9


def test_the_presets_have_the_papers_sizes():
    """Parameters in billions, LLaMA table 2 and Llama 2."""
    from qlora_lab.memory.closed_form import ModelShape

    sizes = {name: ModelShape.of(TrainingPlan(name).config).parameters / 1e9 for name in PRESETS}
    assert sizes == pytest.approx(
        {
            "llama-7b": 6.74,
            "llama-13b": 13.02,
            "llama-33b": 32.53,
            "llama-65b": 65.29,
            "llama-2-70b": 68.98,
            "SmolLM2-135M-Instruct": 0.1345,
        },
        rel=1e-3,
    )


@pytest.mark.parametrize("kind", ["bloom", "gpt_oss"])
def test_a_model_without_sdpa_is_simulated_with_what_it_has(kind):
    experts = {"intermediate_size": 32, "num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 4}
    config = {
        "bloom": lambda: transformers.BloomConfig(vocab_size=64, hidden_size=32, n_layer=1, n_head=4),
        "gpt_oss": lambda: transformers.GptOssConfig(
            vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, **experts
        ),
    }[kind]()
    assert simulate_training(config, "lora", rank=2, sequence_length=8).peak > 0
