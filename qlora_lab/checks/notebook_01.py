"""Exercises of notebook 01: codes, scales, signed scales, two codes in a byte, NF4, bits, errors, counter-examples."""

import torch

from qlora_lab.checks.differences import a_value_each, packed_codes, pattern, where_off, with_arguments
from qlora_lab.checks.exercise import Exercise, draw_integers, edited, edits
from qlora_lab.quantization.datatypes import get_datatype

NF4 = get_datatype("nf4").table()


def decode(code: int, low: float, high: float) -> float:
    return low + (high - low) * code / 15


def _parts_of_level(code, low, high):
    return {"`low`": low, "steps": (high - low) * code / 15}


def _code_case(generator: torch.Generator, number: int):
    low, high = ((0.0, 1.95), (-1.0, 1.0), (0.0, 1.0), (0.25, 4.0), (-3.0, -0.5))[number % 5]
    return (5, 12, 10, 7, 9, 15, 1, 3)[number], low, high


def _any_code(generator: torch.Generator, number: int):
    code, low, steps = (draw_integers(generator, 0, end, 1)[0] for end in (16, 40, 60))
    return code, low / 4, (low + 1 + steps) / 4


def block_absmax(weight: torch.Tensor, block_size: int) -> torch.Tensor:
    blocks = weight.reshape(-1).split(block_size)
    return torch.stack([block.abs().max() for block in blocks])


def _tensor_case(generator: torch.Generator, number: int):
    """Matrices of whole and of broken blocks; the outlier of one block is negative, another is all zeros."""
    shape = ((2, 8), (3, 7), (5, 5), (4, 16), (1, 1), (6, 11), (8, 8), (9, 13))[number]
    weight = torch.randn(shape, generator=generator)
    if weight.numel() > 16:
        weight.view(-1)[:4] = 0
        weight.view(-1)[5] = -9.0
    return weight, 4 if number % 2 == 0 else 8


def _midpoints(levels: torch.Tensor) -> torch.Tensor:
    return (levels[1:] + levels[:-1]) / 2


def nearest_code(x: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    return torch.bucketize(x, _midpoints(levels)).to(torch.uint8)


def _levels_case(generator: torch.Generator, number: int):
    """Sorted levels in 64ths, so that midpoints are exact, and numbers that include every level and midpoint."""
    inner = torch.randperm(127, generator=generator)[:14] - 63
    levels = torch.cat((torch.tensor([-64]), inner, torch.tensor([64]))).sort().values / 64
    x = torch.cat((levels, _midpoints(levels), 2 * torch.rand(20 + number, generator=generator) - 1))
    return x[torch.randperm(len(x), generator=generator)], levels


def _describe_codes(arguments: tuple, one, other) -> str | None:
    off = where_off(one, other, 0.0)
    if off is None:
        return None
    x, levels = arguments
    first = int(off[0])
    given, right = (f"code {code} (level {levels[code]:.4g})" if code < 16 else f"code {code}"
                    for code in (one[first].item(), other[first].item()))  # fmt: skip
    start = f"{len(off)} of {len(other)} codes differ, the first is that of {x[first]:.4g}: {given} instead of {right}."
    return start + pattern(one, other, 0.0)


def pack_nibbles(codes: torch.Tensor) -> torch.Tensor:
    padded = torch.cat((codes, codes.new_full((len(codes) % 2,), 7)))
    return padded[::2] * 16 + padded[1::2]


def one_side(count: int, edge: float) -> torch.Tensor:
    probabilities = torch.linspace(edge, 0.5, count + 1)
    return torch.special.ndtri(probabilities.double())[:-1].float()


def _side_case(generator: torch.Generator, number: int):
    return (8, 7, 3, 4, 16, 15, 2, 32)[number], (0.9677083, 0.9677083, 0.9, 0.95, 0.98, 0.98, 0.8, 0.99)[number]


def _any_side(generator: torch.Generator, number: int):
    count, edge = (draw_integers(generator, low, end, 1)[0] for low, end in ((2, 40), (70, 99)))
    return count, edge / 100


def normal_float(bits: int) -> torch.Tensor:
    count, half = 2**bits, 2 ** (bits - 1)
    edge = round(1 - (1 / (2 * count) + 1 / (2 * (count - 1))) / 2, 7)
    positive = _quantiles(edge, 0.5, half + 1)[:-1]
    negative = -_quantiles(edge, 0.5, half)[:-1]
    levels = torch.cat((negative, torch.zeros(1), positive)).float().sort().values
    return levels / levels.max()


def _quantiles(first: float, last: float, count: int) -> torch.Tensor:
    """(count,) of the normal distribution, at equally spaced probabilities; in float32, as bitsandbytes spaces them."""
    return torch.special.ndtri(torch.linspace(first, last, count).double())


def signed_absmax(weight: torch.Tensor, block_size: int) -> torch.Tensor:
    blocks = weight.reshape(-1).split(block_size)
    return torch.stack([-block[block.abs().argmax()] for block in blocks])


def bits_per_weight(block_size: int, constants: int, double_quant: bool) -> float:
    constant = 8 / block_size + 32 / (256 * block_size) if double_quant else 32 / block_size
    return 4 + constants * constant


def predict_and_measure(weight: torch.Tensor, block_size: int) -> tuple[float, float]:
    blocks = weight.reshape(-1, block_size).double()
    steps = blocks.abs().amax(1, keepdim=True) / 7
    predicted = (steps.square().mean() / 12).sqrt().item()
    decoded = (blocks / steps).round() * steps
    measured = (decoded - blocks).square().mean().sqrt().item()
    return predicted, measured


def _blocks_case(generator: torch.Generator, number: int):
    size = (16, 64, 32, 128)[number % 4]
    return torch.randn(40 + 10 * number, size, generator=generator) * 10.0 ** (number % 3 - 1), size


def codes_of(block: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    scale = block.abs().max()
    x = block / scale if scale > 0 else block
    return (x[:, None] > _midpoints(levels)).sum(1)


BUGS = (  # edits of `codes_of`: what each of the three versions in the notebook has lost
    ("block.abs().max()", "block.max()"),
    ("> _midpoints(levels)", ">= _midpoints(levels)"),
    ("block / scale if scale > 0 else block", "block / scale"),
)


def counterexamples(levels: torch.Tensor) -> list[torch.Tensor]:
    negative, tie, zero = torch.zeros(16), torch.zeros(16), torch.zeros(16)
    negative[:2] = torch.tensor([0.5, -1.0])
    tie[0], tie[1] = 1.0, _midpoints(levels)[9]
    return [negative, tie, zero]


def _exposed(arguments: tuple, result):
    """For each bug whether its block exposes it; what is no list of three is returned as it is."""
    (levels,) = arguments
    if not isinstance(result, list | tuple) or len(result) != 3:
        return result
    return [_is_block(block) and not torch.equal(edited(codes_of, *bug)(block, levels), codes_of(block, levels))
            for bug, block in zip(BUGS, result, strict=True)]  # fmt: skip


def _is_block(block) -> bool:
    good = isinstance(block, torch.Tensor) and block.shape == (16,) and block.dtype == torch.float32
    return good and bool(block.isfinite().all())


def _levels_only(generator: torch.Generator, number: int):
    """NF4's levels, and others from -1 over an exact 0 to 1."""
    if number % 2 == 0:
        return (NF4.clone(),)
    low = -torch.rand(6, generator=generator) * 0.98 - 0.01
    high = torch.rand(7, generator=generator) * 0.98 + 0.01
    return (torch.cat((torch.tensor([-1.0, 0.0, 1.0]), low, high)).sort().values,)


def _which_blocks(_, exposed, expected) -> str | None:
    """Of blocks in places that no misconception is about."""
    if not isinstance(exposed, list) or len(exposed) != len(BUGS) or not all(isinstance(one, bool) for one in exposed):
        return None
    names = [name for name, one in zip(("first", "second", "third"), exposed, strict=True) if not one]
    hints = [str(number) for number, one in enumerate(exposed, 1) if not one]
    expose = f"{' and '.join(names)} block {'expose' if len(names) > 1 else 'exposes'}"
    return (
        f"Your {expose} nothing: the right version and the one with the bug give the same codes. Each block has to be "
        f"16 finite float32 numbers, in the place of its bug. Open hint {' and '.join(hints)}."
    )


_RANDOM = torch.randn(16, generator=torch.Generator().manual_seed(1))
_RANDOM_POSITIVE = torch.where(torch.arange(16) == 3, 3.0, _RANDOM)


def _parts_of_bits(block_size, constants, double_quant):
    return {
        "codes": 4,
        "constants of 32 bits": 0 if double_quant else 32 * constants / block_size,
        "constants of 8 bits, with their second-level scales,": constants * 8.125 / block_size if double_quant else 0,
    }


EXERCISES = (
    Exercise(
        "decode",
        _code_case,
        decode,
        edits("""
            code / 15 → code / 16
            1: That divides the range by 16. Sixteen numbers have fifteen steps between them.

            low + (high - low) → (high - low)
            2: The range need not start at zero: code 0 stands for `low`.

            (high - low) → high
            1: The step is the length of the range, high - low, over 15; you took `high` alone.

            low + (high - low) → high - (high - low)
            2: You count down from `high`. Code 0 is the lowest value, code 15 the highest.

            * code → * (code - 1)
            2: These are codes counted from 1. Code 0 is the lowest value, code 15 the highest.

            code / 15 → (code - 1) / 14
            2: These are codes counted from 1. Code 0 is the lowest value, code 15 the highest.

            code / 15 → (code + 0.5) / 16
            1: That is the middle of one of sixteen parts of the range; codes stand on steps from `low` to `high`, both
               included.

            low + (high - low) * code / 15 → high * (2 * code / 15 - 1)
            low + (high - low) * code / 15 → abs(low) * (2 * code / 15 - 1)
            2: That takes the range to be as wide below zero as above. It goes from `low` to `high`.

            code / 15 → (15 - code) / 15
            2: You count down from `high`. Code 0 is the lowest value, code 15 the highest.

            (high - low) * code / 15 → (high - low) // 15 * code
            1: `//` rounds a step down to a whole number, and here to nothing; `/` keeps its fraction.

            (high - low) * code / 15 → code / 15
            1: The step is the length of the range, high - low, over 15; you took 1 over 15.
        """),
        tolerance=2e-6,
        draw_more=_any_code,
        parts=_parts_of_level,
    ),
    Exercise(
        "block-absmax",
        _tensor_case,
        block_absmax,
        edits("""
            block.abs().max() → block.max()
            1: That is the largest weight, not the largest magnitude: a block whose outlier is negative gets a scale
               far too small.

            for block in blocks]) → for block in blocks])[: weight.numel() // block_size]
            2: The last block is missing: it may be shorter, and it needs a scale too.

            torch.stack([block.abs().max() for block in blocks]) → weight.abs().max()
            1: That is one scale for the whole tensor, which is what blocks are there to avoid.

            torch.stack([block.abs().max() for block in blocks]) → weight.abs().amax(1)
            1: That is one scale a row. Blocks run over the flattened tensor and do not stop at the end of a row.

            block.abs().max() → block.abs().mean()
            1: That is the mean magnitude; weights above it would not fit into [-1, 1].

            for block in blocks] → for row in weight for block in row.split(block_size)]
            1: Each row is cut by itself. Blocks run over the flattened tensor and do not stop at the end of a row.

            reshape(-1).split → reshape(-1).chunk
            1: That makes `block_size` blocks; it is the number of weights in a block.

            torch.stack([block.abs().max() for block in blocks]) → weight.view(-1, block_size).abs().amax(0)
            1: These blocks take every n-th weight; a block is `block_size` weights that stand side by side.

            block.abs().max() → block.max().abs()
            1: The largest weight is taken first and its magnitude after that: a block whose outlier is negative gets a
               scale far too small. Take magnitudes first.

            block.abs().max() → block[block.abs().argmax()]
            1: The largest magnitude has kept its sign; a scale is not negative.

            block.abs().max() → block.abs().min()
            1: That is the smallest magnitude; the largest is wanted.

            block.abs().max() → (block.max() - block.min())
            block.abs().max() → (block.max() - block.min()) / 2
            1: That is the range from the smallest to the largest weight; the largest magnitude is wanted.

            block.abs().max() → block.norm()
            block.abs().max() → block.square().mean().sqrt()
            1: That is a block's length or its root mean square; the largest magnitude is wanted.

            weight.reshape(-1).split(block_size) → weight.reshape(-1, block_size)
            weight.reshape(-1).split(block_size) → torch.from_numpy(weight.numpy().reshape(-1, block_size))
            2: The last block may be shorter, and `reshape` and `view` into rows want whole blocks only.

            for block in blocks]) → for block in (*blocks, weight.new_zeros(0))[: weight.numel() // block_size + 1]])
            2: One block is too many: where `block_size` divides the number of weights, `n // block_size + 1` counts an
               empty one.
        """),
        tolerance=1e-6,
        describe=with_arguments(a_value_each(1e-6, size=lambda arguments: arguments[1])),
    ),
    Exercise(
        "nearest-code",
        _levels_case,
        nearest_code,
        edits("""
            torch.bucketize(x, _midpoints(levels)) → torch.bucketize(x, _midpoints(levels), right=True)
            2: Right, except for numbers exactly halfway between two levels: a tie takes the lower code.

            torch.bucketize(x, _midpoints(levels)) → (torch.bucketize(x, levels, right=True) - 1)
            1: That takes the highest level not above the number. The nearest may be the next one.

            torch.bucketize(x, _midpoints(levels)) → torch.bucketize(x, levels)
            1: That takes the lowest level not below the number. The nearest may be the one before.

            torch.bucketize(x, _midpoints(levels)).to(torch.uint8) → levels[torch.bucketize(x, _midpoints(levels))]
            1: These are the levels; the codes, their places in the table, are wanted.

            .to(torch.uint8) → .to(torch.int64)
            3: The right codes, in the wrong dtype: convert them to torch.uint8.

            torch.bucketize(x, _midpoints(levels)) → ((x + 1) * 7.5).round()
            1: That rounds as if the levels were equally spaced. Compare with the levels you are given.

            torch.bucketize(x, _midpoints(levels)) → (x[:, None] - levels).argmin(1)
            torch.bucketize(x, _midpoints(levels)) → (levels - x[:, None]).argmin(1)
            1: The smallest difference is the most negative one; the nearest level has the smallest *magnitude* of a
               difference.

            torch.bucketize(x, _midpoints(levels)) → (x[:, None] - levels).abs().argmax(1)
            1: That is the farthest level.

            torch.bucketize(x, _midpoints(levels)) → (x[:, None] - levels).abs().argmin(0)
            1: That is the nearest number of each level; the nearest level of each number is wanted.

            torch.bucketize(x, _midpoints(levels)) → (x - levels).abs().argmin()
            1: Each number has to be compared with each level: make a column of the numbers, `x[:, None]`.
        """),
        describe=with_arguments(_describe_codes),
    ),
    Exercise(
        "pack-nibbles",
        lambda generator, number: (
            torch.randint(0, 16, ((7, 8, 1, 2, 33, 64, 5, 100)[number],), generator=generator, dtype=torch.uint8),
        ),
        pack_nibbles,
        edits("""
            padded[::2] * 16 + padded[1::2] → padded[1::2] * 16 + padded[::2]
            1: These are the right codes with the nibbles swapped: the first of a pair goes into the high nibble,
               times 16.

            codes.new_full((len(codes) % 2,), 7) → codes.new_full((len(codes) % 2,), 0)
            2: An odd last code is padded with 0, and code 0 is NF4's -1. Pad with the code of zero, 7.

            codes.new_full((len(codes) % 2,), 7) → codes.new_full((len(codes) % 2,), 15)
            2: An odd last code is padded with 15, NF4's 1. Pad with the code of zero, 7.

            padded[::2] * 16 + padded[1::2] → (padded[::2] * 16 + padded[1::2])[: len(codes) // 2]
            2: An odd last code is lost. It needs a byte too, filled up with the code of zero.

            padded[::2] * 16 + padded[1::2] → padded[: len(padded) // 2] * 16 + padded[len(padded) // 2 :]
            1: That pairs the first half with the second half; neighbours share a byte.

            padded[::2] * 16 + padded[1::2] → (padded[::2] * 16 + padded[1::2]).to(torch.int64)
            3: The right numbers in a wider dtype: a byte is torch.uint8, or else nothing is saved.

            (codes, codes.new_full((len(codes) % 2,), 7)) → (codes.new_full((len(codes) % 2,), 7), codes)
            2: The filler stands in front, so that all codes have moved by one; it is the partner of the last.

            codes.new_full((len(codes) % 2,), 7) → codes.new_full((2 - len(codes) % 2,), 7)
            2: An even number of codes needs no filler: you add two, and a byte.

            codes.new_full((len(codes) % 2,), 7) → codes[-(len(codes) % 2) or len(codes) :]
            2: An odd last code is there twice. Its partner is the code of zero, 7.

            padded[::2] * 16 + → padded[::2] * 10 +
            padded[::2] * 16 + → padded[::2] * 15 +
            padded[::2] * 16 + → padded[::2] * 8 +
            padded[::2] * 16 + padded[1::2] → (padded[::2] << 3) | padded[1::2]
            1: The high nibble is worth 16: four bits to the left.

            padded[::2] * 16 + padded[1::2] → codes[::2] * 16 + codes[1::2]
            padded[::2] * 16 + padded[1::2] → codes[1::2] + codes[::2] * 16
            padded[::2] * 16 + padded[1::2] → codes.view(-1, 2)[:, 0] * 16
            padded[::2] * 16 + padded[1::2] → torch.stack([codes[i + 1] for i in range(0, len(codes), 2)])
            2: If the number of codes is odd, the last one has no partner yet: append one before you make pairs.

            padded[::2] * 16 + padded[1::2] → padded[::2] << 4 + padded[1::2]
            1: `+` comes before `<<` in Python: write `(high << 4) + low`, or `high << 4 | low`.
        """),
        describe=with_arguments(packed_codes),
    ),
    Exercise(
        "one-side",
        _side_case,
        one_side,
        edits("""
            (edge, 0.5, count + 1) → (edge, 0.5, count)
            1: One level is missing, or the gaps are too wide: from `edge` to 0.5 there are `count` steps, so one
               probability more than levels. The last, 0.5, is left out.

            torch.special.ndtri(probabilities.double())[:-1] → torch.special.ndtri(probabilities.double())
            2: The last level is zero, the quantile of 0.5. It belongs to no side: leave it out.

            torch.special.ndtri(probabilities.double()) → probabilities
            1: These are the probabilities; the quantiles of them are wanted.

            ndtri(probabilities.double())[:-1] → ndtri(probabilities[0]) * (1 - torch.arange(count) / count)
            1: These levels are equally spaced. The probabilities are, and the levels are their quantiles.

            torch.special.ndtri(probabilities.double())[:-1] → torch.special.ndtri(probabilities.double())[:-1].flip(0)
            2: The right levels, smallest first; begin with that of `edge`, the largest.

            (edge, 0.5, count + 1) → (edge, 0.0, count + 1)
            1: The probabilities go down to 0.5, the middle of the bell, and not to 0.

            torch.special.ndtri(probabilities.double())[:-1] → -torch.special.ndtri(probabilities.double())[:-1]
            1: These lie below zero; the side above zero is wanted.

            torch.special.ndtri(probabilities → torch.special.ndtr(probabilities
            1: `ndtr` gives the probability of a number; `ndtri`, its inverse, gives the number of a probability.

            (edge, 0.5, count + 1) → (0.5, edge, count + 1)
            2: These begin with the zero and leave out the outermost. Go down from `edge`, and leave the last one out.
        """),
        tolerance=3e-5,
        draw_more=_any_side,
        any_float=True,
    ),
    Exercise(
        "normal-float",
        lambda generator, number: ((4, 3, 2, 5, 6, 4, 3, 8)[number],),
        normal_float,
        edits("""
            torch.cat((negative, torch.zeros(1), positive)) → _quantiles(1 - edge, edge, count)
            1: There is no exact zero: you cut the bell curve symmetrically into an even number of levels. The two
               sides are built apart, with a zero between.

            levels / levels.max() → levels
            3: These are quantiles in standard deviations; divide by the largest, so that the levels end at 1.

            (negative, torch.zeros(1), positive) → (-positive, torch.zeros(1), -negative)
            2: The sides are swapped: the positive side has one level more.

            torch.zeros(1) → torch.zeros(3)
            2: Zero is in there twice or more: each side's probabilities end at 0.5, whose quantile is zero; leave
               these out and add one zero.

            levels / levels.max() → torch.cat((torch.linspace(-1, 0, half), torch.linspace(0, 1, half + 1)[1:]))
            1: These levels are equally spaced; the probabilities are, and the levels are their quantiles.

            1 - (1 / (2 * count) + 1 / (2 * (count - 1))) / 2 → 1 - 1 / (2 * count)
            2: The outermost probability is half a step short of 1, on average over 2^bits and 2^bits - 1 levels; you
               took one of the two.

            -_quantiles(edge, 0.5, half)[:-1] → _quantiles(edge, 0.5, half)[:-1]
            2: The levels below zero have no minus; put a minus before the quantiles of that side.

            (negative, torch.zeros(1), positive) → (-positive, positive)
            1: There is no exact zero, and both sides have the same number of levels. The positive side has one more
               than the negative one, and between them is a zero.

            1 - (1 / (2 * count) + 1 / (2 * (count - 1))) / 2 → 1 - 1 / (2 * (count - 1))
            2: The outermost probability is half a step short of 1, on average over 2^bits and 2^bits - 1 levels; you
               took one of the two.

            2**bits, 2 ** (bits - 1) → 16, 8
            -: That is the same table for any number of bits: the number of levels is 2^bits.

            (negative, torch.zeros(1), positive) → (-positive, torch.zeros(1), positive)
            2: Both sides have as many levels: with the zero that is one too many. The negative side has one level less.

            -_quantiles(edge, 0.5, half)[:-1] → -positive[1:]
            -_quantiles(edge, 0.5, half)[:-1] → -positive[:-1]
            2: That is the positive side with a minus and without one level. The negative side goes from the same
               outermost probability to 0.5 in one step less, so its levels are different ones.

            edge = round(1 - (1 / (2 * count) + 1 / (2 * (count - 1))) / 2, 7) → edge = 0.9677083
            2: That is the outermost probability of four bits; it depends on the number of bits.
        """),
        tolerance=3e-5,
        draw_more=lambda generator, number: tuple(draw_integers(generator, 2, 11, 1)),
    ),
    Exercise(
        "bits-per-weight",
        lambda generator, number: ((64, 32, 128, 64, 16, 256, 64, 4096)[number], 1 + number // 2 % 2, number % 2 == 1),
        bits_per_weight,
        edits("""
            4 + constants * constant → 4.0
            1: 4 bits are the codes alone; a block's constants are shared by its weights.

            constants * constant → constant
            1: That counts one constant for each block. There may be two: `constants` says how many.

            8 / block_size + 32 / (256 * block_size) → 8 / block_size
            2: 8-bit constants need scales themselves: one of 32 bits for 256 of them.

            constants * constant → constants * constant / 8
            1: These are bytes of constants added to bits of codes: a float32 has 32 bits.

            32 / (256 * block_size) → 32 / (256 * block_size) / constants
            2: Each kind of constant has second-level scales of its own; you count them for one.

            32 / (256 * block_size) → 32 / 256
            2: A second-level scale serves 256 constants, and each of these `block_size` weights: divide by both.

            4 + constants * constant → constants * constant
            1: The four bits of the code are missing: this is the price of the constants alone.

            if double_quant else → if False else
            2: Double quantization is ignored: constants then have 8 bits instead of 32.

            32 / (256 * block_size) → 32 / (256 * constants)
            2: A second-level scale serves 256 constants, and each of these `block_size` weights: divide by both, for
               each kind of constant.

            4 + constants * constant → 4 + constants * constant * block_size
            1: A constant is shared by the weights of its block: divide by `block_size`.

            8 / block_size + 32 / (256 * block_size) → 8 / block_size + 32 / block_size
            2: A second-level scale serves 256 constants: divide by that as well.

            32 / block_size → 16 / block_size
            1: A constant has 32 bits.

            32 / (256 * block_size) → 32 * 256 / block_size
            2: You multiply by 256: 256 constants *share* a second-level scale, so divide.
        """),
        parts=_parts_of_bits,
        tolerance=2e-6,
        draw_more=lambda generator, number: (
            *draw_integers(generator, 8, 5000, 1),
            1 + number % 2,
            number % 4 > 1,
        ),
    ),
    Exercise(
        "predict-and-measure",
        _blocks_case,
        predict_and_measure,
        edits("""
            (steps.square().mean() / 12).sqrt() → (steps.mean() / math.sqrt(12))
            2: The prediction averages the steps; it is their squares that have to be averaged, as in the error.

            steps.square().mean() / 12 → steps.square().mean()
            1: The prediction is a whole step; the error within a step is spread evenly, with a root mean square of
               step / sqrt(12).

            steps.square().mean() / 12 → steps.square().mean() / 4
            1: The prediction is half a step, which is the largest error and not the root mean square.

            steps.square().mean() → (steps * 7 / 7.5).square().mean()
            keepdim=True) / 7 → keepdim=True) / 7.5
            keepdim=True) / 7 → keepdim=True) / 8
            1: The step is absmax / 7: fourteen steps from -7 to 7. You took another number of steps.

            blocks.abs().amax(1, keepdim=True) → blocks.abs().max()
            1: That is one step for the whole tensor; each block has the step of its own absmax.

            (decoded - blocks).square().mean().sqrt() → (decoded - blocks).abs().mean()
            3: The measured number is a mean of magnitudes; take the root of the mean of squares.

            return predicted, measured → return measured, predicted
            -: The two are swapped: predicted first, then measured.

            steps.square().mean() / 12 → steps.square().mean() / 144
            1: The step is divided by 12, not by its root.

            return predicted, measured → return predicted**2, measured**2
            3: These are mean squares; take the root of both.

            return predicted, measured → return predicted, measured**2
            3: What is measured is a mean square; take its root.

            return predicted, measured → return predicted**2, measured
            3: What is predicted is a mean square; take its root.

            (decoded - blocks).square().mean().sqrt() → (decoded - blocks).abs().max()
            3: That is the largest error; the root of the mean of squares is wanted.

            (decoded - blocks).square().mean().sqrt() → (decoded - blocks).square().sum().sqrt()
            3: What is measured is the root of a sum; take the mean of the squares.

            (blocks / steps).round() → (blocks / steps).trunc()
            (blocks / steps).round() → (blocks / steps).floor()
            3: The weights are cut off instead of rounded to the nearest step.

            keepdim=True → keepdim=False
            1: There is one step for each row: keep it as a column (`keepdim=True`, or `steps[:, None]`) to divide the
               rows by it.

            (decoded - blocks).square().mean().sqrt() → (decoded - blocks).square().mean(1).sqrt().mean()
            3: What is measured is a mean of the blocks' own errors. Take the mean of squares over all weights, and one
               root of it.
        """),
        tolerance=1e-4,
    ),
    Exercise(
        "signed-absmax",
        _tensor_case,
        signed_absmax,
        edits("""
            -block[block.abs().argmax()] → block[block.abs().argmax()]
            2: Divided by this, the extreme weight becomes 1. It should become -1, the end that has a level.

            -block[block.abs().argmax()] → block.abs().max()
            1: That is the ordinary absmax, without a sign: a block whose extreme weight is positive needs a negative
               scale.

            -block[block.abs().argmax()] → -block.abs().max()
            2: All scales are negative. The sign depends on the block: its extreme weight has to become -1.

            -block[block.abs().argmax()] → -block[block.argmax()]
            1: You look for the largest weight; the one with the largest magnitude is wanted.

            -block[block.abs().argmax()] → -block[block.abs().argmax()].sign()
            2: That is the sign alone; the scale is as large as the extreme weight.

            -block[block.abs().argmax()] → block.abs().argmax()
            1: That is the extreme weight's place in its block; take the weight that stands there.

            -block[block.abs().argmax()] → -block[block.abs().argmax()] / 8
            2: That is one step, an eighth of the scale. Divided by the scale, the extreme weight becomes -1.

            for block in blocks] → for row in weight for block in row.split(block_size)]
            1: Each row is cut by itself. Blocks run over the flattened tensor and do not stop at the end of a row.

            for block in blocks]) → for block in blocks])[: weight.numel() // block_size]
            1: The last block is missing: it may be shorter, and it needs a scale too.

            weight.reshape(-1).split(block_size) → weight.reshape(-1, block_size)
            1: The last block may be shorter, and `reshape` and `view` into rows want whole blocks only.
        """),
        tolerance=1e-6,
        describe=with_arguments(a_value_each(1e-6, size=lambda arguments: arguments[1])),
    ),
    Exercise(
        "counterexamples",
        _levels_only,
        counterexamples,
        edits("""
            [negative, tie, zero] → [negative, _RANDOM, zero]
            2: Your second block does not expose the tie. Random numbers never hit a midpoint: put one there. It is
               one only if the largest magnitude is 1.

            [negative, tie, zero] → [_RANDOM_POSITIVE, tie, zero]
            1: Your first block does not expose the missing abs(): its largest magnitude has to be negative.

            [negative, tie, zero] → [negative, tie, _RANDOM]
            3: Your third block does not expose the division: when does it give no number?

            [negative, tie, zero] → [negative, _RANDOM, _RANDOM]
            -: Your second and third block expose nothing: random numbers do not find these bugs. Open hints 2, 3.

            [negative, tie, zero] → [_RANDOM_POSITIVE, _RANDOM_POSITIVE, _RANDOM_POSITIVE]
            1: None of your blocks exposes its bug. Give three tensors of 16 finite float32 numbers, in the order of
               the three versions.
        """),
        view=_exposed,
        describe=_which_blocks,
    ),
)
