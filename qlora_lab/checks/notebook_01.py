"""Exercises of notebook 01: what a code means, scales, nearest codes, and two codes in a byte."""

import torch

from qlora_lab.checks.blocks import a_value_each, packed_codes, where_off, with_arguments
from qlora_lab.checks.differences import pattern
from qlora_lab.checks.exercise import Exercise, Misconception


def decode(code: int, low: float, high: float) -> float:
    return low + (high - low) * code / 15


def _code_case(generator: torch.Generator, number: int):
    low, high = ((0.0, 1.95), (-1.0, 1.0), (0.0, 1.0), (0.25, 4.0), (-3.0, -0.5))[number % 5]
    return (5, 12, 10, 7, 9, 15, 1, 3)[number], low, high


def _any_code(generator: torch.Generator, number: int):
    code, low, steps = (int(torch.randint(0, n, (), generator=generator)) for n in (16, 40, 60))
    return code, low / 4, (low + 1 + steps) / 4


def block_absmax(weight: torch.Tensor, block_size: int) -> torch.Tensor:
    flat = weight.reshape(-1)
    return torch.stack([flat[i : i + block_size].abs().max() for i in range(0, len(flat), block_size)])


def _tensor_case(generator: torch.Generator, number: int):
    """Matrices of whole and of broken blocks; the outlier of one block is negative, another is all zeros."""
    shape = ((2, 8), (3, 7), (5, 5), (4, 16), (1, 1), (6, 11), (8, 8), (9, 13))[number]
    weight = torch.randn(shape, generator=generator)
    if weight.numel() > 16:
        weight.view(-1)[:4] = 0
        weight.view(-1)[5] = -9.0
    return weight, 4 if number % 2 == 0 else 8


def _flat_absmax(weight: torch.Tensor, block_size: int, drop: bool) -> torch.Tensor:
    scales = block_absmax(weight, block_size)
    return scales[: weight.numel() // block_size] if drop else scales


def nearest_code(x: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    return torch.bucketize(x, (levels[1:] + levels[:-1]) / 2).to(torch.uint8)


def _levels_case(generator: torch.Generator, number: int):
    """Sorted levels in 64ths, so that midpoints are exact, and numbers that include every level and midpoint."""
    inner = torch.randperm(127, generator=generator)[:14] - 63
    levels = torch.cat((torch.tensor([-64]), inner, torch.tensor([64]))).sort().values / 64
    middle = (levels[1:] + levels[:-1]) / 2
    x = torch.cat((levels, middle, 2 * torch.rand(20 + number, generator=generator) - 1))
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


def _padded_with(code: int):
    return lambda codes: pack_nibbles(torch.cat((codes, codes.new_full((len(codes) % 2,), code))))


def _halves(codes: torch.Tensor) -> torch.Tensor:
    padded = torch.cat((codes, codes.new_full((len(codes) % 2,), 7)))
    return padded[: len(padded) // 2] * 16 + padded[len(padded) // 2 :]


EXERCISES = (
    Exercise(
        "decode",
        _code_case,
        decode,
        (
            Misconception(
                "That divides the range by 16. Sixteen numbers have fifteen steps between them. Open hint 1.",
                lambda code, low, high: low + (high - low) * code / 16,
            ),
            Misconception(
                "The range need not start at zero: code 0 stands for `low`. Open hint 2.",
                lambda code, low, high: (high - low) * code / 15,
            ),
            Misconception(
                "The step is the length of the range, high - low, over 15; you took `high` alone. Open hint 1.",
                lambda code, low, high: low + high * code / 15,
            ),
            Misconception(
                "You count down from `high`. Code 0 is the lowest value, code 15 the highest. Open hint 2.",
                lambda code, low, high: high - (high - low) * code / 15,
            ),
            Misconception(
                "These are codes counted from 1. Code 0 is the lowest value, code 15 the highest. Open hint 2.",
                lambda code, low, high: low + (high - low) * (code - 1) / 15,
            ),
        ),
        tolerance=1e-9,
        draw_more=_any_code,
    ),
    Exercise(
        "block-absmax",
        _tensor_case,
        block_absmax,
        (
            Misconception(
                "That is the largest weight, not the largest magnitude: a block whose outlier is negative gets a scale "
                "far too small. Open hint 1.",
                lambda w, size: torch.stack([part.max() for part in w.reshape(-1).split(size)]),
            ),
            Misconception(
                "The last block is missing: it may be shorter, and it needs a scale too. Open hint 2.",
                lambda w, size: _flat_absmax(w, size, drop=True),
            ),
            Misconception(
                "That is one scale for the whole tensor, which is what blocks are there to avoid. Open hint 1.",
                lambda w, size: w.abs().max(),
            ),
            Misconception(
                "That is one scale a row. Blocks run over the flattened tensor and do not stop at the end of a row. "
                "Open hint 1.",
                lambda w, size: w.abs().amax(1),
            ),
            Misconception(
                "That is the mean magnitude; weights above it would not fit into [-1, 1]. Open hint 1.",
                lambda w, size: torch.stack([part.abs().mean() for part in w.reshape(-1).split(size)]),
            ),
        ),
        tolerance=1e-6,
        describe=with_arguments(a_value_each(1e-6, size=lambda arguments: arguments[1])),
    ),
    Exercise(
        "nearest-code",
        _levels_case,
        nearest_code,
        (
            Misconception(
                "Right, except for numbers exactly halfway between two levels: a tie takes the lower code. "
                "Open hint 2.",
                lambda x, levels: torch.bucketize(x, (levels[1:] + levels[:-1]) / 2, right=True).to(torch.uint8),
            ),
            Misconception(
                "That takes the highest level not above the number. The nearest may be the next one. Open hint 1.",
                lambda x, levels: (torch.bucketize(x, levels, right=True) - 1).to(torch.uint8),
            ),
            Misconception(
                "That takes the lowest level not below the number. The nearest may be the one before. Open hint 1.",
                lambda x, levels: torch.bucketize(x, levels).to(torch.uint8),
            ),
            Misconception(
                "These are the levels; the codes, their places in the table, are wanted. Open hint 1.",
                lambda x, levels: levels[nearest_code(x, levels).long()],
            ),
            Misconception(
                "The right codes, in the wrong dtype: convert them to torch.uint8. Open hint 3.",
                lambda x, levels: nearest_code(x, levels).long(),
            ),
            Misconception(
                "That rounds as if the levels were equally spaced. Compare with the levels you are given. Open hint 1.",
                lambda x, levels: ((x + 1) * 7.5).round().to(torch.uint8),
            ),
        ),
        describe=with_arguments(_describe_codes),
    ),
    Exercise(
        "pack-nibbles",
        lambda generator, number: (
            torch.randint(0, 16, ((7, 8, 1, 2, 33, 64, 5, 100)[number],), generator=generator, dtype=torch.uint8),
        ),
        pack_nibbles,
        (
            Misconception(
                "These are the right codes with the nibbles swapped: the first of a pair goes into the high nibble, "
                "times 16. Open hint 1.",
                lambda codes: (pack_nibbles(codes) % 16) * 16 + pack_nibbles(codes) // 16,
            ),
            Misconception(
                "An odd last code is padded with 0, and code 0 is NF4's -1. Pad with the code of zero, 7. Open hint 2.",
                _padded_with(0),
            ),
            Misconception(
                "An odd last code is padded with 15, NF4's 1. Pad with the code of zero, 7. Open hint 2.",
                _padded_with(15),
            ),
            Misconception(
                "An odd last code is lost. It needs a byte too, filled up with the code of zero. Open hint 2.",
                lambda codes: pack_nibbles(codes)[: len(codes) // 2],
            ),
            Misconception(
                "That pairs the first half with the second half; neighbours share a byte. Open hint 1.", _halves
            ),
            Misconception(
                "The right numbers in a wider dtype: a byte is torch.uint8, else nothing is saved. Open hint 3.",
                lambda codes: pack_nibbles(codes).long(),
            ),
        ),
        describe=with_arguments(packed_codes),
    ),
)
