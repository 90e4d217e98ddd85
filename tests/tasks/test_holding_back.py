"""Holding back: a share, drawn by the seed, and no question on both sides."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_lab.tasks.holding_back import asked, hold_back
from qlora_lab.tasks.own_data import load_dataset


def records(questions):
    return load_dataset([{"prompt": q, "completion": str(n)} for n, q in enumerate(questions)])


@given(
    questions=st.lists(st.sampled_from(["a", "A", "b", "c 1", "C  2", "d", "e", "f"]), min_size=2, max_size=40),
    share=st.floats(0.01, 0.9),
    seed=st.integers(0, 5),
)
def test_each_is_on_one_side_with_all_that_ask_the_same(questions, share, seed):
    made = records(questions)
    if len({asked(r) for r in made}) < 2:
        with pytest.raises(ValueError, match="cannot be split"):
            hold_back(made, share, seed)
        return
    train, held = hold_back(made, share, seed)
    assert train and held and len(train) + len(held) == len(made)
    assert {asked(r) for r in train}.isdisjoint({asked(r) for r in held})
    assert [r.completion for r in train] == sorted((r.completion for r in train), key=int)
    assert hold_back(made, share, seed) == (train, held)


def test_the_share_is_met_where_all_are_different():
    made = records([f"question {'x' * n}" for n in range(40)])
    assert [len(hold_back(made, share)[1]) for share in (0.001, 0.1, 0.25)] == [1, 4, 10]
    assert hold_back(made, 0.1, seed=0)[1] != hold_back(made, 0.1, seed=1)[1]


def test_conversations_and_texts_are_compared_by_what_is_asked():
    said = [{"role": "user", "content": "Hi 1"}, {"role": "assistant", "content": "a"}]
    other = [{"role": "user", "content": "hi 2"}, {"role": "assistant", "content": "b"}]
    one, two = load_dataset([{"messages": said}, {"messages": other}])
    assert asked(one) == asked(two)
    one, two = load_dataset([{"text": "One  text 5"}, {"text": "one text 7"}])
    assert asked(one) == asked(two)
