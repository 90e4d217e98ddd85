"""The arithmetic of blocks. Parity with bitsandbytes is in test_quantization; here is what holds without it."""

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from qlora_lab.quantization.blockwise import (
    dequantize_blocks,
    dequantize_scales,
    pack_codes,
    quantize_blocks,
    quantize_scales,
)
from qlora_lab.quantization.datatypes import DATATYPES, dynamic_map, get_datatype


def draw(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(seed=st.integers(0, 999), datatype=st.sampled_from(DATATYPES), blocks=st.integers(1, 9), half=st.integers(8, 40))
def test_property_quantizing_what_was_decoded_changes_no_code(seed, datatype, blocks, half):
    """Every level is its own nearest level, and a block keeps its largest magnitude, or its range."""
    kind = get_datatype(datatype)
    codes, scales, offsets = quantize_blocks(draw((blocks, 2 * half), seed), kind)
    decoded = dequantize_blocks(pack_codes(codes), scales, offsets, kind, torch.float32)
    again, _, _ = quantize_blocks(decoded, kind)
    assert torch.equal(again, codes)


@given(seed=st.integers(0, 999), length=st.integers(0, 700))
def test_property_scales_survive_eight_bits(seed, length):
    scales = draw((length,), seed).abs() + 0.5
    codes, absmax, offset = quantize_scales(scales)
    assert codes.dtype == torch.uint8 and len(absmax) == -(-length // 256)
    error = (dequantize_scales(codes, absmax, offset) - scales).abs()
    widest = max(b - a for a, b in itertools.pairwise(dynamic_map())) / 2
    assert (error <= absmax.repeat_interleave(256)[:length] * widest * 1.001 + 1e-6).all()
