"""run.json: what a run was, and its model again as it was trained; what makes no sense is refused by name."""

import json
from dataclasses import replace

import pytest
import torch
from tiny import tiny_tokenizer

from qlora_lab.lora import adapted_layers
from qlora_lab.models.adapters import save_adapter
from qlora_lab.models.base_model import load_model
from qlora_lab.training.run_plan import (
    RunPlan,
    check_plan,
    check_targets,
    load_run,
    plan_of,
    prompt_of,
    quantize_as,
    read_plan,
    tokenizer_of,
    write_plan,
)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"epochs": -1}, "epochs -1"),
        ({"epochs": 2, "settings": {"steps": 3}}, "epochs or steps, not both"),
        ({"target_modules": []}, "target_modules"),
        ({"target_modules": ""}, "target_modules"),
        ({"target_modules": [3]}, "target_modules"),
        ({"target_modules": 3}, "target_modules"),
        ({"validation_share": 1}, "validation_share 1"),
        ({"data": 3}, "data 3"),
        ({"metric": "exact"}, r"metric is for data of your own; give data \(--data\)"),
        ({"template": "{{ messages }}"}, "template is for data"),
        ({"validation": "x.jsonl"}, "validation is for data"),
        ({"settings": {"mix_share": 0}}, "mix_share 0"),
        ({"settings": {"packing": 1}}, "packing 1"),
        ({"settings": {"max_length": 1}}, "max_length 1"),
    ],
)
def test_what_makes_no_sense(changed, words):
    with pytest.raises(ValueError, match=words):
        check_plan(RunPlan(**changed))


def test_targets_are_looked_for_without_loading_the_weights(tiny_folder):
    plan = RunPlan(model=str(tiny_folder))
    for good in ("all-linear", ["q_proj", "v_proj"], r".*\.[qv]_proj"):
        check_targets(replace(plan, target_modules=good))
    with pytest.raises(ValueError, match=r"target 'query' matches no module; the linear layers here are q_proj"):
        check_targets(replace(plan, target_modules=["query"]))


def test_a_plan_is_read_as_it_was_written(tmp_path):
    plan = RunPlan(rank=3, target_modules=["q_proj"], epochs=2.5, data="/d.jsonl", settings={"packing": True})
    write_plan(tmp_path, plan)
    begun = json.loads((tmp_path / "run.json").read_text())["begun"]
    assert read_plan(tmp_path) == plan and plan_of(tmp_path / "adapter") == plan == plan_of(tmp_path)
    write_plan(tmp_path, replace(plan, dtype="float32"))
    assert read_plan(tmp_path).dtype == "float32"
    assert json.loads((tmp_path / "run.json").read_text())["begun"] == begun
    assert plan_of(tmp_path / "elsewhere" / "adapter") is None


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"datatype": "fp4", "block_size": 32, "double_quant": False},
        {"datatype": "int4_affine", "block_size": 32, "double_quant": False},
        {"target_modules": ["q_proj"], "compute_dtype": "bfloat16", "dtype": "bfloat16"},
    ],
)
def test_a_run_is_loaded_on_the_base_that_it_was_trained_beside(tiny_folder, tmp_path, changed):
    plan = RunPlan(
        model=str(tiny_folder), **{"rank": 4, "alpha": 8, "dtype": "float32", "compute_dtype": "float32"} | changed
    )
    write_plan(tmp_path, plan)
    trained = quantize_as(plan, load_model(tiny_folder, plan.dtype, "cpu"))
    for parameter in trained.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    save_adapter(trained.eval(), tmp_path / "adapter")
    model, _, found = load_run(tmp_path, device="cpu")
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, trained(input_ids=ids).logits)
    layers = [layer for _, layer in adapted_layers(model) if hasattr(layer, "datatype")]
    assert found == plan and {(layer.datatype, layer.block_size, layer.double_quant) for layer in layers} == {
        (plan.datatype, plan.block_size, plan.double_quant)
    }


def test_a_template_comes_with_it(tiny_folder, tmp_path):
    text = "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
    text += "{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"
    plan = RunPlan(model=str(tiny_folder), data="d", template=text, format="prompt-completion")
    write_plan(tmp_path, plan)
    tokenizer = tokenizer_of(read_plan(tmp_path))
    assert prompt_of(plan, tokenizer, "hi") == "<|im_start|>user: hi<|im_end|><|im_start|>assistant: "
    assert prompt_of(replace(plan, format="chat"), tokenizer, "hi") == prompt_of(plan, tokenizer, "hi")
    assert prompt_of(replace(plan, format="completion"), tokenizer, "hi") == "hi"
    assert prompt_of(replace(plan, format="text"), tokenizer, "hi") == "hi"
    assert "user\nhi<|im_end|>" in prompt_of(RunPlan(), tokenizer, "hi")
    bare = tiny_tokenizer()
    assert prompt_of(replace(plan, format="instruction"), bare, "add") == "### Instruction:\nadd\n\n### Response:\n"
