"""A random Llama of 130 thousand weights, with grouped-query attention, and what tests ask of it."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from qlora_lab.lora import adapted_layers, replace_module

LINEAR_NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
DEVICES = ("cpu", "cuda")


def tiny_llama(seed: int = 0, *, tied: bool = False, bias: bool = False, layers: int = 2) -> LlamaForCausalLM:
    """Widths are multiples of 64, where bitsandbytes' CPU kernels can be trusted; 2 key-value heads for 4 heads."""
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        attention_bias=bias,
        pad_token_id=0,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    with torch.no_grad():  # the usual 0.02 makes so small a model all but constant
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.15 + (parameter.ndim == 1))
    return model


def quantize_with_bitsandbytes(model: nn.Module, double_quant: bool, device: str = "cpu") -> nn.Module:
    """Replace every linear layer but the head by bitsandbytes' NF4 layer, computing in float32."""
    bnb = pytest.importorskip("bitsandbytes")
    for name, linear in list(model.named_modules()):
        if isinstance(linear, nn.Linear) and name != "lm_head":
            layer = bnb.nn.Linear4bit(
                linear.in_features,
                linear.out_features,
                bias=linear.bias is not None,
                compute_dtype=torch.float32,
                compress_statistics=double_quant,
                quant_type="nf4",
            )
            layer.load_state_dict(linear.state_dict())
            layer.support_avx512bf16_for_cpu = False  # else eval() would repack the weight and lose its gradients
            replace_module(model, name, layer)
    model.is_loaded_in_4bit = True  # PEFT asks
    return model.to(device)


def token_batch(seed: int = 0, shape: tuple[int, int] = (2, 9)) -> torch.Tensor:
    return torch.randint(1, 97, shape, generator=torch.Generator().manual_seed(seed))


def randomize_adapters(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every A and B (also PEFT's) random values; a fresh B is zero and would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def copy_adapters(source: nn.Module, target: nn.Module) -> None:
    """A and B of a PEFT model into a model with our layers."""
    values = {name: value for name, value in source.named_parameters() if "lora_" in name}
    for path, layer in adapted_layers(target):
        if layer.rank:
            layer.lora_A.data.copy_(values.pop(f"base_model.model.{path}.lora_A.default.weight"))
            layer.lora_B.data.copy_(values.pop(f"base_model.model.{path}.lora_B.default.weight"))
    assert not values, f"no layer of ours for {list(values)}"


def loss_and_gradients(model: nn.Module, tokens: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss, and the gradients of A and B by their paths, named alike for PEFT's layers and ours."""
    model.zero_grad()
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    plain = {
        name.removeprefix("base_model.model.").replace(".default.weight", ""): parameter.grad.clone()
        for name, parameter in trained.items()
    }
    return loss.detach(), plain


def assert_close(actual, expected, tolerance: float) -> None:
    """Tensors, or tuples or dictionaries of them, equal within `tolerance` of the expected one's largest magnitude."""
    if isinstance(expected, tuple):
        for one, other in zip(actual, expected, strict=True):
            assert_close(one, other, tolerance)
        return
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for name in expected:
            assert_close(actual[name], expected[name], tolerance)
        return
    scale = expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(actual.float(), expected.float(), rtol=0, atol=tolerance * scale)


def snapshot(model: nn.Module) -> dict:
    """Everything an error must leave as it was."""
    return {
        "modules": [(name, id(module), module.training) for name, module in model.named_modules()],
        "parameters": [(name, id(p), p.requires_grad, p._version) for name, p in model.named_parameters()],
        "values": {name: value.clone() for name, value in model.state_dict().items()},
    }


def assert_unchanged(model: nn.Module, before: dict) -> None:
    after = snapshot(model)
    assert after["modules"] == before["modules"]
    assert after["parameters"] == before["parameters"]
    for name, value in before["values"].items():
        assert torch.equal(after["values"][name], value) or value.isnan().any(), name
