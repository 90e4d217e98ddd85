"""Eight-bit state: bitsandbytes' maps, an error within half a step, and codes that survive decoding exactly."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qlora_lab.paging.eight_bit_state import STATE_BLOCK, decode_state, encode_state, unsigned_dynamic_map
from qlora_lab.quantization.datatypes import dynamic_map


def encoded(values, signed):
    codes = torch.full((len(values),), 77, dtype=torch.uint8)
    scales = torch.full((-(-len(values) // STATE_BLOCK),), float("nan"))
    encode_state(values, signed, codes, scales)
    return codes, scales


def numbers(seed, n, exponent, signed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n, generator=generator) * 10.0 ** torch.empty(n).uniform_(-8, 0, generator=generator)
    values = values * 10.0**exponent
    values[torch.rand(n, generator=generator) < 0.1] = 0
    return values if signed else values.abs()


def test_the_unsigned_map_is_that_of_bitsandbytes():
    functional = pytest.importorskip("bitsandbytes.functional")
    assert list(unsigned_dynamic_map()) == functional.create_dynamic_map(signed=False).tolist()


@given(st.integers(0, 10**6), st.integers(1, 1100), st.integers(-20, 10), st.booleans())
def test_encoding_is_nearest_and_decoding_then_encoding_changes_nothing(seed, n, exponent, signed):
    values = numbers(seed, n, exponent, signed)
    codes, scales = encoded(values, signed)
    decoded = decode_state(codes, scales, signed)
    levels = torch.tensor(dynamic_map() if signed else unsigned_dynamic_map())
    for start in range(0, n, STATE_BLOCK):
        block, got = values[start : start + STATE_BLOCK], decoded[start : start + STATE_BLOCK]
        largest = block.abs().max()
        assert got[block.abs().argmax()] == block[block.abs().argmax()]
        nearest = (block[:, None] - levels * scales[start // STATE_BLOCK]).abs().amin(1)
        if not signed:  # zero is kept for zero
            nearest = torch.where(block > 0, torch.maximum(nearest, levels[1] * largest - block), nearest)
        assert ((got - block).abs() <= nearest + 1e-6 * largest).all()
    again, scales_again = encoded(decoded, signed)
    assert torch.equal(decode_state(again, scales_again, signed), decoded)


@given(st.integers(0, 10**6), st.integers(1, 600), st.integers(-20, 10))
def test_a_second_moment_becomes_zero_only_from_zero(seed, n, exponent):
    values = numbers(seed, n, exponent, signed=False)
    decoded = decode_state(*encoded(values, signed=False), signed=False)
    assert torch.equal(decoded == 0, values == 0)
