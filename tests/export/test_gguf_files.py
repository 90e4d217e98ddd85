"""GGUF files as plans: what an adapter's numbers become, and what cannot be said comes out before a byte is written."""

from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch
from gguf import GGUFReader
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_model
from tiny_llama import randomize_adapters

from qlora_lab.export.architectures import find_architecture
from qlora_lab.export.gguf_files import plan_adapter, plan_model, read_gguf, write_gguf
from qlora_lab.lora import adapted_layers, inject_lora

NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@given(
    st.lists(st.sampled_from(NAMES), min_size=1, unique=True),
    st.lists(st.tuples(st.integers(1, 9), st.floats(0.25, 64), st.booleans()), min_size=1, max_size=5),
)
def test_each_layer_keeps_its_own_rank_and_scaling(targets, options):
    """llama.cpp has one alpha: alpha / r · B A is each layer's change all the same, with its rows in GGUF's order."""
    model = inject_lora(tiny_model(), 4, 8, targets)
    for place, (_, layer) in enumerate(adapted_layers(model)):
        rank, alpha, use_rslora = options[place % len(options)]
        layer.reset_adapter(rank, alpha, use_rslora=use_rslora)
    randomize_adapters(model)
    architecture = find_architecture(model.config)
    plan = plan_adapter(model, architecture)
    alpha = plan.fields["adapter.lora.alpha"][0]
    found = {tensor.name: tensor.make() for tensor in plan.tensors}
    for path, layer in adapted_layers(model):
        name = architecture.tensor_name(f"{path}.weight", 2)
        a, b = found[f"{name}.lora_a"], found[f"{name}.lora_b"]
        assert a.shape[0] == b.shape[1] == layer.rank
        order = architecture.order(path, model.config)
        expected = layer.delta().detach() if order is None else layer.delta().detach()[order]
        np.testing.assert_allclose(alpha / layer.rank * b @ a, expected.numpy(), rtol=2e-5, atol=1e-6)


def test_the_planned_bytes_are_those_of_the_file(tmp_path):
    model = tiny_model()
    for kind in ("f16", "q8_0"):
        plan = plan_model(model, find_architecture(model.config), kind, {})
        write_gguf(tmp_path / "m.gguf", plan)
        assert abs((tmp_path / "m.gguf").stat().st_size - plan.nbytes) < 8192
        assert {t.name: tuple(reversed(t.shape)) for t in GGUFReader(tmp_path / "m.gguf").tensors} == {
            t.name: t.shape for t in plan.tensors
        }


def test_rows_that_make_no_blocks_stay_in_float16_and_it_is_said():
    model = tiny_model(hidden_size=72, intermediate_size=64, num_attention_heads=4, num_key_value_heads=4)
    plan = plan_model(model, find_architecture(model.config), "q8_0", {})
    types = {tensor.name: tensor.type.name for tensor in plan.tensors}
    assert types["blk.0.attn_q.weight"] == "F16" and types["blk.0.ffn_down.weight"] == "Q8_0"
    assert any("blk.0.attn_q.weight" in remark for remark in plan.remarks)


@pytest.mark.parametrize("case", ["too large", "a part of its own", "biases"])
def test_what_cannot_be_said_is_told(case):
    model = tiny_model()
    if case == "too large":
        model.model.layers[0].mlp.up_proj.weight.data[0, 0] = 7e4
    elif case == "a part of its own":
        model.model.layers[1].register_module("side", torch.nn.Linear(3, 3))
    architecture = find_architecture(model.config)
    if case == "biases":
        model, architecture = tiny_model(attention_bias=True), replace(architecture, biases=False)
    said = {
        "too large": "beyond the range of float16",
        "a part of its own": "side.weight has no name",
        "biases": "bias",
    }
    with pytest.raises(ValueError, match=said[case]):
        plan_model(model, architecture, "f16", {})


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "one of several"])
def test_a_damaged_file_of_the_base_is_told_in_a_line(damage, tmp_path):
    model, path = tiny_model(), tmp_path / "base.gguf"
    fields = {"split.count": (3, gguf.GGUFValueType.UINT16, None)} if damage == "one of several" else {}
    write_gguf(path, plan_model(model, find_architecture(model.config), "f16", fields))
    if damage != "one of several":
        content = {"cut": path.read_bytes()[:4000], "empty": b"", "text": b"not a GGUF file at all" * 99}[damage]
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"not a whole GGUF file|one part of several") as raised:
        read_gguf(path)
    assert "\n" not in str(raised.value)
