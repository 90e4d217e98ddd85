"""Decoded weights that are kept give the same bits, are decoded once, and are given back."""

import pytest
import torch
from tiny_llama import tiny_llama

from qlora_lab import quantize_model
from qlora_lab.evaluation import kept_weights
from qlora_lab.evaluation.kept_weights import keep_decoded
from qlora_lab.qlora import QLoRALinear
from qlora_lab.quantization.tensor import QuantizedTensor


@pytest.fixture
def model():
    torch.manual_seed(0)
    return quantize_model(tiny_llama(), rank=4)


@pytest.fixture
def decodings(monkeypatch):
    done, original = [], QuantizedTensor.dequantize

    def counted(self, dtype=None):
        done.append(self.shape)
        return original(self, dtype)

    monkeypatch.setattr(QuantizedTensor, "dequantize", counted)
    return done


def layers(model):
    return [module for module in model.modules() if isinstance(module, QLoRALinear)]


def test_same_logits_and_gradients_with_one_decoding_a_layer(model, decodings):
    ids = torch.arange(12).view(2, 6)

    def outcome():
        model.zero_grad()
        logits = model(input_ids=ids).logits
        logits.square().mean().backward()
        return [logits.detach(), *(p.grad.clone() for p in model.parameters() if p.requires_grad)]

    apart = outcome()
    decodings.clear()
    with keep_decoded(model) as kept:
        assert kept
        for _ in range(3):
            together = outcome()
    assert len(decodings) == len(layers(model))
    assert len(apart) > 1 and all(torch.equal(a, b) for a, b in zip(apart, together, strict=True))


def test_given_back_at_the_end_and_after_an_exception(model, decodings):
    ids = torch.arange(4).view(1, 4)
    with pytest.raises(KeyError), torch.no_grad(), keep_decoded(model):
        model(input_ids=ids)
        raise KeyError
    assert all(layer.kept is None for layer in layers(model))
    decodings.clear()
    with torch.no_grad():
        model(input_ids=ids)
    assert len(decodings) == len(layers(model))


def test_nested_the_inner_one_leaves_the_outer_ones_alone(model):
    with keep_decoded(model):
        with keep_decoded(model):
            pass
        assert all(layer.kept is not None for layer in layers(model))


def test_nothing_is_kept_where_memory_is_short(model, monkeypatch):
    needed = sum(4 * layer.encoded_elements for layer in layers(model))
    monkeypatch.setattr(kept_weights, "free_memory", lambda device: 2 * needed - 1)
    with keep_decoded(model) as kept:
        assert not kept and all(layer.kept is None for layer in layers(model))
    monkeypatch.setattr(kept_weights, "free_memory", lambda device: 2 * needed)
    with keep_decoded(model) as kept:
        assert kept
