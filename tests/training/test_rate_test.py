"""The range test: it finds where learning breaks, and leaves everything as it was."""

from itertools import pairwise

import pytest
import torch
from tiny import adapted, pairs, tiny_model, tiny_tokenizer
from tiny_llama import assert_unchanged, snapshot

from qlora_lab.training.loop import finetune
from qlora_lab.training.rate_test import find_rate, suggestion


def tried(model=None, **options):
    return find_rate(model or adapted(dropout=0.1), tiny_tokenizer(), pairs(), batch_size=4, **{"steps": 30, **options})


@pytest.mark.parametrize("kind", ["qlora", "lora", "full"])
@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_afterwards_what_it_was(kind, training):
    model = adapted(kind=kind, dropout=0.1).train(training)
    first = next(p for p in model.parameters() if p.requires_grad)
    first.grad = grad = torch.ones_like(first)
    model.register_buffer("counted", torch.zeros(3))
    before = snapshot(model)
    before["parameters"] = [(name, number, grad) for name, number, grad, _ in before["parameters"]]  # written, and back
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    tried(model)
    assert torch.equal(torch.rand(2), expected)
    after = snapshot(model)
    assert [(name, number, grad) for name, number, grad, _ in after["parameters"]] == before["parameters"]
    assert after["modules"] == before["modules"]
    assert all(torch.equal(after["values"][name], value) for name, value in before["values"].items())
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert gradients[0] is grad and all(g is None for g in gradients[1:])


def test_a_run_after_it_is_a_run_without_it():
    options = {"steps": 4, "batch_size": 4, "learning_rate": 1e-2}
    model = adapted(dropout=0.1)
    tried(model)
    after = finetune(model, tiny_tokenizer(), pairs(), **options)
    alone = finetune(adapted(dropout=0.1), tiny_tokenizer(), pairs(), **options)
    assert [r.loss for r in after.records] == [r.loss for r in alone.records]


def test_rates_rise_by_the_same_factor_and_the_test_ends_where_the_loss_breaks():
    seen = []
    found = tried(adapted(kind="full"), lowest=1e-4, highest=1e4, on_step=lambda r: seen.append(r.learning_rate))
    assert seen == found.rates and found.rates[0] == 1e-4 and len(found.rates) < 30
    factors = [b / a for a, b in pairwise(found.rates)]
    assert factors == pytest.approx([1e8 ** (1 / 29)] * len(factors))
    assert max(found.losses[:-1]) <= 1.5 * found.losses[0] < found.losses[-1]


@pytest.mark.slow
def test_what_it_suggests_learns_and_ten_times_as_much_learns_less():
    found = tried(adapted(), steps=60)
    assert str(found).startswith(f"learning rate {found.suggested:.1e} fits")

    def last(rate):
        result = finetune(adapted(), tiny_tokenizer(), pairs(), steps=30, batch_size=4, learning_rate=rate)
        return sum(r.loss for r in result.records[-5:]) / 5

    good = last(found.suggested)
    assert good < last(found.suggested / 30) and good < last(found.suggested * 30)


def test_a_loss_that_never_fell_says_nothing():
    assert suggestion([1, 2, 3, 4], [4.0, 3.0, 2.0, 9.0]) == pytest.approx(3 / 2)
    for losses in ([1.0, 2.0, 3.0], [1.0]):
        with pytest.raises(ValueError, match="fell at no rate"):
            suggestion([1, 2, 3], losses)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lowest": 1.0, "highest": 0.1}, "give lowest below highest"),
        ({"lowest": 0}, "lowest 0"),
        ({"steps": 3}, "at least 10"),
        ({"batch_size": 0}, "batch_size 0"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_changed(options, words):
    model = adapted(tiny_model())
    before = snapshot(model)
    with pytest.raises(ValueError, match=words):
        find_rate(model, tiny_tokenizer(), pairs(), **options)
    assert_unchanged(model, before)
