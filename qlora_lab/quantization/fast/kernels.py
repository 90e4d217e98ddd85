"""The fast path: quantization and dequantization written so that torch.compile turns them into vector code.

`blockwise` holds the definitions, in the fewest words. Here the same functions are written a second time for speed,
with equal results bit for bit, and compiled: to C++ on a CPU, to Triton on an NVIDIA GPU. What makes them fast:

- A look-up in a table of 16 becomes a tree of fifteen `where`s over the code's four bits. Vector units have no cheap
  gather, but they blend sixteen lanes in one instruction.
- The table's numbers are constants in the code, not a tensor: the compiler cannot know that writing the output leaves a
  tensor as it was and would read it again for every sixteen weights.
- Two neighbouring weights are read and written as one integer of twice the width, which keeps memory contiguous.
- A block has only sixteen different 16-bit results. They are computed once per block, two to an integer, and then
  looked up; neither the product with the scale nor the rounding happens per weight.
- Large outputs are allocated in huge pages (Linux): touching fresh memory 4 KiB at a time costs more than filling it.

Eight lanes are too few for the tree and for integers of twice the width to pay. On a processor without AVX-512, codes
are therefore made a byte each and packed eight at a time; and to decode float32, both weights of a byte are looked up
in a table of 256 pairs, without any vectors.

`compilation` decides when they run, and has them proved.
"""

import functools

import torch

from qlora_lab.machine.huge_pages import empty
from qlora_lab.machine.processor import has_wide_vectors
from qlora_lab.quantization import blockwise as definition
from qlora_lab.quantization.blockwise import SCALE_BLOCK, dequantize_scales, scale_levels
from qlora_lab.quantization.datatypes import SCALES, DataType, cached_table
from qlora_lab.quantization.fast.compilation import Compiled, proved, run

_SAMPLE = 64  # blocks that a kernel is compared with its definition on
_PART = 2**22  # codes, made at a time: few enough to stay in a processor's cache until they are packed


def knows(datatype: DataType) -> bool:
    """Whether `quantize_blocks` is for this data type: its scales are the absmax of blocks, in 16 bits or more."""
    absmax = not (datatype.affine or datatype.signed) and datatype.extreme == 1
    return absmax and datatype.scales in ("float32", "float16") and datatype.negative_zero is None


def quantize_blocks(blocks: torch.Tensor, datatype: DataType) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Compiled `blockwise.quantize_blocks` for the data types it `knows`; None where no compiler works.

    Args:
        blocks: (number of blocks, block size), float32 or bfloat16, contiguous.

    Returns:
        codes uint8 (number of blocks, block size / 2) and scales (number of blocks,), as the data type stores them.
    """
    count, size = blocks.shape
    codes = empty((count, size // 2), torch.uint8, blocks.device)
    scales = torch.empty(count, dtype=torch.float32, device=blocks.device)
    if _wide(blocks.device) or size % 8:
        if blocks.storage_offset() % 2:  # a slice that starts inside a pair
            blocks = blocks.clone()
        pairs = blocks.view(torch.int64 if blocks.dtype == torch.float32 else torch.int32)
        done = run(_quantize_kernel, (datatype, blocks.dtype), pairs, codes, scales)
    else:
        rows = max(1, _PART // size)
        each = torch.empty((min(rows, count), size), dtype=torch.uint8, device=blocks.device)
        for start in range(0, count, rows):
            part = slice(start, start + rows)
            some = each[: len(blocks[part])]
            done = run(_codes_kernel, (datatype,), blocks[part], some, scales[part])
            done = done and run(_pack_kernel, (), some.view(torch.int64), codes[part].view(torch.int32))
            if not done:
                break
    if not done:
        return None

    scales = scales.to(SCALES[datatype.scales])

    def agrees() -> bool | None:
        expected, absmax, _ = definition.quantize_blocks(blocks[:_SAMPLE], datatype)
        if not absmax.isfinite().all():
            return None  # a NaN among the weights, which the caller will refuse
        return torch.equal(codes[:_SAMPLE], definition.pack_codes(expected)) and torch.equal(scales[:_SAMPLE], absmax)

    return (codes, scales) if proved("quantization", blocks, (datatype, blocks.dtype, size), agrees) else None


def dequantize_blocks(
    codes: torch.Tensor,
    scales: torch.Tensor,
    datatype: DataType,
    dtype: torch.dtype,
    second: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor | None:
    """Compiled `blockwise.dequantize_blocks` for data types without offsets; None where no compiler works.

    Args:
        codes: uint8 (number of blocks, block size / 2).
        scales: float32 (number of blocks,), or their 8-bit codes.
        dtype: float32, float16 or bfloat16.
        second: of double-quantized scales, the scales float32 (ceil(blocks / 256),) and the offset float32 ().

    Returns:
        (number of blocks, block size) of `dtype`.
    """
    count, half = codes.shape
    elsewhere = codes.device.type != "cpu" or dtype != torch.float32
    if second is not None and (elsewhere or len(second[0]) * SCALE_BLOCK < count):
        # Triton would round a product and a sum only once, and the vector code for 16 bits reads beyond the levels;
        # of scales that are too few the definition complains, while look-ups are not checked
        scales, second = dequantize_scales(scales, *second), None
    scales = (scales,) if second is None else (scales, *second, scale_levels(codes.device))
    wide = torch.int64 if dtype == torch.float32 else torch.int32
    pairs = empty((count, half), wide, codes.device)  # one element holds two neighbouring weights
    if dtype == torch.float32 and _wide(codes.device):
        done = run(_dequantize_32bit_kernel, (datatype,), pairs, codes, *scales)
    elif dtype == torch.float32:
        done = run(_look_up_32bit_kernel, (), pairs, codes, _levels_of_bytes(datatype, codes.device), *scales)
    else:
        products = torch.empty((8, count), dtype=torch.int32, device=codes.device).t()
        done = run(_products_kernel, (datatype, dtype), products, scales[0])
        done = done and run(_dequantize_16bit_kernel, (), codes, products, pairs)
    if not done:
        return None
    decoded = pairs.view(dtype)

    def agrees() -> bool:
        some = scales[0] if second is None else dequantize_scales(scales[0], *second)
        expected = definition.dequantize_blocks(codes[:_SAMPLE], some[:_SAMPLE], None, datatype, dtype)
        return torch.allclose(decoded[:_SAMPLE], expected, rtol=0, atol=0, equal_nan=True)

    return decoded if proved("dequantization", codes, (datatype, half, dtype, second is None), agrees) else None


def _wide(device: torch.device) -> bool:
    """Whether one instruction handles sixteen weights or more."""
    return device.type != "cpu" or has_wide_vectors()


def _constants(values, device: torch.device) -> list[torch.Tensor]:
    """float32 scalars. Bare numbers in `where` would take torch's default dtype, which the caller may have changed."""
    return [torch.full((), value, dtype=torch.float32, device=device) for value in values]


def _choose(bits: list[torch.Tensor], entries: list):
    """The entry whose index has these bits (lowest first): a tree of `where`s, seven for eight entries."""
    for bit in bits:
        entries = [torch.where(bit, high, low) for low, high in zip(entries[::2], entries[1::2], strict=True)]
    return entries[0]


def _bits(nibble: torch.Tensor, which: tuple[int, ...]) -> list[torch.Tensor]:
    return [(nibble & (1 << bit)) > 0 for bit in which]


def _decoded(scales, second) -> torch.Tensor:
    """Scales as they are, or from 8-bit codes and (scales of scales, offset, levels); see `blockwise`. float32 (b,)"""
    if not second:
        return scales
    scale_scales, offset, levels = second
    block = torch.arange(len(scales), device=scales.device) // SCALE_BLOCK
    return levels[scales.int()] * scale_scales[block] + offset


@functools.cache
def _dequantize_32bit_kernel(context: tuple, datatype: DataType):
    levels = datatype.levels

    def kernel(pairs, codes, scales, *second):  # uint8 (b, s/2), float32 or uint8 (b,) -> int64 (b, s/2)
        scale = _decoded(scales, second)[:, None]
        byte, table = codes.to(torch.int32), _constants(levels, codes.device)
        first = (_choose(_bits(byte >> 4, (0, 1, 2, 3)), table) * scale).view(torch.int32).to(torch.int64)
        second = (_choose(_bits(byte, (0, 1, 2, 3)), table) * scale).view(torch.int32).to(torch.int64)
        pairs.copy_((first & 0xFFFFFFFF) | (second << 32))

    return Compiled(kernel)


@functools.cache
def _look_up_32bit_kernel(context: tuple):
    def kernel(pairs, codes, levels, scales, *second):  # and float32 (256, 2): the levels of a byte's two codes
        scale, byte = _decoded(scales, second)[:, None], codes.to(torch.int64)
        first, second = ((levels[byte, i] * scale).view(torch.int32).to(torch.int64) for i in (0, 1))
        pairs.copy_((first & 0xFFFFFFFF) | (second << 32))

    return Compiled(kernel, vectors=False)


@cached_table
def _levels_of_bytes(datatype: DataType, device: torch.device) -> torch.Tensor:
    levels = torch.tensor(datatype.levels, dtype=torch.float32, device=device)
    byte = torch.arange(256, device=device)
    return torch.stack((levels[byte >> 4], levels[byte & 15]), dim=1)


@functools.cache
def _products_kernel(context: tuple, datatype: DataType, dtype: torch.dtype):
    levels = datatype.levels

    def kernel(products, scales):  # float32 (b,) -> int32 (b, 8): levels 2i and 2i+1 times the scale
        def bits(level):
            product = scales * level
            if dtype == torch.float16:
                return product.to(dtype).view(torch.int16).to(torch.int32)
            # bfloat16 is the upper half of float32: round to nearest even there, in integers, which vectorizes
            whole = product.view(torch.int32)
            return (whole + 0x7FFF + ((whole >> 16) & 1)) >> 16

        for i in range(8):
            products[:, i].copy_((bits(levels[2 * i]) & 0xFFFF) | (bits(levels[2 * i + 1]) << 16))

    return Compiled(kernel)


@functools.cache
def _dequantize_16bit_kernel(context: tuple):
    def kernel(codes, products, pairs):  # uint8 (b, s/2), int32 (b, 8) -> int32 (b, s/2)
        byte = codes.to(torch.int32)
        entries = [products[:, i, None] for i in range(8)]

        def look_up(nibble):  # the pair by the upper three bits, then its half by the lowest
            return _choose(_bits(nibble, (1, 2, 3)), entries) >> ((nibble & 1) << 4)

        pairs.copy_((look_up(byte >> 4) & 0xFFFF) | (look_up(byte) << 16))

    return Compiled(kernel)


def _nearest(datatype: DataType):
    """A function of weights divided by their scale, float32: the code of the nearest level, as float32."""
    thresholds, order = datatype.thresholds, list(datatype.order)  # here: what the function does will be compiled
    order += [order[-1]] * (16 - len(order))  # fp4 has fifteen distinct levels

    def code(x):  # the number of thresholds below x, counted in floats: their lanes are as wide as x's
        zero, one = _constants((0.0, 1.0), x.device)
        rank = functools.reduce(lambda total, t: total + torch.where(x > t, one, zero), thresholds, zero)
        if order == list(range(16)):
            return rank
        return _choose(_bits(rank.to(torch.int32), (0, 1, 2, 3)), _constants(order, x.device))

    return code


def _inverse(absmax: torch.Tensor) -> torch.Tensor:
    # by way of float64, which rounds once more but to the same number: Triton's float32 division is approximate
    return (1.0 / absmax.clamp(min=1e-38).double()).float()[:, None]


@functools.cache
def _quantize_kernel(context: tuple, datatype: DataType, dtype: torch.dtype):
    code = _nearest(datatype)

    def halves(pairs):  # two neighbouring weights from one integer, as float32
        if dtype == torch.float32:
            return pairs.to(torch.int32).view(torch.float32), (pairs >> 32).to(torch.int32).view(torch.float32)
        return (pairs << 16).view(torch.float32), (pairs & -65536).view(torch.float32)  # bfloat16: the upper half

    def kernel(pairs, codes, scales):  # int64 or int32 (b, s/2) -> uint8 (b, s/2), float32 (b,)
        first, second = halves(pairs)
        absmax = torch.maximum(first.abs(), second.abs()).amax(1)
        inverse = _inverse(absmax)
        scales.copy_(absmax)
        codes.copy_((code(first * inverse) * 16 + code(second * inverse)).to(torch.uint8))

    return Compiled(kernel)


@functools.cache
def _codes_kernel(context: tuple, datatype: DataType):
    code = _nearest(datatype)

    def kernel(blocks, codes, scales):  # float32 or bfloat16 (b, s) -> uint8 (b, s), float32 (b,)
        blocks = blocks.float()
        absmax = blocks.abs().amax(1)
        scales.copy_(absmax)
        codes.copy_(code(blocks * _inverse(absmax)).to(torch.uint8))

    return Compiled(kernel)


@functools.cache
def _pack_kernel(context: tuple):
    def kernel(eight, packed):  # int64 (b, s/8): a code in every byte -> int32 (b, s/8): in every half byte
        pairs = ((eight << 4) | (eight >> 8)) & 0x00FF00FF00FF00FF  # the first of a pair in the high nibble
        fours = (pairs | (pairs >> 8)) & 0x0000FFFF0000FFFF
        packed.copy_((fours | (fours >> 16)).to(torch.int32))

    return Compiled(kernel)
