"""The script that records what came after NF4: at which rates it runs what, and how a base is made ready.

No run is trained here: results are made up, as a process of the script would return them.
"""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from qlora_lab import quantize
from qlora_lab.evaluation.recorded_runs import LOSS, CostRecord
from qlora_lab.lora import adapted_layers
from qlora_lab.quantization.calibrated import gptq, input_moments
from qlora_lab.variants import DoRA

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
BASELINE = "qlora nf4 dq r16 alpha 32"


@pytest.fixture
def after(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("after_nf4")


@pytest.fixture
def started(after, monkeypatch, tmp_path):
    """Runs the script's `main` without rows, with made-up results; returns (the jobs it ran, its record)."""

    def start(*words, rates=5, seeds=2):
        runs, ran = {}, []
        for number in range(rates):
            way = after.BASELINE.at(0.001 * 2**number)
            loss = 0.1 + abs(number - 1)
            runs[f"{way.name} seed 0"] = {**vars(way), "seed": 0, LOSS: loss}
        for seed in range(1, seeds + 1):
            way = after.BASELINE.at(0.002)
            runs[f"{way.name} seed {seed}"] = {**vars(way), "seed": seed, LOSS: 0.1, "exact match": {}}
        runs["full lr 1 seed 0"] = {"method": "full", "learning_rate": 1, "seed": 0, LOSS: 1.0}
        theirs, out = tmp_path / "costs.json", tmp_path / "after.json"
        theirs.write_text(json.dumps({"budget": after.costs.BUDGET, "runs": runs}))

        def in_a_process(arguments, threads):
            job = json.loads(arguments[1])["job"]
            condition = after.costs.Condition(**job["condition"])
            ran.append((condition, job["seed"], job["whole"]))
            found = {LOSS: 1.0 + abs(condition.learning_rate - 0.002)}
            return found | {"exact match": {"test": {"correct": 5, "of": 10}}} if job["whole"] else found

        monkeypatch.setattr(after.costs, "in_a_process", in_a_process)
        monkeypatch.setattr(after, "ensure_default_model", lambda: None)
        monkeypatch.setattr(after, "fill_rows", lambda rows, save: None)
        arguments = ["--costs", str(theirs), "--out", str(out), *words]
        monkeypatch.setattr(sys, "argv", ["after_nf4.py", *arguments])
        after.main()
        return ran, json.loads(out.read_text())

    return start


def test_bases_run_at_the_rate_of_nf4_and_variants_at_rates_of_their_own(after, started):
    ran, record = started("--seeds", "2")
    found = CostRecord(record)
    variants = {"loftq", "pissa", "dora"}
    for condition, _, whole in ran:
        chooses = condition.variant in variants or condition.alpha != 32
        assert whole or chooses
        assert not whole or condition.learning_rate == 0.002
    ways = [way for part in after.parts(0.002) for way in part]
    assert len({way.way for way in ways}) == len(ways)
    for way in ways:
        assert len(found.values(way.at(0.002).name, LOSS)) == 2
        assert len(found.rates(way.way)) == (0 if way.learning_rate else 5)
    assert record["rate of"] == BASELINE and not found.ways("full")
    assert found.chosen_rate(BASELINE) == 0.002 and found.settled(BASELINE)
    assert started("--seeds", "2")[0] == []  # all is there


def test_what_runs_can_be_chosen(started):
    ran, _ = started("--seeds", "1", "--only", "qlora mxfp4", "qlora nf4 dq r16 alpha 32 pissa")
    assert {(condition.datatype, condition.variant) for condition, _, _ in ran} == {
        ("mxfp4", ""), ("mxfp4", "gptq"), ("nf4", "pissa"),
    }  # fmt: skip


def test_without_a_rate_for_nf4_nothing_runs(started, capsys):
    with pytest.raises(SystemExit):
        started(rates=4)
    assert f"no rate is chosen for {BASELINE} yet" in capsys.readouterr().err


@pytest.fixture
def small():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4
    )
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("variant", ["", "gptq", "awq", "loftq", "pissa", "dora"])
def test_a_base_is_made_ready_as_its_name_says(after, small, monkeypatch, variant):
    batches = [torch.randint(0, 97, (2, 16), generator=torch.Generator().manual_seed(n)) for n in range(3)]
    monkeypatch.setattr(after.costs, "windows", lambda tokenizer: batches)
    path = "model.layers.0.mlp.up_proj"
    weight, moments = small.get_submodule(path).weight.detach().clone(), input_moments(small, batches)[path]
    whole = small(batches[0]).logits.detach()
    way = after.on("nf4", variant)
    model = after.costs.prepare(small, way)
    layer = dict(adapted_layers(model)).get(path) or model.get_submodule(path).layer
    plain = torch.equal(layer.quantized.codes, quantize(weight).codes)
    assert plain == (variant in ("", "dora"))
    if variant == "gptq":
        assert torch.equal(layer.quantized.codes, gptq(weight, moments, damping=after.costs.DAMPING).codes)
    assert isinstance(model.get_submodule(path), DoRA) == (variant == "dora")
    assert bool(layer.lora_B.any()) == (variant in ("loftq", "pissa"))
    assert (model(batches[0]).logits - whole).norm() < 0.2 * whole.norm()
    assert way.way == f"qlora nf4 r16 alpha 32 {variant}".strip()
