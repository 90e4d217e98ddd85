"""One example or many: the same tokens; what nothing could be learned from is left out and told."""

import numpy as np
import pytest
import torch
from chat_families import FAMILIES, chat_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import commands, pairs, tiny_tokenizer

from qlora_lab.tasks import encoding
from qlora_lab.tasks.batches import Batches
from qlora_lab.tasks.encoding import IGNORED, Encoded, LeftOut, encode, encode_all
from qlora_lab.tasks.own_data import Record, load_dataset

words = st.text("abc é\n", max_size=8)
records = st.lists(
    st.one_of(
        st.builds(
            lambda q, a, b: {
                "messages": [
                    {"role": "user", "content": q},
                    {"role": "assistant", "content": a},
                    {"role": "user", "content": q},
                    {"role": "assistant", "content": b},
                ]
            },
            words,
            words,
            words,
        ),
        st.builds(lambda q, a: {"prompt": q, "completion": a}, words, words),
        st.builds(lambda t: {"text": t + "a"}, words),
    ).map(lambda row: load_dataset([row])[0]),
    min_size=1,
    max_size=6,
)


def equal(one: Encoded, other: Encoded) -> bool:
    return torch.equal(one.input_ids, other.input_ids) and torch.equal(one.labels, other.labels)


def test_a_call_is_tokens_of_the_width_that_torch_indexes_with():
    ids, labels = encode(commands(1)[0], tiny_tokenizer())
    assert ids.dtype == labels.dtype == torch.int64


@settings(deadline=None, max_examples=40)
@given(records)
def test_many_are_as_each_alone(records):
    tokenizer = chat_tokenizer("zephyr")
    found = encode_all(records, tokenizer)
    alone = [encode(record, tokenizer) for record in records]
    assert len(found) == len(alone) and all(map(equal, found, alone)) and all(map(equal, found[:], alone))
    assert found.places.tolist() == list(range(len(records))) and not found.dropped and not found.lost.any()
    assert found.lengths.tolist() == [len(ids) for ids, _ in alone]
    assert found.ids.dtype == np.int32 and found.learned.dtype == bool


@settings(deadline=None, max_examples=60)
@given(records, st.integers(2, 60), st.sampled_from(encoding.OVERLONG))
def test_what_is_cut_is_a_beginning_and_what_teaches_nothing_is_left_out(records, max_length, overlong):
    tokenizer = chat_tokenizer("chatml")
    whole = [encode(record, tokenizer) for record in records]
    found = encode_all(records, tokenizer, max_length, overlong)
    assert sorted([*found.places.tolist(), *(d.place for d in found.dropped)]) == list(range(len(records)))
    for one, place, length, lost in zip(found, found.places, found.lengths, found.lost, strict=True):
        ids, labels = whole[place]
        assert equal(one, Encoded(ids[:max_length], labels[:max_length])) and length == len(ids)
        assert lost == (labels[max_length:] != IGNORED).sum() and (one.labels[1:] != IGNORED).any()
        assert equal(one, encode(records[place], tokenizer, max_length))
        assert overlong == "cut" or lost == 0
    for dropped in found.dropped:
        ids, labels = whole[dropped.place]
        assert len(ids) > max_length
        if dropped.kind == "too long":
            assert overlong == "drop"
        else:
            assert not (labels[1:max_length] != IGNORED).any()
            with pytest.raises(LeftOut, match="nothing that is learned is left"):
                encode(records[dropped.place], tokenizer, max_length)


def test_calls_are_never_cut():
    tokenizer, examples = tiny_tokenizer(), commands(6)
    lengths = [len(encode(example, tokenizer).input_ids) for example in examples]
    found = encode_all(examples, tokenizer, max_length=min(lengths))
    assert [len(one.input_ids) for one in found] == [n for n in lengths if n == min(lengths)]
    assert {dropped.kind for dropped in found.dropped} == {"too long"}
    assert found.dropped[0].reason == f"{lengths[found.dropped[0].place]} tokens, and max_length is {min(lengths)}"
    with pytest.raises(LeftOut, match=f"but max_length is {min(lengths) - 1}"):
        encode(examples[0], tokenizer, min(lengths) - 1)


def test_kinds_may_be_mixed_and_come_from_any_iterable():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = FAMILIES["chatml"].template
    mixed = [
        *pairs(2),
        {"prompt": "a", "target": "b"},
        Record(text="abc"),
        *commands(1),
        Record(prompt="a", completion="b"),
    ]
    found = encode_all(iter(mixed), tokenizer)
    assert all(equal(one, encode(example, tokenizer)) for one, example in zip(found, mixed, strict=True))


def test_they_are_what_batches_are_made_of():
    tokenizer = tiny_tokenizer()
    examples = pairs(12)
    one = Batches(encode_all(examples, tokenizer), 4, 0, seed=1)
    other = Batches([encode(example, tokenizer) for example in examples], 4, 0, seed=1)
    for number in range(7):
        assert torch.equal(one[number].input_ids, other[number].input_ids)
        assert torch.equal(one[number].labels, other[number].labels)
    assert one.longest() == other.longest()


def test_notes_are_counted_with_the_first_of_each():
    tokenizer = chat_tokenizer("chatml")
    rows = [{"prompt": "a ", "completion": "b"}, {"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]
    found = encode_all(load_dataset(rows, format="completion"), tokenizer)
    assert found.notes == {encoding.RUN_TOGETHER: (2, "row 2")}


def test_progress_is_told(monkeypatch):
    monkeypatch.setattr(encoding, "CHUNK", 4)
    said = []
    encode_all(pairs(10), tiny_tokenizer(), progress=lambda done, of: said.append((done, of)))
    assert said == [(4, 10), (8, 10), (10, 10)]


@pytest.mark.parametrize(
    ("options", "said"),
    [({"max_length": 1}, "max_length 1"), ({"max_length": "9"}, "max_length '9'"), ({"overlong": "keep"}, "overlong")],
)
def test_options_that_make_no_sense(options, said):
    with pytest.raises(ValueError, match=said):
        encode_all(pairs(1), tiny_tokenizer(), **options)


@pytest.mark.parametrize("example", ["text", b"bytes", {"prompt": "a"}, {"prompt": "a", "target": 3}, 5, None])
def test_what_is_no_example_is_told(example):
    with pytest.raises(ValueError, match="an example needs a"):
        encode(example, tiny_tokenizer())
    with pytest.raises(ValueError, match="an example needs a"):
        encode_all([example], tiny_tokenizer())
