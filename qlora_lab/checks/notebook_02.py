"""Exercises of notebook 02: what a scale does, how weights are decoded, scales in 8 bits, and what all of it takes."""

import math

import torch

from qlora_lab.checks.differences import a_value_each, each, in_blocks, with_arguments
from qlora_lab.checks.exercise import Exercise, Misconception, draw_integers, edits
from qlora_lab.quantization.datatypes import dynamic_map, get_datatype

NF4, INT4 = get_datatype("nf4").levels, get_datatype("int4").levels
SCALE_LEVELS = torch.tensor(dynamic_map(), dtype=torch.float32)
THRESHOLDS = (SCALE_LEVELS[1:] + SCALE_LEVELS[:-1]) / 2


def scale_from_example(weight: float, code: int, levels: list) -> float:
    return weight / levels[code]


def _borders_of_equal_steps(level: float, half: float, absmax: float) -> tuple[float, float]:
    return max(level - half, -1) * absmax, min(level + half, 1) * absmax


def _borders_round_the_corner(code: int, absmax: float, levels: list) -> tuple[float, float]:
    low, high = levels[code - 1], levels[(code + 1) % len(levels)]
    return (low + levels[code]) / 2 * absmax, (levels[code] + high) / 2 * absmax


def _example(generator: torch.Generator, number: int):
    levels = list(INT4 if number % 2 else NF4)
    code = [code for code in range(1, 15) if levels[code]][draw_integers(generator, 0, 13, 1)[0]]
    return levels[code] * (0.05 + 4 * torch.rand((), generator=generator).item()), code, levels


def weights_of_a_code(code: int, absmax: float, levels: list) -> tuple[float, float]:
    low = (levels[code - 1] + levels[code]) / 2 if code else levels[0]
    high = (levels[code] + levels[code + 1]) / 2 if code < len(levels) - 1 else levels[-1]
    return low * absmax, high * absmax


def _code(generator: torch.Generator, number: int):
    code = (0, 15, 7, 8, 1, 14)[number] if number < 6 else draw_integers(generator, 0, 16, 1)[0]
    return code, 0.1 + draw_integers(generator, 0, 300, 1)[0] / 100, list(NF4)


def split_byte(byte: int) -> tuple[int, int]:
    return byte // 16, byte % 16


def unpack_nibbles(packed, n: int):
    pairs = torch.stack((packed // 16, packed % 16), 1)
    return pairs.view(-1)[:n]


def _bytes_of(generator: torch.Generator, number: int):
    """From one byte to some dozens; every second number of codes is odd."""
    n = (12, 7, 1, 33, 2, 64, 31, 20)[number]
    return torch.randint(0, 256, (-(-n // 2),), generator=generator, dtype=torch.uint8), n


def dequantize_packed(packed, scales, table, block_size: int, n: int):
    codes = _codes(packed)[:n]
    return table[codes.int()] * scales.repeat_interleave(block_size)[: len(codes)]


def _in_rows(packed, scales, table, block_size: int, n: int):
    rows = table[_codes(packed)[:n].int()].view(-1, block_size)
    return (rows * scales[:, None]).view(-1)


def _not_cut(packed, scales, table, block_size: int, n: int):
    return table[_codes(packed).int()] * scales.repeat_interleave(block_size)


def _codes(packed: torch.Tensor) -> torch.Tensor:
    return torch.stack((packed >> 4, packed & 15), 1).view(-1)


def _packed(generator: torch.Generator, number: int):
    size = (16, 64, 32, 16)[number % 4]
    n = (2 * size, 3 * size + 1, 7, 5 * size - 3, size, 4 * size + 9, 2 * size - 1, 6 * size)[number]
    packed = torch.randint(0, 256, (-(-n // 2),), generator=generator, dtype=torch.uint8)
    return packed, torch.randn(-(-n // size), generator=generator).abs() + 0.1, torch.tensor(NF4), size, n


def least_error_scale(w, q):
    above, below = (w * q).sum(1), (q * q).sum(1)
    return above / torch.where(below == 0, 1.0, below)


def _blocks(generator: torch.Generator, number: int):
    """Weights and the levels of their codes; from the second case on, one block is all zeros, and another was coded
    with a scale so large that its levels are all near zero."""
    count, size = 2 + number, (16, 64, 32)[number % 3]
    w = torch.randn(count, size, generator=generator) * 10.0 ** (number % 3 - 1)
    levels = torch.tensor(NF4)
    q = levels[(w[..., None] / w.abs().amax(1)[:, None, None] - levels).abs().argmin(-1)]
    if number:
        w[1] = q[1] = 0.0
        q[2] = levels[(w[2, :, None] / (6 * w[2].abs().max()) - levels).abs().argmin(-1)]
    return w, q


def double_quantize(scales, levels):
    offset = scales.mean()
    padded = torch.nn.functional.pad(scales - offset, (0, -len(scales) % 256))
    blocks = padded.view(-1, 256)
    absmax = blocks.abs().amax(1)
    x = blocks / absmax.clamp(min=1e-38)[:, None]
    codes = torch.bucketize(x, (levels[1:] + levels[:-1]) / 2)
    return codes.view(-1)[: len(scales)].to(torch.uint8), absmax, offset


def _with_own_means(scales, levels):
    codes, absmax, means = zip(*(double_quantize(block, levels) for block in scales.split(256)), strict=True)
    return torch.cat(codes), torch.cat(absmax), torch.stack(means)


def _with_one_absmax(scales, levels):
    x = (scales - scales.mean()) / (scales - scales.mean()).abs().max()
    return torch.bucketize(x, THRESHOLDS).to(torch.uint8), (scales - scales.mean()).abs().max(), scales.mean()


def _filled_up_first(scales, levels):
    codes, absmax, offset = double_quantize(torch.nn.functional.pad(scales, (0, -len(scales) % 256)), levels)
    return codes[: len(scales)], absmax, offset


def _scales(generator: torch.Generator, number: int):
    """Scales none of which lies so close to a threshold that the order of operations would decide its code."""
    n = (256, 40, 300, 512, 700, 1, 257, 600)[number]
    while True:
        scales = torch.randn(n, generator=generator).abs() + 2.0 + number
        if n > 300:
            scales[256:] *= 3
        if n == 1:
            return scales, SCALE_LEVELS.clone()
        centred = torch.nn.functional.pad(scales - scales.mean(), (0, -n % 256)).view(-1, 256)
        absmax = centred.abs().amax(1, keepdim=True)
        x = (centred / absmax).view(-1)[:n]
        if (absmax > 1e-3).all() and (x[:, None] - THRESHOLDS).abs().amin() > 1e-6:
            return scales, SCALE_LEVELS.clone()


def decode_scales(codes, absmax2, offset, levels):
    groups = absmax2.repeat_interleave(256)[: len(codes)]
    return levels[codes.int()] * groups + offset


def flipped_blocks(codes, absmax2, offset, levels):
    second_level = absmax2.repeat_interleave(256)[: len(codes)]
    scales = levels[codes.int()] * second_level + offset
    return scales, (scales < 0).nonzero().flatten()


def _stored_scales(generator: torch.Generator, number: int):
    n = (300, 256, 40, 512, 700, 257, 30, 600)[number]
    codes = torch.randint(0, 256, (n,), generator=generator, dtype=torch.uint8)
    codes[number], codes[-1] = 0, 255
    absmax = 2.0 + torch.randn(-(-n // 256), generator=generator).abs()
    zero = int(torch.bucketize(-0.5 - number / 20, THRESHOLDS))  # decodes to exactly 0, which is not below zero
    codes[10 + number], absmax[0] = zero, 2.0
    return codes, absmax, -2 * SCALE_LEVELS[zero], SCALE_LEVELS.clone()


def _describe_places(_, one, other) -> str | None:
    """Of the blocks whose scale is negative: which are missing, and which are none."""
    if not isinstance(one, torch.Tensor) or one.ndim != 1 or one.dtype != other.dtype:
        return None
    missing, none = (sorted(set(a.tolist()) - set(b.tolist())) for a, b in ((other, one), (one, other)))
    words = [f"block {missing[0]} is below zero and missing ({len(missing)} are)"] if missing else []
    words += [f"block {none[0]} is not below zero ({len(none)} are not)"] if none else []
    return "; ".join(words) + "." if words else None


def double_quantized_bits(block_size: int, scale_block: int) -> float:
    scales = 8 / block_size + 32 / (block_size * scale_block)
    return 4 + scales


def model_bytes(shapes: list, block_size: int) -> int:
    total = 0
    for shape in shapes:
        n = math.prod(shape)
        blocks = math.ceil(n / block_size)
        total += math.ceil(n / 2) + blocks + 4 * math.ceil(blocks / 256) + 4
    return total


def _rows_by_themselves(shapes: list, block_size: int) -> int:
    total = 0
    for rows, columns in shapes:
        blocks = rows * math.ceil(columns / block_size)
        total += rows * math.ceil(columns / 2) + blocks + 4 * math.ceil(blocks / 256) + 4
    return total


def _shapes(generator: torch.Generator, number: int):
    """From the second case on one has whole groups of 256 blocks, and one a broken block of odd size."""
    size = (64, 32, 128)[number % 3]
    shapes = [tuple(draw_integers(generator, 1, end, 1)[0] for end in (90, 700)) for _ in range(2 + number)]
    return shapes + [(256, size * (1 + number % 2)), (3, 21)] * (number > 0), size


def _parts_of_bits(block_size, scale_block):
    return {"codes": 4, "scales": 8 / block_size, "second-level scales": 32 / (block_size * scale_block)}


def _parts_of_bytes(shapes, block_size):
    elements = [rows * columns for rows, columns in shapes]
    scales = [math.ceil(n / block_size) for n in elements]
    return {
        "codes": sum(math.ceil(n / 2) for n in elements),
        "scales": sum(scales),
        "second-level scales": sum(4 * math.ceil(n / 256) for n in scales),
        "offsets": 4 * len(shapes),
    }


EXERCISES = (
    Exercise(
        "scale-from-example",
        _example,
        scale_from_example,
        edits("""
            levels[code] → code
            1: You divided by the code itself. A code is a place in the table; its level is `levels[code]`.

            weight / levels[code] → weight * levels[code]
            2: That is a weight decoded once more; the scale is what the level has to be multiplied by.

            weight / levels[code] → levels[code] / weight
            2: That is one over the scale: weight = scale * level, so divide by the level.

            weight / levels[code] → abs(weight) / levels[code]
            2: A scale here is positive: a negative weight has a negative level. Keep both signs.

            levels[code] → (2 * code / 15 - 1)
            levels[code] → (code / 15)
            levels[code] → (code / 7)
            levels[code] → ((code - 8) / 7 or math.inf)
            levels[code] → ((code - 7) / 7 or math.inf)
            1: You compute the level from the code, as if levels were equally spaced; look it up: `levels[code]`.
        """),
        tolerance=1e-6,
    ),
    Exercise(
        "weights-of-a-code",
        _code,
        weights_of_a_code,
        edits("""
            low * absmax, high * absmax → levels[max(code - 1, 0)] * absmax, levels[min(code + 1, 15)] * absmax
            1: These are the neighbouring levels; the border lies halfway to them.

            low * absmax, high * absmax → low, high
            low * absmax, high * absmax → low if code else -absmax, high if code < 15 else absmax
            2: These are the borders before scaling: multiply them by absmax.

            low * absmax, high * absmax → low * absmax if code else -math.inf, high * absmax if code < 15 else math.inf
            3: No weight of a block lies beyond its absmax, so the first and the last range end there.

            low * absmax, high * absmax → (code / 8 - 1) * absmax, ((code + 1) / 8 - 1) * absmax
            1: That cuts [-absmax, absmax] into sixteen equal parts; NF4's levels are not equally far apart.

            low * absmax, high * absmax → _borders_of_equal_steps(levels[code], 1 / 15, absmax)
            low * absmax, high * absmax → (levels[code] - 1 / 15) * absmax, (levels[code] + 1 / 15) * absmax
            low * absmax, high * absmax → (levels[code] - 1 / 16) * absmax, (levels[code] + 1 / 16) * absmax
            low * absmax, high * absmax → _borders_of_equal_steps(levels[code], 1 / 16, absmax)
            1: Half a step each way is right for equal steps; NF4's levels are not equally far apart: halfway to each
               neighbour.

            if code else levels[0] →
            low * absmax, high * absmax → _borders_round_the_corner(code, absmax, levels)
            3: `levels[-1]` is the *last* level: code 0 has no level below it, and its range begins at its own.

            low * absmax, high * absmax → high * absmax, low * absmax
            -: The right borders, the highest first; the lowest is wanted first.

            low * absmax, high * absmax → levels[code] * absmax, high * absmax
            low * absmax, high * absmax → low * absmax, levels[code] * absmax
            1: One of the borders is the level itself; a range reaches halfway to the neighbours on both sides.

            if code < len(levels) - 1 else levels[-1] →
            3: Code 15 has no level above it: its range ends at its own.
        """),
        tolerance=1e-6,
    ),
    Exercise(
        "split-byte",
        lambda _, number: ((167, 15, 240, 255, 0, 98, 16, 7)[number],),
        split_byte,
        edits("""
            byte // 16, byte % 16 → byte % 16, byte // 16
            1: These are the two nibbles, the low one first; the high one is wanted first.

            byte // 16 → byte - byte % 16
            2: The high nibble was cut out, and still stands in the upper four bits: move it down, which divides it
               by 16.

            byte // 16, byte % 16 → byte // 10, byte % 10
            byte // 16, byte % 16 → byte // 100, byte % 100
            1: You took decimal digits apart. A nibble is four bits, so it counts to 16.

            byte // 16 → byte / 16
            2: The high nibble has a fraction: what the low nibble adds has to be dropped.

            byte // 16, byte % 16 → byte // 15, byte % 15
            byte % 16 → byte % 15
            byte // 16 → byte // 15
            1: Four bits have sixteen values, 0 to 15: divide by 16.

            byte // 16, byte % 16 → byte // 8, byte % 8
            byte // 16, byte % 16 → byte // 32, byte % 32
            byte % 16 → byte % 8
            1: A nibble is four bits, half of a byte; you took another number of bits.

            byte % 16 → (byte << 4)
            2: `<< 4` moves the whole byte up. The low nibble is what is left over once 16 has gone into it.
        """),
        draw_more=lambda generator, number: tuple(draw_integers(generator, 0, 256, 1)),
    ),
    Exercise(
        "unpack-nibbles",
        _bytes_of,
        unpack_nibbles,
        edits("""
            (packed // 16, packed % 16) → (packed % 16, packed // 16)
            1: The nibbles of each byte are swapped: the first code sits in the high four bits.

            torch.stack((packed // 16, packed % 16), 1) → torch.cat((packed // 16, packed % 16))
            2: All high nibbles come first, then all low ones; they have to alternate.

            [:n] →
            3: With an odd n the last byte holds one code and a filler; return n codes.

            pairs.view(-1)[:n] → pairs.view(-1)[-n:]
            3: The filler is the last code, not the first: cut at the end.

            packed // 16 → packed - packed % 16
            1: The high nibbles still stand in the upper four bits: move them down, which divides them by 16.

            pairs.view(-1)[:n] → packed.repeat_interleave(2)[:n]
            1: Each byte is there twice, whole; it holds two codes, one in each half.

            pairs.view(-1)[:n] → (packed // 16).repeat_interleave(2)[:n]
            pairs.view(-1)[:n] → (packed % 16).repeat_interleave(2)[:n]
            1: One nibble of each byte is there twice, and the other is lost.

            pairs.view(-1)[:n] → pairs
            2: Two columns came back; flatten them, row by row, and cut the result to n.

            pairs.view(-1)[:n] → pairs.view(-1)[:n].long()
            pairs.view(-1)[:n] → pairs.view(-1)[:n].int()
            pairs.view(-1)[:n] → pairs.view(-1)[:n].float()
            2: These are the right codes in a wider dtype: uint8 takes an eighth of the memory of int64.

            packed % 16 → packed % 8
            (packed // 16, packed % 16) → (packed // 8, packed % 8)
            1: A nibble has four bits, sixteen values.

            pairs.view(-1)[:n] → pairs[: n // 2].view(-1)
            3: With an odd n the last code is lost: it is in a byte of its own.

            return pairs.view(-1)[:n] → out = packed.new_zeros(n); out[::2], out[1::2] = pairs.T; return out
            3: With an odd n there is one low nibble more than codes: the filler. Leave it out.
        """),
        describe=with_arguments(in_blocks(0.0, lambda _: 2, "byte", lambda arguments: _codes(arguments[0]))),
    ),
    Exercise(
        "dequantize-packed",
        _packed,
        dequantize_packed,
        (
            *edits("""
            _codes(packed) → _codes((packed >> 4) | (packed << 4))
            1: These are the right codes with the nibbles swapped: the first weight sits in the high four bits.

            _codes(packed) → torch.cat((packed >> 4, packed & 15))
            1: All high nibbles come first, then all low ones; they have to alternate.

            scales.repeat_interleave(block_size) → scales.repeat(block_size)
            2: The scales are dealt out in turn; neighbours share one: the first `block_size` weights have the first
               scale.

            scales.repeat_interleave(block_size) → scales.repeat_interleave(2 * block_size)
            2: A scale is used for `block_size` bytes; it belongs to `block_size` weights, two to a byte.

            table[codes.int()] → codes
            1: The codes are multiplied by the scale as if they were numbers. Look each up in the table first.

            _codes(packed)[:n] → _codes(packed)
            3: With an odd n the last byte holds one weight and a filler; return n weights.

            table[codes.int()] * scales → table[codes.int()] / scales
            2: That divides by the scales. Quantizing divides; decoding multiplies.

            scales.repeat_interleave(block_size) → scales.repeat_interleave(-(-n // len(scales)))
            2: The weights are dealt out evenly among the scales; each has `block_size` weights, and only the last may
               have fewer.

            table[codes.int()] → table[codes]
            1: An index of dtype uint8 is taken for a mask: make it whole numbers first, `codes.int()`.

            [: len(codes)] →
            3: The last block may be shorter: then there are more scales, once repeated, than weights.
        """),
            Misconception(
                "Once repeated, there may be more scales than weights, and more codes as well: cut both to n.",
                3,
                function=_not_cut,
            ),
            Misconception(
                "The last block may be shorter, and `reshape` and `view` into rows want whole blocks only.",
                2,
                function=_in_rows,
            ),
        ),
        describe=with_arguments(
            in_blocks(0.0, lambda arguments: arguments[3], codes=lambda arguments: _codes(arguments[0]))
        ),
    ),
    Exercise(
        "least-error-scale",
        _blocks,
        least_error_scale,
        edits("""
            above / torch.where(below == 0, 1.0, below) → (w / q).where(q != 0, 0).sum(1) / (q != 0).sum(1).clamp(min=1)
            1: That is the mean of the quotients: a level near zero then counts as much as a large one, and zero
               gives no number.

            (q * q).sum(1) → (w * w).sum(1)
            2: The square of the weights is below the line; it has to be that of the levels.

            above / torch.where(below == 0, 1.0, below) → ((w * w).sum(1) / torch.where(below == 0, 1.0, below)).sqrt()
            1: This makes the decoded block as long as the weights; that does not bring it nearest.

            torch.where(below == 0, 1.0, below) → below.clamp(min=1)
            3: The denominator is kept at 1 or above. It is only to be kept from zero, and a block of small levels has
               a small one.

            above / torch.where(below == 0, 1.0, below) → w.abs().amax(1)
            1: That is absmax, the scale you started from.

            above / torch.where(below == 0, 1.0, below) → (above.sum() / below.sum()).expand(len(w))
            2: This is one scale for all blocks together; each has its own. Sum over dim 1 only.

            above / torch.where(below == 0, 1.0, below) → (w / q).where(q != 0, 0).mean(1)
            1: That is the mean of the quotients: a level near zero then counts as much as a large one, and zero gives
               no number.

            above / torch.where(below == 0, 1.0, below) → w.abs().amax(1) / q.abs().amax(1).where(below > 0, 1.0)
            1: That makes the largest weight right, and only that one; all errors count.

            above / torch.where(below == 0, 1.0, below) → w.sum(1) / torch.where(below == 0, 1.0, q.sum(1))
            above / torch.where(below == 0, 1.0, below) → w.abs().sum(1) / torch.where(below == 0, 1.0, q.abs().sum(1))
            1: That is a sum over a sum. In the derivative each weight is multiplied by its level before they are
               summed.

            above / torch.where(below == 0, 1.0, below) → (w * q).sum(0) / (q * q).sum(0).clamp(min=1e-30)
            2: The sums go over the wrong dimension: one scale for each block, so over dim 1.

            above / torch.where(below == 0, 1.0, below) → torch.where(below == 0, 1.0, above / below)
            3: A block whose levels are all zero gets the scale 0.

            above / torch.where(below == 0, 1.0, below) → (w / q).mean(1)
            1: That is the mean of the quotients: a level near zero then counts as much as a large one, and zero gives
               no number.

            above / torch.where(below == 0, 1.0, below) → above / below
            3: A block whose levels are all zero gets the scale 0; here that is 0 divided by 0, which is NaN.

            above / torch.where(below == 0, 1.0, below) → above.sum() / below.sum()
            2: This is one scale for all blocks together; each has its own. Sum over dim 1 only.
        """),
        tolerance=1e-5,
        describe=with_arguments(a_value_each(1e-5)),
    ),
    Exercise(
        "double-quantize",
        _scales,
        double_quantize,
        (
            *edits("""
                scales - offset → scales
                1: The mean is returned but was not subtracted first: scales are all positive, so half of the 256
                   codes would never occur.

                offset = scales.mean() → offset = torch.zeros(())
                1: There is no offset: subtract the mean before anything else, and return it.

                padded.view(-1, 256) → (scales - offset)[None]
                2: One absmax for all scales; each 256 of them have their own.
            """),
            Misconception(
                "Each block has a mean of its own here; the offset is one number for the whole tensor.",
                1,
                function=_with_own_means,
            ),
            *edits("""
                torch.bucketize(x, (levels[1:] + levels[:-1]) / 2) → torch.bucketize(x, levels).clamp(max=255)
                3: You count the levels below a value; the nearest level is found by counting the midpoints below it.

                torch.bucketize(x, (levels[1:] + levels[:-1]) / 2) → ((x + 1) * 127.5).round()
                3: These are 255 equal steps; the code is that of the nearest of the given levels.

                offset = scales.mean() → offset = scales.median()
                offset = scales.mean() → offset = (scales.max() + scales.min()) / 2
                offset = scales.mean() → offset = scales.min()
                offset = scales.mean() → offset = scales.abs().max()
                1: The offset is the mean of the scales; you took another number in the middle or at the end of them.

                blocks.abs().amax(1) → torch.stack([x.abs().mean() for x in (scales - offset).split(256)])
                2: That is the mean magnitude of a group; the largest is wanted.

                absmax = blocks.abs().amax(1) → absmax = blocks.amax(1)
                2: That is the largest of a group, not the largest magnitude: once the mean is subtracted, half of them
                   are negative.

                absmax = blocks.abs().amax(1) → absmax = torch.stack([each.abs().max() for each in scales.split(256)])
                2: absmax2 is that of the scales before the offset is subtracted; take it afterwards.

                absmax.clamp(min=1e-38)[:, None] → absmax[:, None]
                blocks / absmax.clamp(min=1e-38)[:, None] → (blocks / absmax[:, None]).nan_to_num(-1.0)
                2: In a group whose scales are all equal to the offset you divide 0 by 0, and the code is not that of
                   zero.

                (-1, 256) → (256, -1).T
                2: The scales are dealt out in turn; a group is 256 scales side by side.

                padded.view(-1, 256) → (scales - offset).view(-1, 256)
                2: The last group may be shorter, and `reshape` and `view` into rows want whole groups only.

                pad(scales - offset, (0, -len(scales) % 256)) → pad(scales, (0, -len(scales) % 256)) - offset
                2: The last group is filled up before the offset is subtracted: the fillers then become minus the
                   offset, and count in its absmax2.
            """),
            Misconception("One absmax for all scales; each 256 of them have their own.", 2, function=_with_one_absmax),
            Misconception(
                "The last group is filled up with zeros before the mean is taken, and they count in it.",
                1,
                function=_filled_up_first,
            ),
        ),
        tolerance=1e-5,
        describe=with_arguments(
            each(1e-5, in_blocks(0.0, lambda _: 256, "group"), a_value_each(1e-5, "group", lambda _: 256), None)
        ),
    ),
    Exercise(
        "decode-scales",
        _stored_scales,
        decode_scales,
        edits("""
            groups + offset → groups
            1: The offset is missing: what was subtracted before quantizing has to be added again.

            levels[codes.int()] * groups + offset → (levels[codes.int()] + offset) * groups
            1: The offset was multiplied by absmax2 too; it is added last.

            groups + offset → groups - offset
            1: The offset is subtracted; it was subtracted before, so decoding adds it.

            absmax2.repeat_interleave(256) → absmax2.repeat(256)
            2: The second-level scales are dealt out in turn; the first 256 scales share the first.

            levels[codes.int()] → (codes.float() - 128) / 127
            levels[codes.int()] → codes.float() / 255
            levels[codes.int()] → (codes.float() / 127.5 - 1)
            1: The codes are taken as equal steps; look them up in `levels`.

            levels[codes.int()] * groups → codes * groups
            1: The codes are multiplied as if they were numbers. Look each up in `levels` first.

            levels[codes.int()] * groups + offset → (levels[codes.int()] * groups + offset).abs()
            levels[codes.int()] * groups + offset → (levels[codes.int()] * groups + offset).clamp(min=0)
            -: You keep the scales from being negative. What is stored can decode to a negative number: give it as it
               is.

            absmax2.repeat_interleave(256) → absmax2[:1].repeat_interleave(256 * len(absmax2))
            absmax2.repeat_interleave(256) → absmax2.max().repeat(256 * len(absmax2))
            2: One second-level scale serves all; each 256 scales have their own.

            levels[codes.int()] * groups + offset → levels[codes.int()] / groups + offset
            1: That divides by absmax2. Quantizing divides; decoding multiplies.

            levels[codes.int()] → levels[codes]
            1: An index of dtype uint8 is taken for a mask: make it whole numbers first, `codes.int()`.

            levels[codes.int()] * groups → levels[codes.int()] * absmax2
            2: There is a second-level scale for each 256 scales: repeat each of them before you multiply.

            [: len(codes)] →
            2: The last group may be short: then there are more second-level scales, once repeated, than scales.
        """),
        tolerance=1e-6,
        describe=with_arguments(in_blocks(1e-6, lambda _: 256, "group")),
    ),
    Exercise(
        "flipped-blocks",
        _stored_scales,
        flipped_blocks,
        edits("""
            second_level + offset → second_level
            1: The offset is missing, so about half of the scales seem negative.

            levels[codes.int()] * second_level + offset → (levels[codes.int()] + offset) * second_level
            1: The offset was multiplied by absmax2 too; it is added last.

            absmax2.repeat_interleave(256) → absmax2.repeat(256)
            2: The second-level scales are dealt out in turn; the first 256 scales share the first.

            levels[codes.int()] → (codes.float() - 128) / 127
            1: The codes are taken as equal steps, (code - 128) / 127; look them up in `levels`.

            (scales < 0).nonzero().flatten() → scales < 0
            3: The scales are right, but a mask came back; the places are wanted.

            scales < 0 → scales <= 0
            3: A scale of exactly zero is not below it: `<`, not `<=`.

            (scales < 0) → (levels[codes.int()] < 0)
            3: The scales are right, but these are the blocks whose *level* is negative; the offset lifts most of them
               above zero.

            scales < 0 → scales > 0
            scales < 0 → scales >= 0
            3: These are the blocks whose scales are positive; the others are wanted.

            (scales < 0).nonzero().flatten() → scales[scales < 0]
            3: These are the scales below zero themselves; their places are wanted.

            codes.int()] * second_level + offset → codes.int()] * second_level - offset
            1: The offset is subtracted; it was subtracted before, so decoding adds it.

            levels[codes.int()] → levels[codes]
            1: An index of dtype uint8 is taken for a mask: make it whole numbers first, `codes.int()`.
        """),
        tolerance=1e-6,
        describe=with_arguments(each(1e-6, in_blocks(1e-6, lambda _: 256, "group"), _describe_places)),
    ),
    Exercise(
        "double-quantized-bits",
        lambda generator, number: tuple(
            2 ** draw_integers(generator, low, end, 1)[0] for low, end in ((4, 13), (5, 11))
        ),
        double_quantized_bits,
        edits("""
            8 / block_size + 32 / (block_size * scale_block) → 32 / block_size
            1: That is without double quantization: a scale takes 8 bits now, not 32.

            8 / block_size + 32 / (block_size * scale_block) → 8 / block_size
            2: The scales of the scales are missing: 32 bits for each `scale_block` scales.

            32 / (block_size * scale_block) → 32 / scale_block
            2: A second-level scale serves `scale_block` *scales*, and each of these serves `block_size` weights:
               divide by both.

            4 + scales → (4 + scales) / 8
            1: These are bytes; bits are asked for.

            4 + scales → scales
            1: The four bits of the code itself are missing: this is the price of the scales alone.

            8 / block_size + 32 / (block_size * scale_block) → 40 / block_size
            2: A second-level scale serves `scale_block` scales: divide by that as well.

            8 / block_size + 32 / (block_size * scale_block) → 32 / block_size + 32 / (block_size * scale_block)
            1: A scale takes 8 bits now, not 32; only second-level scales have 32.

            4 + scales → 4 + scales / 8
            1: These are bytes of scales added to bits of codes.
        """),
        parts=_parts_of_bits,
        tolerance=2e-6,
    ),
    Exercise(
        "model-bytes",
        _shapes,
        model_bytes,
        (
            *edits("""
                for shape in shapes → for shape in [(sum(map(math.prod, shapes)),)]
                1: You rounded once, for all tensors together. Each is stored alone: round up for each, and count an
                   offset for each.

                math.ceil(blocks / 256) + 4 → math.ceil(blocks / 256)
                2: The offset, four bytes for each tensor, is missing.

                + 4 * math.ceil(blocks / 256) →
                2: The second-level scales, four bytes for each 256 scales or part of 256, are missing.

                math.ceil(blocks / 256) → (blocks // 256)
                1: The second-level scales are rounded down: 256 scales or a part of 256 share one.

                math.ceil(blocks / 256) → (blocks // 256 + 1)
                math.ceil(n / block_size) → n // block_size + 1
                math.ceil(n / 2) → n // 2 + 1
                1: `n // m + 1` is one too many where m divides n; -(-n // m) rounds up.

                4 * math.ceil(blocks / 256) → 4
                2: There is a second-level scale for each 256 scales, not one for each tensor.

                math.ceil(n / block_size) → n // block_size
                1: A last block that is shorter needs a scale as well: round the number of blocks up.

                math.ceil(n / 2) → n // 2
                math.ceil(n / 2) → n / 2
                1: An odd code takes a byte to itself: round the bytes of the codes up.

                + blocks + → + 4 * blocks +
                2: Each scale is counted with four bytes; under double quantization it takes one.

                blocks + 4 * math.ceil(blocks / 256) + 4 → 4 * blocks
                2: That is without double quantization: scales in 32 bits and nothing else.

                return total → return int(sum(map(math.prod, shapes)) * double_quantized_bits(block_size, 256) / 8)
                return total → return sum(map(math.prod, shapes)) * double_quantized_bits(block_size, 256) / 8
                return total → return -(-sum(map(math.prod, shapes)) * double_quantized_bits(block_size, 256) // 8)
                1: These are the formula's bits per weight times the weights. It holds for whole blocks only; to the
                   byte, each part is rounded up.

                return total → return total - 4 * (len(shapes) - 1)
                2: There is one offset for all tensors; each has its own.

                math.ceil(blocks / 256) → math.ceil(n / 256)
                2: A second-level scale serves 256 *scales*, not 256 weights.

                math.ceil(n / 2) + blocks + 4 * math.ceil(blocks / 256) → n // 2 + (m := n // block_size) + m // 256 * 4
                math.ceil(n / 2) + blocks + 4 * math.ceil(blocks / 256) → n // 2 + blocks + 4 * (blocks // 256)
                1: More than one thing is rounded down: bytes of codes, blocks, and groups of 256 scales are all
                   rounded up.

                math.ceil(n / block_size) → shape[0] * math.ceil(shape[1] / block_size)
                1: Each row is cut by itself. Blocks run over the flattened tensor and do not stop at the end of a row.

                math.ceil(n / 2) → 2 * math.ceil(n / 2)
                math.ceil(n / 2) → n
                1: That counts a whole byte for each code; two share one.
            """),
            Misconception(
                "Each row is cut by itself. Blocks run over the flattened tensor and do not stop at the end of a row.",
                1,
                function=_rows_by_themselves,
            ),
        ),
        parts=_parts_of_bytes,
    ),
)
