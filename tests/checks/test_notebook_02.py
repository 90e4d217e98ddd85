"""The finished functions of notebook 02 are the package's arithmetic: what they give for tensors of any shape."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qlora_lab.checks.notebook_02 import (
    decode_scales,
    dequantize_packed,
    double_quantize,
    model_bytes,
    split_byte,
    unpack_nibbles,
)
from qlora_lab.quantization import dynamic_map, get_datatype, quantize

LEVELS = torch.tensor(dynamic_map())
NF4 = get_datatype("nf4").table()
SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 700))


def drawn(shape, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=25, deadline=None)
@given(shape=SHAPES, size=st.sampled_from((16, 32, 64, 128)))
def test_a_tensor_is_decoded_as_the_package_decodes_it(shape, size):
    q = quantize(drawn(shape), "nf4", size)
    mine = dequantize_packed(q.codes, q.scales, NF4, size, q.shape.numel())
    assert torch.equal(mine.view(shape), q.dequantize())


@settings(max_examples=25, deadline=None)
@given(shape=SHAPES, size=st.sampled_from((16, 64)))
def test_scales_in_eight_bits_decode_to_what_the_package_reads(shape, size):
    q = quantize(drawn(shape), "nf4", size, double_quant=True)
    stored = [q.stored[name] for name in ("scale_codes", "scale_scales", "scale_offset")]
    assert torch.equal(decode_scales(*stored, LEVELS), q.scales)


@settings(max_examples=25, deadline=None)
@given(shape=SHAPES)
def test_scales_go_into_eight_bits_as_the_package_puts_them(shape):
    """Up to the neighbouring level, where a division and a product with the reciprocal round to two sides of a
    threshold."""
    scales = quantize(drawn(shape), "nf4", 16).scales
    q = quantize(drawn(shape), "nf4", 16, double_quant=True)
    codes, absmax2, offset = double_quantize(scales, LEVELS)
    assert torch.equal(absmax2, q.stored["scale_scales"]) and torch.equal(offset, q.stored["scale_offset"])
    assert (codes.int() - q.stored["scale_codes"].int()).abs().max() <= 1


@pytest.mark.parametrize("n", [1, 2, 7, 64, 129])
def test_unpacking_gives_the_codes_that_were_packed(n):
    codes = torch.randint(0, 16, (n,), generator=torch.Generator().manual_seed(n), dtype=torch.uint8)
    padded = torch.cat((codes, codes.new_full((n % 2,), 7)))
    packed = (padded[::2] << 4) | padded[1::2]
    assert torch.equal(unpack_nibbles(packed, n), codes)
    assert [nibble for byte in packed.tolist() for nibble in split_byte(byte)] == padded.tolist()


@settings(max_examples=25, deadline=None)
@given(shapes=st.lists(SHAPES, max_size=4), size=st.sampled_from((16, 32, 64, 128)))
def test_bytes_are_those_that_the_package_stores(shapes, size):
    stored = sum(quantize(torch.zeros(shape), "nf4", size, double_quant=True).nbytes for shape in shapes)
    assert model_bytes(shapes, size) == stored
