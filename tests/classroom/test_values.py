"""Values between the grader and its sandbox: what goes in comes out, and no bytes do more than raise ValueError."""

import json
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qlora_lab.classroom.inside.values import LARGEST, MOST_KEYS, MOST_TYPES, Foreign, TooMany, pack, unpack

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-LARGEST + 1, LARGEST - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(plain)
def test_plain_values_come_back_as_they_were(value):
    found = unpack(pack(value))
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 5), (1, 2, 3)])
def test_tensors_come_back_bit_for_bit(dtype, shape):
    tensor = (torch.rand(shape) * 100).to(dtype)
    (found,) = unpack(pack([tensor]))
    assert found.dtype == dtype and found.shape == tensor.shape and torch.equal(found, tensor)


def test_views_parameters_and_shared_memory_are_sent_as_plain_copies():
    base = torch.arange(6.0).view(2, 3)
    found = unpack(pack((base.T, base, base[1], torch.nn.Parameter(base))))
    assert [t.tolist() for t in found] == [base.T.tolist(), base.tolist(), base[1].tolist(), base.tolist()]
    assert all(type(t) is torch.Tensor and not t.requires_grad for t in found)


def test_infinities_and_not_a_number():
    found = unpack(pack([math.inf, -math.inf, math.nan, -0.0]))
    assert found[:2] == [math.inf, -math.inf] and math.isnan(found[2]) and math.copysign(1, found[3]) == -1


class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit",)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Evil(), "Evil"),
        (print, "builtin_function_or_method"),
        (10**100, "int"),
        (torch.eye(2).to_sparse(), "Tensor"),
        (torch.empty(2, device="meta"), "Tensor"),
        (1j, "complex"),
        (b"bytes", "bytes"),
    ],
)
def test_everything_else_arrives_as_the_name_of_its_type(value, name):
    (found,) = unpack(pack([value]))
    assert isinstance(found, Foreign) and type(found).__name__ == name


def test_a_list_within_itself_ends():
    value: list = []
    value.append(value)
    found = unpack(pack(value))
    for _ in range(49):
        (found,) = found
    assert isinstance(found[0], Foreign) or isinstance(found, list)


@given(st.binary(max_size=300))
def test_other_bytes_are_refused(data):
    with pytest.raises(ValueError, match="not a packed value"):
        unpack(data)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '["i", "' + "9" * 10_000 + '"]', '["t", "no such"]', '["f", "1"]', '["?", 1]', "{}", "[]"]
)
def test_structures_nobody_packed_are_refused(text):
    start = len(text).to_bytes(8, "little") + text.encode()
    tail = pack(None)[8 + len(json.dumps(["n"])) :]
    if text == '["?", 1]':
        assert isinstance(unpack(start + tail), Foreign)
        return
    with pytest.raises(ValueError, match="not a packed value"):
        unpack(start + tail)


def test_a_pickle_is_not_read():
    with pytest.raises(ValueError, match="not a packed value"):
        unpack(pickle.dumps(Evil()))


def test_equal_sets_are_equal_bytes():
    one, other = {8, 0, 16, "a", "b"}, set()
    for item in ("b", 16, "a", 0, 8):
        other.add(item)
    assert pack(one) == pack(other) == pack(unpack(pack(one)))


def test_foreign_objects_of_a_name_share_a_class():
    """A class for each would take 20 kB: an answer's list of 40,000 objects filled the grader's memory."""
    found = unpack(pack([object() for _ in range(1000)] + [Evil()]))
    assert len({type(item) for item in found}) == 2 and type(found[0]).__name__ == "object"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([0] * 10_000, "more than 10,000 values"),
        ([[[]] * 4000] * 2 + [{1: [2, 3]}] * 500, "more than 10,000 values"),
        ({n * (2**61 - 1) for n in range(MOST_KEYS + 1)}, "keys in a set"),  # whose hashes are all 0
        ({n: None for n in range(MOST_KEYS)}, "more than 10,000 values"),
        ([type(f"T{n}", (), {})() for n in range(MOST_TYPES + 1)], "types"),
    ],
)
def test_untrusted_values_are_counted_before_they_are_built(value, words):
    data = pack(value)
    with pytest.raises(TooMany, match=words):
        unpack(data, most=10_000)
    assert type(unpack(data)) is type(value)


def test_a_tensor_stands_for_one_value():
    """In a few bytes a large one may be named a hundred thousand times, and each is written out, or stacked."""
    tail = pack(torch.ones(3))[8 + len(json.dumps(["t", "t0"])) :]
    for count in (1, 2):
        text = json.dumps(["l", [["t", "t0"]] * count]).encode()
        data = len(text).to_bytes(8, "little") + text + tail
        if count == 1:
            assert unpack(data)[0].tolist() == [1, 1, 1]
        else:
            with pytest.raises(ValueError, match="not a packed value"):
                unpack(data)
    shared = torch.ones(3)
    assert [t.tolist() for t in unpack(pack([shared, shared]))] == [[1, 1, 1]] * 2


def test_untrusted_values_within_the_limits_come_back():
    value = [set(range(MOST_KEYS)), {n: None for n in range(100)}, "[" * 1000, torch.ones(3)]
    found = unpack(pack(value), most=10_000)
    assert found[:3] == value[:3] and found[3].tolist() == [1, 1, 1]
    assert len(unpack(pack([type(f"T{n}", (), {})() for n in range(MOST_TYPES)]), most=10_000)) == MOST_TYPES
