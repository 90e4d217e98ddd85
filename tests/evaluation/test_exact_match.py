"""Evaluation: answers do not depend on batching, shares carry an honest interval, loss per token is transformers'.

Decoded weights that are kept give the same bits, are decoded once, and are given back.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import adapted, commands, tiny_model, tiny_tokenizer
from tiny_llama import tiny_llama

from qlora_lab import quantize_model
from qlora_lab.evaluation import exact_match
from qlora_lab.evaluation.exact_match import (
    Answer,
    Evaluation,
    evaluate,
    generate,
    keep_decoded,
    loss_per_token,
    wilson_interval,
)
from qlora_lab.qlora import QLoRALinear
from qlora_lab.quantization.tensor import QuantizedTensor

PROMPTS = ["red", "one two three four", "a", "go go go", "stop it now please", "blue"]


def test_answers_are_those_of_each_prompt_alone_whatever_the_batches():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    alone = [generate(model, tokenizer, [p], max_new_tokens=12)[0] for p in PROMPTS]
    for size in (1, 2, 6):
        assert generate(model, tokenizer, PROMPTS, max_new_tokens=12, batch_size=size) == alone
    assert len(set(alone)) > 1


def test_the_mode_is_left_as_it_was_and_progress_is_told():
    model, told = tiny_model().train(), []
    generate(model, tiny_tokenizer(), PROMPTS, 2, batch_size=4, progress=lambda *done: told.append(done))
    assert model.training and told == [(4, 6), (6, 6)]


def test_generation_is_greedy():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    ids = tokenizer("red", return_tensors="pt", add_special_tokens=False)["input_ids"]
    while ids.shape[1] < 3 + 6 and ids[0, -1] != tokenizer.eos_token_id:
        with torch.no_grad():
            ids = torch.cat((ids, model(ids).logits[:, -1:].argmax(-1)), 1)
    assert generate(model, tokenizer, ["red"], 6)[0] == tokenizer.decode(ids[0, 3:], skip_special_tokens=True)


@pytest.mark.parametrize("seed", range(4))
def test_answers_are_those_of_transformers(seed):
    torch.manual_seed(seed)
    model, tokenizer = tiny_model(), tiny_tokenizer()
    for parameter in model.parameters():  # spread logits, so that some answers end early and others do not
        parameter.data = torch.randn(parameter.shape) * 0.3
    ids = tokenizer(PROMPTS, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    ends = torch.randint(0, model.config.vocab_size, (model.config.vocab_size // 8,)).tolist()
    model.generation_config.eos_token_id = ends
    out = model.generate(
        input_ids=ids["input_ids"],
        attention_mask=ids["attention_mask"],
        max_new_tokens=20,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=[*ends, tokenizer.eos_token_id],
    )[:, ids["input_ids"].shape[1] :]
    wanted = []
    for row in out.tolist():
        end = next((n for n, token in enumerate(row) if token in {*ends, tokenizer.eos_token_id}), len(row))
        wanted.append(tokenizer.decode(row[:end], skip_special_tokens=True))
    assert generate(model, tokenizer, PROMPTS, 20, batch_size=6) == wanted
    assert len({len(text) for text in wanted}) > 1


def test_counts_and_kinds_of_errors(monkeypatch):
    examples = commands(3)
    good = examples[0].target.split("<|im_end|>")[0]
    monkeypatch.setattr(exact_match, "generate", lambda *a, **k: [good, "no idea", good])
    result = evaluate(tiny_model(), tiny_tokenizer(), examples)
    assert (result.correct, result.exact_match) == (1, 1 / 3)
    assert sum(result.errors.values()) == 2 and result.errors["not JSON"] == 1
    with pytest.raises(ValueError, match="no examples"):
        evaluate(tiny_model(), tiny_tokenizer(), [])


@given(trials=st.integers(1, 2000), share=st.floats(0, 1))
def test_the_interval_solves_wilsons_equation(trials, share):
    """Its ends are the p for which the observed share lies exactly 1.96 standard errors (of p) away."""
    successes = round(share * trials)
    low, high = wilson_interval(successes, trials)
    assert 0 <= low <= successes / trials <= high <= 1
    for p in (low, high):
        if 0 < p < 1:
            distance = abs(successes / trials - p) / (p * (1 - p) / trials) ** 0.5
            assert distance == pytest.approx(1.959964, rel=1e-6)


@pytest.mark.parametrize(("successes", "trials"), [(1, 0), (-1, 3), (4, 3)])
def test_no_interval_of_what_is_no_share(successes, trials):
    with pytest.raises(ValueError, match="no share"):
        wilson_interval(successes, trials)


@pytest.mark.parametrize("window", [8, 13, 256])
def test_loss_per_token_equals_transformers_loss_window_by_window(window):
    model, tokenizer, text = tiny_model(), tiny_tokenizer(), "The quick brown fox jumps over the lazy dog, twice."
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    total = count = 0
    for part in ids[0].split(window):
        if len(part) > 1:
            with torch.no_grad():
                total += model(part[None], labels=part[None]).loss.item() * (len(part) - 1)
            count += len(part) - 1
    for size in (1, 3):
        assert loss_per_token(model, tokenizer, text, window, size) == pytest.approx(total / count, rel=1e-5)
    with pytest.raises(ValueError, match="two tokens"):
        loss_per_token(model, tokenizer, "x")


def test_an_evaluation_of_right_answers_alone():
    result = Evaluation([Answer(e, "", "correct") for e in commands(2)], 1.0)
    assert result.exact_match == 1 and not result.errors


@pytest.fixture
def quantized():
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


def test_same_logits_and_gradients_with_one_decoding_a_layer(quantized, decodings):
    ids = torch.arange(12).view(2, 6)

    def outcome():
        quantized.zero_grad()
        logits = quantized(input_ids=ids).logits
        logits.square().mean().backward()
        return [logits.detach(), *(p.grad.clone() for p in quantized.parameters() if p.requires_grad)]

    apart = outcome()
    decodings.clear()
    with keep_decoded(quantized) as kept:
        assert kept
        for _ in range(3):
            together = outcome()
    assert len(decodings) == len(layers(quantized))
    assert len(apart) > 1 and all(torch.equal(a, b) for a, b in zip(apart, together, strict=True))


def test_given_back_at_the_end_and_after_an_exception(quantized, decodings):
    ids = torch.arange(4).view(1, 4)
    with pytest.raises(KeyError), torch.no_grad(), keep_decoded(quantized):
        quantized(input_ids=ids)
        raise KeyError
    assert all(layer.kept is None for layer in layers(quantized))
    decodings.clear()
    with torch.no_grad():
        quantized(input_ids=ids)
    assert len(decodings) == len(layers(quantized))


def test_nested_the_inner_one_leaves_the_outer_ones_alone(quantized):
    with keep_decoded(quantized):
        with keep_decoded(quantized):
            pass
        assert all(layer.kept is not None for layer in layers(quantized))


def test_nothing_is_kept_where_memory_is_short(quantized, monkeypatch):
    needed = sum(4 * layer.encoded_elements for layer in layers(quantized))
    monkeypatch.setattr(exact_match, "free_memory", lambda device: 2 * needed - 1)
    with keep_decoded(quantized) as kept:
        assert not kept and all(layer.kept is None for layer in layers(quantized))
    monkeypatch.setattr(exact_match, "free_memory", lambda device: 2 * needed)
    with keep_decoded(quantized) as kept:
        assert kept


# -- tokenizers and prompts as they come


@pytest.mark.parametrize("pad", ["none", "outside", "negative"])
def test_padding_that_the_tokenizer_or_the_model_does_not_have(pad):
    """Padding is masked: the answers are those of a tokenizer that has a token for it."""
    model, prompts = adapted(), ["red=", "one two three=", "go="]
    expected = generate(model, tiny_tokenizer(), prompts, 6)

    class Bare:
        eos_token_id = tiny_tokenizer().eos_token_id
        pad_token_id = {"none": None, "outside": 10**6, "negative": -1}[pad]

        def __init__(self):
            self.inner = tiny_tokenizer()

        def __call__(self, text, add_special_tokens=False):
            return {"input_ids": self.inner(text, add_special_tokens=False)["input_ids"]}

        def decode(self, *arguments, **options):
            return self.inner.decode(*arguments, **options)

    assert generate(model, Bare(), prompts, 6) == expected


def test_a_prompt_without_a_token_is_named():
    with pytest.raises(ValueError, match="prompt 1 has no token"):
        generate(adapted(), tiny_tokenizer(), ["red=", ""], 3)
