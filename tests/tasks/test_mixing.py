"""Mixing: general text makes up the share of the learned tokens that was asked for."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from qlora_lab.tasks.batches import IGNORED
from qlora_lab.tasks.mixing import SHORTEST, mixed


def texts(sizes):
    return [(torch.arange(size), torch.arange(size)) for size in sizes]


def examples(count, size, prompt):
    labels = torch.arange(size)
    labels[:prompt] = IGNORED
    return [(torch.arange(size), labels)] * count


@given(
    share=st.floats(0.05, 0.6),
    count=st.integers(5, 60),
    size=st.integers(10, 150),
    sizes=st.lists(st.integers(2, 900), min_size=1, max_size=5),
)
@example(share=0.15, count=13, size=101, sizes=[2])  # of whole numbers: 117 tokens, exactly
def test_the_share_of_learned_tokens(share, count, size, sizes):
    own = examples(count, size, size // 2)
    found = mixed(own, texts(sizes), share, seed=3)
    assert all(a is b for a, b in zip(found, own, strict=False)) and len(found) > len(own)
    added = found[len(own) :]
    learned = [int((labels[1:] != IGNORED).sum()) for _, labels in found]
    theirs = sum(learned[len(own) :])
    wanted = share / (1 - share) * sum(learned[: len(own)])
    longest = max(len(ids) for ids, _ in added)
    assert longest <= max(SHORTEST, size)
    rounding = 1e-9 * wanted  # 117 may come out as 117.00000000000001
    assert (theirs - longest <= wanted + rounding and wanted - rounding <= theirs) or len(added) == 1
    assert all(torch.equal(ids, labels) for ids, labels in added)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(found, mixed(own, texts(sizes), share, 3), strict=True))


def test_a_text_without_anything_to_learn():
    with pytest.raises(ValueError, match="no two tokens"):
        mixed(examples(3, 10, 2), texts([1, 0]), 0.1)
