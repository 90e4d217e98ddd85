"""The arithmetic of blocks. Parity with bitsandbytes is in test_quantization; here is what holds without it."""

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from qlora_lab.quantization.blockwise import (
    decode_scales,
    dequantize_blocks,
    dequantize_scales,
    pack_codes,
    quantize_blocks,
    quantize_scales,
)
from qlora_lab.quantization.datatypes import DATATYPES, SINCE_NF4, dynamic_map, get_datatype


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


@given(
    seed=st.integers(0, 999),
    datatype=st.sampled_from([name for name in SINCE_NF4 if get_datatype(name).scales == "float32"]),
)
def test_property_no_other_level_is_nearer(seed, datatype):
    """The slow definition, in float64: all sixteen, for the scale there is."""
    kind = get_datatype(datatype)
    blocks = draw((6, 64), seed)
    codes, scales, _ = quantize_blocks(blocks, kind)
    extreme = torch.stack([max(block, key=abs) for block in blocks])
    if not kind.signed:
        extreme = extreme.abs()
    assert torch.equal(scales, extreme / kind.extreme)
    errors = (kind.table().double() * scales.double()[:, None, None] - blocks.double()[..., None]).abs()
    chosen = errors.gather(2, codes.long()[..., None])[..., 0]
    assert (chosen <= errors.amin(2) + 1e-6 * scales.abs()[:, None]).all()


def test_scales_of_eight_bits_are_the_numbers_of_their_formats():
    codes = torch.arange(256, dtype=torch.uint8)
    powers = decode_scales(codes, get_datatype("mxfp4"))
    assert powers[:255].tolist() == [2.0 ** (code - 127) for code in range(255)] and powers[255].isnan()
    floats = decode_scales(codes[:128], get_datatype("nvfp4"))
    expected = [(1 + c % 8 / 8) * 2.0 ** (c // 8 - 7) if c >= 8 else c / 8 * 2.0**-6 for c in range(127)]
    assert floats[:127].tolist() == expected and floats[127].isnan()


@given(seed=st.integers(0, 999), length=st.integers(0, 700))
def test_property_scales_survive_eight_bits(seed, length):
    scales = draw((length,), seed).abs() + 0.5
    codes, absmax, offset = quantize_scales(scales)
    assert codes.dtype == torch.uint8 and len(absmax) == -(-length // 256)
    error = (dequantize_scales(codes, absmax, offset) - scales).abs()
    widest = max(b - a for a, b in itertools.pairwise(dynamic_map())) / 2
    assert (error <= absmax.repeat_interleave(256)[:length] * widest * 1.001 + 1e-6).all()
