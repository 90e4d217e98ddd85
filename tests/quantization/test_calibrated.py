"""GPTQ and AWQ: by their definitions, on any of the data types, and on the default model's layers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from qlora_lab import quantize, quantize_model
from qlora_lab.quantization import DATATYPES, SINCE_NF4, get_datatype
from qlora_lab.quantization.calibrated import awq_scales, gptq, input_moments, output_error, scale_inputs

WITHOUT_A_NUMBER_FOR_ALL = [name for name in (*DATATYPES, *SINCE_NF4) if name != "nvfp4"]


def inputs(tokens: int, width: int, seed: int = 0) -> torch.Tensor:
    """Some of them large, some going together."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, width, generator=generator) * torch.logspace(-1, 1, width)
    mix = torch.randn(width, width, generator=generator) / width**0.5
    return x + x @ mix


def case(out: int, width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(weight, inputs, their moments)"""
    x = inputs(4 * width, width, seed)
    weight = torch.randn(out, width, generator=torch.Generator().manual_seed(seed + 1))
    return weight, x, x.T @ x / len(x)


@pytest.fixture
def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def tokens(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 97, (count, 16), generator=torch.Generator().manual_seed(seed))


class TestInputMoments:
    def test_are_the_mean_of_x_times_x(self):
        model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
        first, second = torch.randn(7, 6), torch.randn(2, 4, 6)
        found = input_moments(model, [first, second])
        x = torch.cat((first, second.view(-1, 6)))
        torch.testing.assert_close(found["0"], x.T @ x / len(x))
        h = model[1](model[0](x)).detach()
        torch.testing.assert_close(found["2"], h.T @ h / len(h))

    def test_leave_out_the_head_and_take_batches_with_names(self, llama):
        batch = tokens(2)
        found = input_moments(llama, [{"input_ids": batch}])
        assert len(found) == 14 and "lm_head" not in found
        again = input_moments(llama, [batch], layers=["model.layers.1.mlp.down_proj"])
        assert list(again) == ["model.layers.1.mlp.down_proj"]
        torch.testing.assert_close(again["model.layers.1.mlp.down_proj"], found["model.layers.1.mlp.down_proj"])

    def test_the_model_is_as_before(self, llama):
        llama.train()
        input_moments(llama, [tokens(1)])
        assert llama.training and not any(module._forward_pre_hooks for module in llama.modules())

    def test_no_batch_and_a_layer_that_is_not_there_are_told(self, llama):
        with pytest.raises(ValueError, match=r"no token reached model\.layers\.0\.self_attn\.q_proj"):
            input_moments(llama, [])
        with pytest.raises(ValueError, match="'q_proj' is no linear layer of this model; there are model"):
            input_moments(llama, [tokens(1)], layers=["q_proj"])


class TestOutputError:
    @given(out=st.integers(1, 9), width=st.integers(1, 12), seed=st.integers(0, 99))
    def test_is_that_of_the_outputs(self, out, width, seed):
        weight, x, moments = case(out, width, seed)
        error = torch.randn(out, width, generator=torch.Generator().manual_seed(seed)) / 10
        outputs = ((x @ error.T).norm() / (x @ weight.T).norm()).item()
        assert output_error(error, moments, weight) == pytest.approx(outputs, rel=1e-3)

    def test_of_nothing_is_nothing(self):
        assert output_error(torch.zeros(2, 3), torch.eye(3), torch.zeros(2, 3)) == 0.0


class TestGptq:
    @pytest.mark.parametrize("name", WITHOUT_A_NUMBER_FOR_ALL)
    def test_loses_less_of_the_outputs_than_the_nearest_levels(self, name):
        weight, _, moments = case(24, 128)
        size = get_datatype(name).usual_block_size
        plain, found = quantize(weight, name, size), gptq(weight, moments, name, size)
        assert (found.nbytes, found.shape, found.dtype) == (plain.nbytes, plain.shape, plain.dtype)
        errors = [output_error(weight - q.dequantize(), moments, weight) for q in (found, plain)]
        assert errors[0] < 0.9 * errors[1]

    @pytest.mark.parametrize("name", WITHOUT_A_NUMBER_FOR_ALL)
    def test_of_inputs_that_have_nothing_to_do_with_each_other_rounds_as_ever(self, name):
        weight = torch.randn(8, 128, generator=torch.Generator().manual_seed(3))
        found, plain = gptq(weight, torch.eye(128), name), quantize(weight, name)
        same = (found.dequantize() - plain.dequantize()).abs() < 1e-6
        # a weight near a threshold may go the other way: GPTQ divides by the scale as it is stored, in float16 perhaps
        assert same.float().mean() > 0.99
        assert all(torch.equal(found.stored[key], plain.stored[key]) for key in plain.stored)

    def test_a_column_is_made_good_as_least_squares_would(self):
        """With blocks of 16 in one of 16 columns: by the definition, one least-squares problem for each column."""
        weight, _, moments = case(5, 16)
        damped = moments.double() + 0.01 * moments.diagonal().double().mean() * torch.eye(16)
        w, table = weight.double().clone(), get_datatype("nf4").table().double()
        scales = weight.abs().amax(1).double()
        for column in range(16):
            nearest = (w[:, column, None] / scales[:, None] - table).abs().argmin(1)
            error = w[:, column] - table[nearest] * scales
            w[:, column] -= error
            rest = slice(column + 1, 16)  # change d of the rest: least tr((error, d) M (error, d)^T)
            if column < 15:
                w[:, rest] += error[:, None] * torch.linalg.solve(damped[rest, rest], damped[rest, column])
        torch.testing.assert_close(gptq(weight, moments, "nf4", 16).dequantize().double(), w, atol=1e-5, rtol=0)

    @pytest.mark.parametrize("columns", [1, 16, 64, 4096])
    def test_when_the_rest_hears_of_it_does_not_matter(self, columns, monkeypatch):
        weight, _, moments = case(8, 192)
        expected = gptq(weight, moments, "nf4", 16).dequantize()
        monkeypatch.setattr("qlora_lab.quantization.calibrated.COLUMNS", columns)
        same = (gptq(weight, moments, "nf4", 16).dequantize() - expected).abs() < 1e-5
        assert same.float().mean() > 0.98

    def test_inputs_that_never_come(self):
        weight, x, _ = case(4, 64)
        x[:, 10:20] = 0
        found = gptq(weight, x.T @ x / len(x))
        assert found.dequantize().isfinite().all()
        assert gptq(weight, torch.zeros(64, 64)).dequantize().isfinite().all()

    def test_keeps_its_dtype_and_can_be_saved(self, tmp_path):
        weight, _, moments = case(6, 64)
        found = gptq(weight.bfloat16(), moments, "q4_1")
        found.save(tmp_path / "w.safetensors")
        again = type(found).load(tmp_path / "w.safetensors")
        assert again.dtype == torch.bfloat16 and torch.equal(again.dequantize(), found.dequantize())

    @pytest.mark.parametrize(
        "shape, moments, options, said",
        [
            ((2, 4, 64), torch.eye(64), {}, r"two dimensions, not \(2, 4, 64\)"),
            ((4, 64), torch.eye(63), {}, r"needs moments \(64, 64\), not \(63, 63\)"),
            ((4, 96), torch.eye(96), {}, "96 inputs are no multiple of 64"),
            ((4, 64), torch.eye(64), {"datatype": "nvfp4"}, "one number for all of a tensor's scales"),
            ((4, 64), torch.full((64, 64), torch.nan), {}, "not finite"),
            ((4, 64), -torch.eye(64), {}, "no inverse with a damping of 0.01"),
        ],
    )
    def test_what_cannot_be_is_told(self, shape, moments, options, said):
        with pytest.raises(ValueError, match=said):
            gptq(torch.randn(shape), moments, **options)


class TestAwq:
    @pytest.mark.parametrize("name", ["nf4", "int4_signed", "mxfp4", "q4_1", "nvfp4"])
    def test_is_never_worse_than_no_factors(self, name):
        weight, _, moments = case(24, 128)
        s, exponent = awq_scales([weight], moments, name)
        scaled = quantize(weight * s, name).dequantize() / s
        plain = output_error(weight - quantize(weight, name).dequantize(), moments, weight)
        assert output_error(weight - scaled, moments, weight) <= plain * (1 + 1e-6)
        assert s.shape == (128,) and 0 < exponent <= 1
        assert (s.max() * s.min()).item() == pytest.approx(1, rel=1e-4)

    def test_inputs_all_alike_need_none(self):
        s, _ = awq_scales([torch.randn(4, 64)], torch.eye(64))
        torch.testing.assert_close(s, torch.ones(64))

    def test_a_model_computes_what_it_did(self, llama):
        batch = tokens(3)
        expected = llama(batch).logits.detach()
        moments = input_moments(llama, [batch])
        before = {name: p.detach().clone() for name, p in llama.named_parameters()}
        chosen = scale_inputs(llama, moments, "nf4")
        assert len(chosen) == 6
        torch.testing.assert_close(llama(batch).logits.detach(), expected, atol=1e-5, rtol=1e-4)
        changed = {name.split(".")[-2] for name, p in llama.named_parameters() if not torch.equal(p, before[name])}
        assert changed <= {
            "input_layernorm", "post_attention_layernorm", "q_proj", "k_proj", "v_proj", "gate_proj", "up_proj",
            "down_proj",
        }  # fmt: skip
        assert "o_proj" not in changed and quantize_model(llama, rank=4)(batch).logits.isfinite().all()

    def test_another_layout_and_no_grid_are_told(self):
        with pytest.raises(ValueError, match="no layers of the Llama family"):
            scale_inputs(nn.Sequential(nn.Linear(64, 64)), {})
        with pytest.raises(ValueError, match="grid 0 is not allowed"):
            awq_scales([torch.randn(4, 64)], torch.eye(64), grid=0)
