"""Wrong answers to the first exercises of notebook 01."""

import torch

from wrong_answers import wrong


@wrong("decode", says="fifteen steps")
def sixteen_steps(code, low, high):
    step = (high - low) / 16
    return code * step + low


@wrong("decode", says="code 0 stands for `low`")
def from_zero(code, low, high):
    return code / 15 * (high - low)


@wrong("decode", says="`high` alone")
def steps_of_high(code, low, high):
    return low + code * (high / 15)


@wrong("decode", says="counted from 1")
def from_one(code, low, high):
    return torch.linspace(low, high, 16, dtype=torch.float64)[code].item() - (high - low) / 15


@wrong("block-absmax", says="not the largest magnitude")
def largest(weight, block_size):
    return torch.stack([block.max() for block in weight.flatten().split(block_size)])


@wrong("block-absmax", says="The last block is missing")
def whole_blocks(weight, block_size):
    flat = weight.flatten()
    whole = len(flat) // block_size * block_size
    return flat[:whole].reshape(-1, block_size).abs().amax(1)


@wrong("block-absmax", says="one scale for the whole tensor")
def one_scale(weight, block_size):
    return torch.max(torch.abs(weight))


@wrong("block-absmax", says="one scale a row")
def one_a_row(weight, block_size):
    return torch.stack([row.abs().max() for row in weight])


@wrong("block-absmax", says="RuntimeError")
def whole_tensors_only(weight, block_size):
    return weight.view(-1, block_size).abs().amax(1)


@wrong("nearest-code", says="a tie takes the lower code")
def ties_upwards(x, levels):
    return (x[:, None] >= (levels[1:] + levels[:-1]) / 2).sum(1).to(torch.uint8)


@wrong("nearest-code", says="highest level not above")
def floor(x, levels):
    return ((x[:, None] >= levels).sum(1) - 1).to(torch.uint8)


@wrong("nearest-code", says="These are the levels")
def gives_levels(x, levels):
    return levels[(x[:, None] - levels).abs().argmin(1)]


@wrong("nearest-code", says="wrong dtype")
def wide(x, levels):
    return (x[:, None] - levels).abs().argmin(1)


@wrong("nearest-code", says="equally spaced")
def equal_steps(x, levels):
    return ((x + 1) / 2 * 15).round().to(torch.uint8)


@wrong("pack-nibbles", says="nibbles swapped")
def swapped(codes):
    codes = torch.cat((codes, torch.full((len(codes) % 2,), 7, dtype=torch.uint8)))
    return codes[::2] | (codes[1::2] << 4)


@wrong("pack-nibbles", says="padded with 0")
def padded_with_zero(codes):
    codes = torch.nn.functional.pad(codes, (0, len(codes) % 2))
    return (codes[::2] << 4) | codes[1::2]


@wrong("pack-nibbles", says="An odd last code is lost")
def drops_the_odd_one(codes):
    codes = codes[: len(codes) // 2 * 2]
    return (codes[::2] << 4) + codes[1::2]


@wrong("pack-nibbles", says="first half with the second half")
def halves(codes):
    if len(codes) % 2:
        codes = torch.cat((codes, torch.tensor([7], dtype=torch.uint8)))
    high, low = codes.chunk(2)
    return (high << 4) | low


@wrong("pack-nibbles", says="wider dtype")
def wide_bytes(codes):
    codes = torch.cat((codes.long(), torch.full((len(codes) % 2,), 7)))
    return codes[::2] * 16 + codes[1::2]


@wrong("block-absmax", says="blocks differ, the first is block ")
def magnitude_of_the_largest(weight, block_size):
    return torch.stack([block.max().abs() for block in weight.flatten().split(block_size)])


@wrong("nearest-code", says="code 14 (level")
def last_midpoint_forgotten(x, levels):
    return torch.bucketize(x, ((levels[1:] + levels[:-1]) / 2)[:-1]).to(torch.uint8)


@wrong("pack-nibbles", says="the first is byte 0: codes")
def times_eight(codes):
    codes = torch.cat((codes, torch.full((len(codes) % 2,), 7, dtype=torch.uint8)))
    return codes[::2] * 8 + codes[1::2]


@wrong("pack-nibbles", says="All high nibbles are right.")
def first_one_twice(codes):
    return codes[::2] * 16 + codes[::2]


@wrong("pack-nibbles", says="All bytes before the last are right.")
def padded_with_eight(codes):
    codes = torch.cat((codes, torch.full((len(codes) % 2,), 8, dtype=torch.uint8)))
    return codes[::2] * 16 + codes[1::2]


@wrong("decode", says="count down from `high`")
def from_high(code, low, high):
    return high - (high - low) / 15 * code
