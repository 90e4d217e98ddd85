"""LoftQ, PiSSA and DoRA: by their definitions, and beside PEFT where it has the same; LoRA+ as a larger alpha."""

import copy

import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft.optimizers import create_loraplus_optimizer
from torch import nn

from qlora_lab import inject_lora, quantize, quantize_model
from qlora_lab.lora import adapted_layers
from qlora_lab.variants import DoRA, add_dora, loftq, merge_dora, nearest_adapter, pissa, start_adapters


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(64, 32), nn.Linear(32, 64, bias=False)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


@pytest.fixture
def small():
    torch.manual_seed(0)
    return Small()


def random_matrix(out: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(out, width, generator=torch.Generator().manual_seed(seed))


def train(model, parameters, steps=6, rate=0.01):
    """Losses of some steps of AdamW; `parameters`: an iterable of parameters or groups, or an optimizer."""
    optimizer = parameters if isinstance(parameters, torch.optim.Optimizer) else torch.optim.AdamW(parameters, rate)
    generator = torch.Generator().manual_seed(5)
    losses = []
    for _ in range(steps):
        x, y = torch.randn(8, 64, generator=generator), torch.randn(8, 64, generator=generator)
        loss = nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses)


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


class TestNearestAdapter:
    @given(out=st.integers(1, 20), width=st.integers(1, 20), rank=st.integers(1, 25), seed=st.integers(0, 50))
    def test_no_matrix_of_that_rank_is_nearer(self, out, width, rank, seed):
        matrix, scaling = random_matrix(out, width, seed), 0.5 + seed % 4
        a, b = nearest_adapter(matrix, rank, scaling)
        assert a.shape == (rank, width) and b.shape == (out, rank)
        left = (torch.linalg.svdvals(matrix)[rank:] ** 2).sum().sqrt()  # Eckart, Young
        assert (matrix - scaling * b @ a).norm().item() == pytest.approx(left.item(), abs=1e-4)


class TestLoftq:
    @pytest.mark.parametrize("options", [("nf4", 64, True), ("mxfp4", 32, False), ("int4_affine", 64, False)])
    def test_begins_nearer_to_the_weight_than_rounding_leaves_it(self, options):
        weight = random_matrix(96, 128)
        plain = (weight - quantize(weight, *options).dequantize()).norm()
        errors = []
        for rounds in (1, 2, 5, 10):
            q, a, b = loftq(weight, 16, 2.0, *options, rounds=rounds)
            errors.append((weight - q.dequantize() - 2.0 * b @ a).norm())
        assert errors[0] < plain and errors == sorted(errors, reverse=True) and errors[-1] < errors[0]

    def test_no_round_is_told(self):
        with pytest.raises(ValueError, match="rounds 0 is not allowed"):
            loftq(random_matrix(4, 64), 2, 1.0, rounds=0)

    def test_its_first_round_is_the_rounded_weight_and_what_of_its_error_has_that_rank(self):
        weight = random_matrix(32, 64)
        q, a, b = loftq(weight, 4, 0.5, rounds=1)
        plain = quantize(weight)
        assert torch.equal(q.codes, plain.codes)
        expected = nearest_adapter(weight - plain.dequantize(), 4, 0.5)
        torch.testing.assert_close((a, b), expected)


class TestPissa:
    def test_equals_pefts(self, small):
        """On a base that is not rounded: A, B and the rest of the weight."""
        config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["second"], init_lora_weights="pissa")
        theirs = peft.get_peft_model(copy.deepcopy(small), config).base_model.model.second
        a, b = nearest_adapter(small.second.weight.detach(), 4, 2.0)
        torch.testing.assert_close(
            2.0 * b @ a, 2.0 * theirs.lora_B.default.weight @ theirs.lora_A.default.weight, atol=1e-5, rtol=1e-4
        )
        _, a, b = pissa(small.second.weight.detach(), 4, 2.0, block_size=32)
        torch.testing.assert_close(
            (small.second.weight - 2.0 * b @ a).detach(), theirs.base_layer.weight.detach(), atol=1e-5, rtol=1e-4
        )
        for mine, other in ((a, theirs.lora_A.default.weight), (b, theirs.lora_B.default.weight)):
            torch.testing.assert_close(mine.abs(), other.abs().detach(), atol=1e-4, rtol=1e-3)  # signs are free

    def test_rounds_only_the_rest(self):
        weight = random_matrix(64, 32) @ random_matrix(32, 64, 1)
        q, a, b = pissa(weight, 8, 2.0)
        rest = weight - 2.0 * b @ a
        torch.testing.assert_close(q.dequantize(), quantize(rest.contiguous()).dequantize())
        assert (rest - q.dequantize()).norm() < (weight - quantize(weight).dequantize()).norm()


class TestStartAdapters:
    @pytest.mark.parametrize("start", ["loftq", "pissa"])
    def test_a_model_begins_near_its_weights_before_rounding(self, small, start):
        x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
        whole, weights = (
            small(x).detach(),
            {n: small.get_submodule(n).weight.detach().clone() for n in ("first", "second")},
        )
        model = quantize_model(small, rank=16)
        plain = (model(x) - whole).norm()
        assert start_adapters(model, weights, start) is model
        assert (model(x) - whole).norm() < plain
        losses = train(model, trained(model))
        assert losses.isfinite().all()

    def test_what_cannot_be_is_told(self, small):
        weights = {"first": small.first.weight, "second": small.second.weight.T}
        with pytest.raises(ValueError, match="no 4-bit layer"):
            start_adapters(small, weights, "pissa")
        model = quantize_model(small, rank=2)
        codes = model.first.codes.clone()
        with pytest.raises(
            ValueError, match=r"second needs its weight before rounding, \(64, 32\); there is \(32, 64\)"
        ):
            start_adapters(model, weights, "pissa")
        with pytest.raises(ValueError, match="there is no start 'olora'; the starts are loftq, pissa"):
            start_adapters(model, weights, "olora")
        assert torch.equal(model.first.codes, codes)


class TestDora:
    def test_trains_as_pefts(self, small):
        config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["first", "second"], use_dora=True)
        theirs = peft.get_peft_model(copy.deepcopy(small), config)
        ours = add_dora(inject_lora(copy.deepcopy(small), 4, 8))
        for name in ("first", "second"):
            source = theirs.base_model.model.get_submodule(name)
            layer = ours.get_submodule(name).layer
            with torch.no_grad():
                layer.lora_A.copy_(source.lora_A.default.weight)
                layer.lora_B.copy_(source.lora_B.default.weight)
        assert len(trained(ours)) == len(trained(theirs)) == 6
        torch.testing.assert_close(train(ours, trained(ours)), train(theirs, trained(theirs)), rtol=1e-4, atol=1e-5)

    def test_begins_as_the_model_was_and_works_on_four_bits(self, small):
        model = quantize_model(small, rank=4)
        x = torch.randn(3, 64)
        before = model(x).detach()
        add_dora(model)
        torch.testing.assert_close(model(x).detach(), before, rtol=1e-4, atol=1e-5)
        magnitude = model.first.magnitude.detach().clone()
        assert train(model, trained(model)).isfinite().all() and not torch.equal(model.first.magnitude, magnitude)
        assert len(dict(adapted_layers(model))) == 2
        after = model(x).detach()
        assert isinstance(merge_dora(model).first, nn.Linear)
        torch.testing.assert_close(model(x).detach(), after, rtol=1e-4, atol=1e-5)

    def test_a_layer_without_an_adapter_is_told(self, small):
        with pytest.raises(ValueError, match="rank 0"):
            DoRA(quantize_model(small, rank=0).first)


class TestLoraPlus:
    def test_is_a_larger_alpha(self, small):
        """With PEFT's own optimizer of it: 16 times the rate for B is 16 times the alpha."""
        config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["first", "second"])
        theirs = peft.get_peft_model(copy.deepcopy(small), config)
        ours = inject_lora(copy.deepcopy(small), 4, 16 * 8)
        with torch.no_grad():
            for name in ("first", "second"):
                source = theirs.base_model.model.get_submodule(name).lora_A.default.weight
                ours.get_submodule(name).lora_A.copy_(source)
        options = {"eps": 1e-12, "weight_decay": 0.0}
        plus = create_loraplus_optimizer(theirs, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16, **options)
        losses = train(ours, torch.optim.AdamW(trained(ours), 1e-3, **options), steps=20)
        torch.testing.assert_close(losses, train(theirs, plus, steps=20), rtol=1e-4, atol=1e-5)
