"""Packed rows hold every example once and whole, and count each from 0."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qlora_lab.tasks.batches import IGNORED, pad_batch
from qlora_lab.tasks.packing import pack_examples


def examples(sizes):
    made, begin = [], 0
    for size in sizes:
        ids = torch.arange(begin, begin + size)
        labels = ids.clone()
        labels[: size // 3] = IGNORED
        made.append((ids, labels))
        begin += size
    return made


@given(sizes=st.lists(st.integers(1, 20), min_size=1, max_size=30), more=st.integers(0, 30))
def test_every_example_is_in_one_row_whole(sizes, more):
    encoded, length = examples(sizes), max(sizes) + more
    rows = pack_examples(encoded, length)
    found = []
    for row in rows:
        ids, labels = row
        assert len(ids) == len(labels) == len(row.positions) <= length
        starts = [*torch.nonzero(row.positions == 0).flatten().tolist(), len(ids)]
        for start, end in pairwise(starts):
            assert row.positions[start:end].tolist() == list(range(end - start))
            found.append((ids[start:end], labels[start:end]))
    assert len(found) == len(encoded)
    by_first = {int(ids[0]): (ids, labels) for ids, labels in encoded}
    for ids, labels in found:
        whole, own = by_first.pop(int(ids[0]))
        assert torch.equal(ids, whole) and torch.equal(labels[1:], own[1:]) and labels[0] == IGNORED
    assert not by_first
    if len(rows) > 1:  # no two of them would fit into one
        lengths = sorted(len(ids) for ids, _ in rows)
        assert lengths[0] + lengths[1] > length


def test_without_a_length_rows_are_as_long_as_the_longest_example():
    assert sorted(len(ids) for ids, _ in pack_examples(examples([9, 4, 5, 3, 3, 3]))) == [9, 9, 9]


def test_an_example_that_is_too_long_is_named():
    with pytest.raises(ValueError, match="example 1 has 9 tokens, more than a row of 8"):
        pack_examples(examples([3, 9]), 8)


def test_padding_is_a_sequence_of_its_own():
    batch = pad_batch([*pack_examples(examples([2, 3]), 5), *pack_examples(examples([2]), 5)], pad=7)
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]]
    assert batch.attention_mask.tolist() == [[1] * 5, [1, 1, 0, 0, 0]] and batch.tokens == 7
    assert batch.inputs()["attention_mask"] is None
    assert batch.rows(1, 2).position_ids.tolist() == [[0, 1]]
