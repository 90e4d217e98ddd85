"""Batches: every example in its turn, in an order that the seed alone decides."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qlora_lab.tasks.batches import IGNORED, Batches, pad_batch


def encoded(lengths):
    """Example i is made of the token i + 1; its first token has no label."""
    made = []
    for i, length in enumerate(lengths):
        ids = torch.full((length,), i + 1)
        labels = ids.clone()
        labels[0] = IGNORED
        made.append((ids, labels))
    return made


def names(batch):
    return [int(row[0]) - 1 for row in batch.input_ids]


LENGTHS = st.lists(st.integers(2, 12), min_size=1, max_size=60)


@given(lengths=LENGTHS, size=st.integers(1, 9), seed=st.integers(0, 99))
def test_an_epoch_shows_each_example_at_most_once_and_leaves_out_less_than_a_batch(lengths, size, seed):
    batches = Batches(encoded(lengths), size, 0, seed)
    for epoch in range(2):
        shown = [n for i in range(batches.per_epoch) for n in names(batches[epoch * batches.per_epoch + i])]
        assert max(Counter(shown).values()) == 1
        assert len(lengths) - len(shown) < min(size, len(lengths))


@given(lengths=LENGTHS, size=st.integers(1, 9), seed=st.integers(0, 99), number=st.integers(0, 200))
def test_a_batch_depends_on_the_seed_and_its_number_alone(lengths, size, seed, number):
    one, other = Batches(encoded(lengths), size, 0, seed), Batches(encoded(lengths), size, 0, seed)
    _ = one[0], one[number + 3]
    assert torch.equal(one[number].input_ids, other[number].input_ids)


def test_seeds_and_epochs_give_other_orders():
    examples = encoded([5] * 40)
    order = lambda seed, epoch: [n for i in range(10) for n in names(Batches(examples, 4, 0, seed)[epoch * 10 + i])]  # noqa: E731
    assert order(0, 0) != order(1, 0) != order(0, 1) != order(0, 0)


@given(lengths=LENGTHS)
def test_padding_has_no_label_and_no_attention(lengths):
    examples = encoded(lengths)
    batch = pad_batch(examples, 99)
    for row, (ids, labels) in enumerate(examples):
        n = len(ids)
        assert torch.equal(batch.input_ids[row, :n], ids) and torch.equal(batch.labels[row, :n], labels)
        assert batch.input_ids[row, n:].eq(99).all()
        assert batch.attention_mask[row].tolist() == [1] * n + [0] * (max(lengths) - n)
        assert batch.labels[row, n:].eq(IGNORED).all()
    assert batch.tokens == sum(lengths)
    assert batch.supervised == sum(length - 1 for length in lengths)


def test_sorting_by_length_saves_padding():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(5, 60, (512,), generator=generator).tolist()
    batches = Batches(encoded(lengths), 8, 0, 0)
    positions = sum(batches[i].input_ids.numel() for i in range(batches.per_epoch))
    assert sum(lengths) / positions > 0.9  # in random order it is about 0.6


def test_longest_is_what_memory_must_be_planned_for():
    assert Batches(encoded([3, 9, 4]), 2, 0, 0).longest() == (9, 8)


@pytest.mark.parametrize(
    ("examples", "size", "words"),
    [
        ([], 4, "no examples"),
        (encoded([3]), 0, "at least 1"),
        ([(torch.ones(3), torch.full((3,), -100))], 1, "example 0"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(examples, size, words):
    with pytest.raises(ValueError, match=words):
        Batches(examples, size, 0, 0)


def test_a_negative_number_is_refused():
    with pytest.raises(IndexError, match="from 0"):
        Batches(encoded([3]), 1, 0, 0)[-1]
