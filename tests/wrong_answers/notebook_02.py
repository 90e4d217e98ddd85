"""Wrong answers to the exercises of notebook 02."""

import math
from itertools import pairwise

import torch

from qlora_lab.checks.notebook_01 import block_absmax, nearest_code
from qlora_lab.checks.notebook_02 import double_quantized_bits, unpack_nibbles
from wrong_answers import wrong


@wrong("scale-from-example", says="divided by the code itself")
def by_the_code(weight, code, levels):
    return weight / code


@wrong("scale-from-example", says="one over the scale")
def upside_down(weight, code, levels):
    return levels[code] / weight


@wrong("scale-from-example", says="decoded once more")
def multiplied(weight, code, levels):
    return levels[code] * weight


@wrong("scale-from-example", says="A scale here is positive")
def magnitude_of_the_level(weight, code, levels):
    return weight / abs(levels[code])


@wrong("weights-of-a-code", says="the border lies halfway")
def neighbours(code, absmax, levels):
    padded = [levels[0], *levels, levels[-1]]
    return padded[code] * absmax, padded[code + 2] * absmax


@wrong("weights-of-a-code", says="before scaling")
def unscaled_range(code, absmax, levels):
    middles = [(a + b) / 2 for a, b in pairwise(levels)]
    borders = [-1.0, *middles, 1.0]
    return borders[code], borders[code + 1]


@wrong("weights-of-a-code", says="beyond its absmax")
def open_ends(code, absmax, levels):
    borders = [-math.inf, *((a + b) / 2 for a, b in pairwise(levels)), math.inf]
    return borders[code] * absmax, borders[code + 1] * absmax


@wrong("weights-of-a-code", says="not equally far apart")
def equal_parts(code, absmax, levels):
    step = 2 * absmax / 16
    return -absmax + code * step, -absmax + (code + 1) * step


@wrong("split-byte", says="the low one first")
def low_first(byte):
    return byte & 15, byte >> 4


@wrong("split-byte", says="still stands in the upper four bits")
def masked(byte):
    return byte & 0xF0, byte & 0x0F


@wrong("split-byte", says="decimal digits")
def digits(byte):
    return divmod(byte, 10)


@wrong("split-byte", says="has a fraction")
def divided(byte):
    return byte / 16, byte % 16


@wrong("unpack-nibbles", says="are swapped")
def low_nibbles_first(packed, n):
    return torch.tensor([nibble for byte in packed.tolist() for nibble in (byte & 15, byte >> 4)][:n]).to(torch.uint8)


@wrong("unpack-nibbles", says="have to alternate")
def one_half_then_the_other(packed, n):
    return torch.stack((packed >> 4, packed & 15)).flatten()[:n]


@wrong("unpack-nibbles", says="one code and a filler")
def with_the_filler(packed, n):
    out = packed.new_empty(2 * len(packed))
    out[::2], out[1::2] = packed >> 4, packed & 15
    return out


@wrong("unpack-nibbles", says="move them down")
def not_moved_down(packed, n):
    return torch.stack((packed & 0xF0, packed & 0x0F), 1).flatten()[:n]


@wrong("unpack-nibbles", says="in a wider dtype")
def as_int64(packed, n):
    return torch.tensor([nibble for byte in packed.tolist() for nibble in divmod(byte, 16)])[:n]


@wrong("unpack-nibbles", says="All wrong ones come from low nibbles.")
def low_nibbles_lose_a_bit(packed, n):
    return torch.stack((packed >> 4, packed & 14), 1).flatten()[:n]


def unpacked(packed):
    return torch.stack((packed >> 4, packed & 15), 1).flatten().long()


@wrong("dequantize-packed", says="nibbles swapped")
def low_nibble_first(packed, scales, table, block_size, n):
    codes = torch.stack((packed & 15, packed >> 4), 1).flatten().long()[:n]
    return table[codes] * scales[torch.arange(n) // block_size]


@wrong("dequantize-packed", says="have to alternate")
def halves(packed, scales, table, block_size, n):
    codes = torch.cat((packed >> 4, packed & 15)).long()[:n]
    return table[codes] * scales[torch.arange(n) // block_size]


@wrong("dequantize-packed", says="dealt out in turn")
def scales_in_turn(packed, scales, table, block_size, n):
    return table[unpacked(packed)[:n]] * scales[torch.arange(n) % len(scales)]


@wrong("dequantize-packed", says="two to a byte")
def blocks_of_bytes(packed, scales, table, block_size, n):
    per_byte = scales[torch.arange(len(packed)) // block_size]
    return (table[unpacked(packed)] * per_byte.repeat_interleave(2))[:n]


@wrong("dequantize-packed", says="as if they were numbers")
def without_table(packed, scales, table, block_size, n):
    return unpacked(packed)[:n].float() * scales[torch.arange(n) // block_size]


@wrong("least-error-scale", says="mean of the quotients")
def mean_of_quotients(w, q):
    found = []
    for weights, levels in zip(w, q, strict=True):
        used = levels != 0
        found.append((weights[used] / levels[used]).mean() if used.any() else torch.tensor(0.0))
    return torch.stack(found)


@wrong("least-error-scale", says="below the line")
def weights_below(w, q):
    return ((w * q).sum(1) / w.square().sum(1)).nan_to_num()


@wrong("least-error-scale", says="as long as the weights")
def same_norm(w, q):
    return (w.norm(dim=1) / q.norm(dim=1)).nan_to_num()


@wrong("least-error-scale", says="0 divided by 0, which is NaN")
def zeros_forgotten(w, q):
    return (w * q).sum(1) / (q * q).sum(1)


@wrong("least-error-scale", says="absmax")
def absmax(w, q):
    return w.abs().max(1).values


def blocks_of_256(values):
    return torch.nn.functional.pad(values, (0, -len(values) % 256)).view(-1, 256)


def nearest(x, levels):
    return (x[:, None] - levels).abs().argmin(1).to(torch.uint8)


def coded(centred, levels):
    absmax = blocks_of_256(centred).abs().amax(1)
    each = absmax.repeat_interleave(256)[: len(centred)]
    return nearest((centred / each.clamp(min=1e-38)), levels), absmax


@wrong("double-quantize", says="was not subtracted first")
def mean_not_subtracted(scales, levels):
    return *coded(scales, levels), scales.mean()


@wrong("double-quantize", says="There is no offset")
def no_offset(scales, levels):
    return *coded(scales, levels), torch.tensor(0.0)


@wrong("double-quantize", says="each 256 of them have their own")
def one_absmax(scales, levels):
    centred = scales - scales.mean()
    absmax = centred.abs().max()
    return nearest(centred / absmax.clamp(min=1e-38), levels), absmax[None], scales.mean()


@wrong("double-quantize", says="one number for the whole tensor")
def a_mean_for_each(scales, levels):
    parts = [(*coded(part - part.mean(), levels), part.mean()[None]) for part in scales.split(256)]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


@wrong("double-quantize", says="equal steps")
def linear(scales, levels):
    centred = scales - scales.mean()
    _, absmax = coded(centred, levels)
    x = centred / absmax.repeat_interleave(256)[: len(scales)].clamp(min=1e-38)
    return ((x + 1) * 127.5).round().to(torch.uint8), absmax, scales.mean()


def second_level(absmax2, count):
    return absmax2[torch.arange(count) // 256]


@wrong("decode-scales", says="offset is missing")
def forgot_the_offset(codes, absmax2, offset, levels):
    return levels[codes.long()] * second_level(absmax2, len(codes))


@wrong("decode-scales", says="added last")
def added_first(codes, absmax2, offset, levels):
    return (offset + levels[codes.long()]) * second_level(absmax2, len(codes))


@wrong("decode-scales", says="dealt out in turn")
def groups_in_turn(codes, absmax2, offset, levels):
    return levels[codes.long()] * absmax2[torch.arange(len(codes)) % len(absmax2)] + offset


@wrong("decode-scales", says="taken as equal steps")
def equal_steps(codes, absmax2, offset, levels):
    return (codes.float() - 128) / 127 * second_level(absmax2, len(codes)) + offset


@wrong("decode-scales", says="keep the scales from being negative")
def never_negative(codes, absmax2, offset, levels):
    return torch.relu(levels[codes.long()] * second_level(absmax2, len(codes)) + offset)


@wrong("decode-scales", says="One second-level scale serves all")
def the_first_group_for_all(codes, absmax2, offset, levels):
    return levels[codes.long()] * absmax2[0] + offset


def with_places(scales):
    return scales, torch.arange(len(scales))[scales < 0]


@wrong("flipped-blocks", says="offset is missing")
def without_offset(codes, absmax, offset, levels):
    return with_places(levels[codes.long()] * absmax[torch.arange(len(codes)) // 256])


@wrong("flipped-blocks", says="added last")
def offset_first(codes, absmax, offset, levels):
    return with_places((levels[codes.long()] + offset) * absmax[torch.arange(len(codes)) // 256])


@wrong("flipped-blocks", says="dealt out in turn")
def in_turn(codes, absmax, offset, levels):
    return with_places(levels[codes.long()] * absmax[torch.arange(len(codes)) % len(absmax)] + offset)


@wrong("flipped-blocks", says="a mask came back")
def mask(codes, absmax, offset, levels):
    scales = levels[codes.long()] * absmax[torch.arange(len(codes)) // 256] + offset
    return scales, scales < 0


@wrong("flipped-blocks", says="whose *level* is negative")
def negative_levels(codes, absmax, offset, levels):
    level = levels[codes.long()]
    return level * absmax[torch.arange(len(codes)) // 256] + offset, torch.where(level < 0)[0]


@wrong("scale-from-example", says="instead of")
def two_digits(weight, code, levels):
    return round(weight / levels[code], 2)


@wrong("least-error-scale", says="kept at 1 or above")
def clamped_at_one(w, q):
    return (w * q).sum(1) / (q * q).sum(1).clamp(min=1.0)


@wrong("dequantize-packed", says="the first is block 1 (elements ")
def first_scale_for_the_rest(packed, scales, table, block_size, n):
    decoded = table[unpacked(packed)[:n]] * scales[torch.arange(n) // block_size]
    decoded[block_size:] = table[unpacked(packed)[block_size:n]] * scales[0]
    return decoded


@wrong("dequantize-packed", says="All wrong ones come from low nibbles.")
def three_bits_of_the_low_nibble(packed, scales, table, block_size, n):
    codes = torch.stack((packed >> 4, packed & 7), 1).flatten().long()[:n]
    return table[codes] * scales[torch.arange(n) // block_size]


@wrong("dequantize-packed", says="Wrong are exactly the elements of code 7.")
def zero_is_not_zero(packed, scales, table, block_size, n):
    table = torch.where(table == 0, 0.04, table)
    return table[unpacked(packed)[:n]] * scales[torch.arange(n) // block_size]


@wrong("least-error-scale", says="All of it is")
def mean_above_the_line(w, q):
    return (w * q).mean(1) / (q * q).sum(1).clamp(min=1e-9)


@wrong("least-error-scale", says="gets the scale 0")
def one_for_a_block_of_zeros(w, q):
    below = (q * q).sum(1)
    return torch.where(below == 0, 1.0, (w * q).sum(1) / below)


@wrong("flipped-blocks", says="exactly zero")
def zero_is_negative(codes, absmax, offset, levels):
    scales = levels[codes.long()] * absmax.repeat_interleave(256)[: len(codes)] + offset
    return scales, (scales <= 0).nonzero().flatten()


@wrong("flipped-blocks", says="its dtype is torch.int32")
def narrow_places(codes, absmax, offset, levels):
    scales = levels[codes.long()] * absmax.repeat_interleave(256)[: len(codes)] + offset
    return scales, (scales < 0).nonzero().flatten().int()


@wrong("flipped-blocks", says="block 0 is below zero and missing")
def counted_from_one(codes, absmax, offset, levels):
    scales = levels[codes.long()] * absmax.repeat_interleave(256)[: len(codes)] + offset
    return scales, (scales < 0).nonzero().flatten() + 1


@wrong("double-quantize", says="The offset is the mean of the scales")
def median_for_mean(scales, levels):
    offset = scales.median()
    groups = (scales - offset).split(256)
    absmax = torch.stack([group.abs().max() for group in groups])
    x = torch.cat([group / group.abs().max().clamp(min=1e-38) for group in groups])
    return torch.bucketize(x, (levels[1:] + levels[:-1]) / 2).to(torch.uint8), absmax, offset


@wrong("double-quantize", says="value 2 of 3 differs: 1 of 1 groups differ, the first is group 0 (elements from 0)")
def absmax_doubled(scales, levels):
    offset = scales.mean()
    groups = (scales - offset).split(256)
    absmax = torch.stack([group.abs().max() for group in groups])
    x = torch.cat([group / group.abs().max().clamp(min=1e-38) for group in groups])
    return torch.bucketize(x, (levels[1:] + levels[:-1]) / 2).to(torch.uint8), 2 * absmax, offset


@wrong("double-quantized-bits", says="not 32")
def single(block_size, scale_block):
    return 4 + 32 / block_size


@wrong("double-quantized-bits", says="scales of the scales")
def first_level_only(block_size, scale_block):
    return 4 + 8 / block_size


@wrong("double-quantized-bits", says="divide by both")
def second_level_for_weights(block_size, scale_block):
    return 4 + 8 / block_size + 32 / scale_block


@wrong("double-quantized-bits", says="price of the scales alone")
def scales_alone(block_size, scale_block):
    return (8 + 32 / scale_block) / block_size


def parts(n, size):
    blocks = -(-n // size)
    return -(-n // 2), blocks, 4 * -(-blocks // 256)


@wrong("model-bytes", says="for all tensors together")
def all_together(shapes, block_size):
    return sum(parts(sum(math.prod(shape) for shape in shapes), block_size)) + 4


@wrong("model-bytes", says="The offset")
def offset_forgotten(shapes, block_size):
    return sum(sum(parts(math.prod(shape), block_size)) for shape in shapes)


@wrong("model-bytes", says="second-level scales")
def second_level_forgotten(shapes, block_size):
    return sum(sum(parts(math.prod(shape), block_size)[:2]) + 4 for shape in shapes)


@wrong("model-bytes", says="the formula's bits per weight")
def rounded_at_the_end(shapes, block_size):
    bits = 4 + 8 / block_size + 32 / (256 * block_size)
    return int(bits / 8 * sum(math.prod(shape) for shape in shapes))


def rounded_up(n, size=256):
    return -(-n // size)


def stored(shapes, block_size, blocks=rounded_up, groups=rounded_up, codes=lambda n: (n + 1) // 2):
    total = 0
    for rows, columns in shapes:
        count = blocks(rows * columns, block_size)
        total += codes(rows * columns) + count + 4 * groups(count) + 4
    return total


@wrong("model-bytes", says="second-level scales are rounded down")
def groups_rounded_down(shapes, block_size):
    return stored(shapes, block_size, groups=lambda blocks: blocks // 256)


@wrong("model-bytes", says="one too many where m divides n")
def a_group_more(shapes, block_size):
    return stored(shapes, block_size, groups=lambda blocks: blocks // 256 + 1)


@wrong("model-bytes", says="not one for each tensor")
def one_group(shapes, block_size):
    return stored(shapes, block_size, groups=lambda blocks: 1)


@wrong("model-bytes", says="round the number of blocks up")
def whole_blocks(shapes, block_size):
    return stored(shapes, block_size, blocks=lambda n, size: n // size)


@wrong("model-bytes", says="round the bytes of the codes up")
def whole_bytes_of_codes(shapes, block_size):
    return stored(shapes, block_size, codes=lambda n: n // 2)


@wrong("model-bytes", says="instead of")
def blocks_of_rows(shapes, block_size):
    return sum(rows * stored([(1, columns)], block_size) for rows, columns in shapes)


@wrong("scale-from-example", says="as if levels were equally spaced")
def sevenths(weight, code, levels):
    return weight * 7 / code


@wrong("weights-of-a-code", says="Code 15 has no level above it")
def beyond_the_last(code, absmax, levels):
    lo = levels[0] if code == 0 else (levels[code - 1] + levels[code]) / 2
    hi = (levels[code] + levels[code + 1]) / 2
    return lo * absmax, hi * absmax


@wrong("weights-of-a-code", says="the borders before scaling")
def only_the_ends_scaled(code, absmax, levels):
    lo = -absmax if code == 0 else (levels[code - 1] + levels[code]) / 2
    hi = absmax if code == 15 else (levels[code] + levels[code + 1]) / 2
    return lo, hi


@wrong("split-byte", says="moves the whole byte up")
def shifted_up(byte):
    return byte >> 4, byte << 4


@wrong("unpack-nibbles", says="the last code is lost")
def half_of_n_bytes(packed, n):
    p = packed[: n // 2]
    return torch.stack([p >> 4, p & 15], 1).flatten()


@wrong("unpack-nibbles", says="one low nibble more than codes")
def filler_has_no_place(packed, n):
    out = torch.zeros(n, dtype=torch.uint8)
    out[::2] = packed >> 4
    out[1::2] = packed & 15
    return out


@wrong("dequantize-packed", says="taken for a mask")
def codes_as_a_mask(packed, scales, table, block_size, n):
    codes = unpack_nibbles(packed, n)
    return table[codes] * scales.repeat_interleave(block_size)[:n]


@wrong("dequantize-packed", says="want whole blocks only")
def rows_of_whole_blocks_decoded(packed, scales, table, block_size, n):
    codes = unpack_nibbles(packed, n)
    values = table[codes.long()].reshape(-1, block_size)
    return (values * scales[:, None]).flatten()


@wrong("dequantize-packed", says="cut both to n")
def neither_is_cut(packed, scales, table, block_size, n):
    codes = torch.stack([packed >> 4, packed & 15], 1).flatten()
    return table[codes.long()] * scales.repeat_interleave(block_size)


@wrong("least-error-scale", says="mean of the quotients")
def quotients_of_zeros(w, q):
    return (w / q).mean(dim=1)


@wrong("least-error-scale", says="one scale for all blocks together")
def all_in_one(w, q):
    num = (w * q).sum()
    den = (q * q).sum()
    return num / den


@wrong("double-quantize", says="and they count in it")
def fillers_in_the_mean(scales, levels):
    n = len(scales)
    pad = (-n) % 256
    padded = torch.cat([scales, torch.zeros(pad)]).reshape(-1, 256)
    offset = padded.mean()
    centred = padded - offset
    absmax2 = centred.abs().max(dim=1).values
    x = centred / absmax2[:, None]
    codes = nearest_code(x.flatten()[:n], levels)
    return codes, absmax2, offset


@wrong("double-quantize", says="you divide 0 by 0")
def zero_over_zero_scales(scales, levels):
    offset = scales.mean()
    centred = scales - offset
    absmax2 = block_absmax(centred, 256)
    x = centred / absmax2.repeat_interleave(256)[: len(scales)]
    return nearest_code(x, levels), absmax2, offset


@wrong("double-quantize", says="One absmax for all scales")
def one_absmax_for_all(scales, levels):
    offset = scales.mean()
    c = scales - offset
    a = c.abs().max()
    return nearest_code(c / a, levels), a, offset


@wrong("double-quantize", says="want whole groups only")
def whole_groups_only(scales, levels):
    offset = scales.mean()
    c = (scales - offset).reshape(-1, 256)
    a = c.abs().max(1).values
    x = c / a[:, None]
    return nearest_code(x.flatten(), levels), a, offset


@wrong("decode-scales", says="repeat each of them")
def groups_not_repeated(codes, absmax2, offset, levels):
    return levels[codes.long()] * absmax2 + offset


@wrong("double-quantized-bits", says="bytes of scales added to bits")
def bytes_of_scales(block_size, scale_block):
    return 4 + (8 + 32 / scale_block) / block_size / 8


@wrong("model-bytes", says="the formula's bits per weight times the weights")
def formula_of_bits(shapes, block_size):
    n = sum(r * c for r, c in shapes)
    return n * double_quantized_bits(block_size, 256) / 8


@wrong("model-bytes", says="one too many where m divides n")
def a_byte_more(shapes, block_size):
    total = 0
    for r, c in shapes:
        n = r * c
        b = -(-n // block_size)
        total += n // 2 + 1 + b + 4 * -(-b // 256) + 4
    return total


@wrong("model-bytes", says="An odd code takes a byte to itself")
def half_a_byte(shapes, block_size):
    total = 0
    for r, c in shapes:
        n = r * c
        b = math.ceil(n / block_size)
        total += 4 * n + 8 * b + 32 * math.ceil(b / 256) + 32
    return total / 8
