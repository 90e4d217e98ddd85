"""The bill for several GPUs: parts that add up to the one-GPU budget, groups that are the real model's."""

import pytest
import torch
from tiny import tiny_model

from qlora_lab import distributed
from qlora_lab.memory.closed_form import predict_training
from qlora_lab.memory.per_gpu import group_bytes, predict_per_process, step_traffic
from qlora_lab.memory.plan import TrainingPlan
from qlora_lab.memory.simulation import build_model

SHAPE = {"rank": 64, "sequence_length": 512, "checkpointing": "non-reentrant"}
CUT = ("quantized base", "base weights", "adapters", "optimizer state")


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_parts_add_up_and_what_is_gathered_stays(method):
    alone = predict_training("llama-65b", method, **SHAPE)
    root = group_bytes(TrainingPlan("llama-65b", method, **SHAPE))[1]
    budgets = {n: predict_per_process("llama-65b", method, n, **SHAPE) for n in (1, 2, 4, 8, 16)}
    assert budgets[1].peak == alone.peak
    for n, budget in budgets.items():
        for name in CUT:
            whole = root if name == "base weights" and method != "full" else 0
            assert 0 <= n * (budget.by_category[name] - whole) - (alone.by_category[name] - whole) < n
    assert len({b.by_category["gathered"] for n, b in budgets.items() if n > 1}) == 1
    peaks = [budget.peak for budget in budgets.values()]
    assert peaks == sorted(peaks, reverse=True)


@pytest.mark.parametrize(("rows", "length"), [(1, 512), (1, 8192), (8, 2048)])
@pytest.mark.parametrize("checkpointing", ["none", "non-reentrant"])
def test_no_gpu_of_several_needs_less_than_its_share_also_with_many_tokens(rows, length, checkpointing):
    """The peak of n is not at another moment than that of one where it would be too low there."""
    plan = {"rank": 64, "batch_size": rows, "sequence_length": length, "checkpointing": checkpointing}
    for method in ("full", "lora", "qlora"):
        alone = predict_training("llama-7b", method, **plan)
        for n in (2, 8):
            budget = predict_per_process("llama-7b", method, n, **plan)
            own = alone.by_category["activations"] + (alone.by_category["temporary"] if alone.moment != "update" else 0)
            assert budget.peak >= (alone.peak - own) / n + own


def test_the_claims_of_notebook_08():
    peaks = {m: predict_per_process("llama-65b", m, 8, **SHAPE).peak for m in ("full", "lora", "qlora")}
    assert peaks["full"] > 80e9 > peaks["lora"] > peaks["qlora"]
    half = {"adapter_dtype": torch.bfloat16}
    assert predict_per_process("llama-65b", "qlora", 2, **SHAPE).peak > 24e9
    assert predict_per_process("llama-65b", "qlora", 2, **SHAPE, **half).peak < 22.5e9  # 24 and a reserve of 1.5


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_groups_are_the_models(method):
    plan = TrainingPlan(tiny_model().config, method, rank=4, dtype=torch.float32)
    with torch.random.fork_rng(devices=[]):
        model = build_model(plan)
    blocks = [sum(p.nbytes for p in block.parameters()) for block in distributed.decoder_layers(model)]
    inside = {id(p) for block in distributed.decoder_layers(model) for p in block.parameters()}
    root = sum(p.nbytes for p in model.parameters() if id(p) not in inside)
    assert group_bytes(plan) == (blocks[0], root)
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    gathered = 2 * sum(blocks) + (root if method == "full" else 0)
    assert step_traffic(plan) == {"all-gather": gathered, "reduce-scatter": trained}


@pytest.mark.parametrize("processes", [0, -1, 1.5, True])
def test_no_such_number_of_processes(processes):
    with pytest.raises(ValueError, match="processes"):
        predict_per_process("llama-7b", "qlora", processes)
