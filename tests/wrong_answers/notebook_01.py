"""Wrong answers to the exercises of notebook 01."""

import math

import numpy as np
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


@wrong("block-absmax", says="Take magnitudes first")
def magnitude_of_the_largest(weight, block_size):
    return torch.stack([block.max().abs() for block in weight.flatten().split(block_size)])


@wrong("nearest-code", says="code 14 (level")
def last_midpoint_forgotten(x, levels):
    return torch.bucketize(x, ((levels[1:] + levels[:-1]) / 2)[:-1]).to(torch.uint8)


@wrong("pack-nibbles", says="The high nibble is worth 16")
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


def _edge(bits):
    return 1 - (1 / 2 ** (bits + 1) + 1 / (2 * (2**bits - 1))) / 2


def _sides(bits, edge):
    def side(count):
        return torch.special.ndtri(torch.linspace(edge, 0.5, count + 1, dtype=torch.float64))[:-1]

    return side(2 ** (bits - 1)), -side(2 ** (bits - 1) - 1)


@wrong("normal-float", says="no exact zero")
def symmetric(bits):
    levels = torch.special.ndtri(torch.linspace(1 - _edge(bits), _edge(bits), 2**bits))
    return levels / levels.max()


@wrong("normal-float", says="divide by the largest")
def not_divided(bits):
    positive, negative = _sides(bits, _edge(bits))
    return torch.cat((positive, negative, torch.zeros(1))).sort().values.float()


@wrong("normal-float", says="sides are swapped")
def swapped_sides(bits):
    positive, negative = _sides(bits, _edge(bits))
    levels = torch.cat((-positive, -negative, torch.zeros(1))).sort().values
    return (levels / levels.abs().max()).float()


@wrong("normal-float", says="twice or more")
def three_zeros(bits):
    positive, negative = _sides(bits, _edge(bits))
    levels = torch.cat((positive, torch.zeros(3), negative)).sort().values
    return (levels / levels.max()).float()


@wrong("normal-float", says="NaN or an infinity")
def certain(bits):
    positive, negative = _sides(bits, 1.0)
    return torch.cat((positive, torch.zeros(1), negative)).sort().values.float() / positive.max().float()


@wrong("bits-per-weight", says="the codes alone")
def four(block_size, constants, double_quant):
    return 4


@wrong("bits-per-weight", says="There may be two")
def one_constant(block_size, constants, double_quant):
    return 4 + (8 / block_size + 1 / 8 / block_size if double_quant else 32 / block_size)


@wrong("bits-per-weight", says="need scales themselves")
def no_second_level(block_size, constants, double_quant):
    return 4 + (8 if double_quant else 32) * constants / block_size


@wrong("bits-per-weight", says="Double quantization is ignored")
def always_32(block_size, constants, double_quant):
    return (4 * block_size + 32 * constants) / block_size


@wrong("predict-and-measure", says="averages the steps")
def mean_of_steps(weight, block_size):
    blocks = weight.reshape(-1, block_size)
    step = blocks.abs().amax(1, keepdim=True) / 7
    error = (blocks / step).round() * step - blocks
    return step.mean().item() / math.sqrt(12), error.square().mean().sqrt().item()


@wrong("predict-and-measure", says="a whole step")
def whole_step(weight, block_size):
    blocks = weight.reshape(-1, block_size)
    step = blocks.abs().amax(1, keepdim=True) / 7
    error = (blocks / step).round() * step - blocks
    return step.square().mean().sqrt().item(), error.square().mean().sqrt().item()


@wrong("predict-and-measure", says="half a step")
def half_a_step(weight, block_size):
    blocks = weight.reshape(-1, block_size)
    step = blocks.abs().amax(1, keepdim=True) / 7
    error = (blocks / step).round() * step - blocks
    return step.square().mean().sqrt().item() / 2, error.square().mean().sqrt().item()


@wrong("predict-and-measure", says="a mean of magnitudes")
def mean_absolute(weight, block_size):
    blocks = weight.reshape(-1, block_size)
    step = blocks.abs().amax(1, keepdim=True) / 7
    error = (blocks / step).round() * step - blocks
    return (step.square().mean() / 12).sqrt().item(), error.abs().mean().item()


@wrong("bits-per-weight", says="you count them for one")
def second_level_shared(block_size, constants, double_quant):
    return 4 + (8 * constants / block_size + 1 / (8 * block_size) if double_quant else 32 * constants / block_size)


@wrong("bits-per-weight", says="divide by both")
def second_level_for_weights(block_size, constants, double_quant):
    return 4 + constants * (8 / block_size + 32 / 256 if double_quant else 32 / block_size)


@wrong("predict-and-measure", says="another number of steps")
def sixteen_levels(weight, block_size):
    blocks = weight.reshape(-1, block_size)
    step = 2 * blocks.abs().amax(1, keepdim=True) / 15
    error = (blocks / step).round() * step - blocks
    return (step.square().mean() / 12).sqrt().item(), error.square().mean().sqrt().item()


@wrong("predict-and-measure", says="one step for the whole tensor")
def one_step(weight, block_size):
    step = weight.abs().max() / 7
    error = (weight / step).round() * step - weight
    return step.item() / math.sqrt(12), error.square().mean().sqrt().item()


@wrong("counterexamples", says="None of your blocks")
def random_blocks(levels):
    generator = torch.Generator().manual_seed(0)
    blocks = torch.rand(3, 16, generator=generator)
    return list(blocks)


@wrong("counterexamples", says="random numbers do not find")
def random_with_a_negative_outlier(levels):
    blocks = torch.rand(3, 16, generator=torch.Generator().manual_seed(0))
    blocks[:, 4] = -2.0
    return list(blocks)


@wrong("counterexamples", says="does not expose the tie")
def a_level_instead_of_a_midpoint(levels):
    block = torch.zeros(16)
    block[0], block[1] = 1.0, levels[5]
    return [-torch.arange(16.0), block, torch.zeros(16)]


@wrong("counterexamples", says="does not expose the missing abs()")
def positive_outlier(levels):
    block = torch.zeros(16)
    block[0], block[1] = 1.0, (levels[3] + levels[4]) / 2
    return [torch.arange(16.0), block, torch.zeros(16)]


@wrong("counterexamples", says="does not expose the division")
def nearly_zero(levels):
    block = torch.zeros(16)
    block[0], block[1] = 1.0, (levels[3] + levels[4]) / 2
    return [-torch.arange(16.0), block, torch.full((16,), 1e-30)]


@wrong("counterexamples", says="finite float32")
def breaks_every_version(levels):
    return [torch.full((16,), float("nan"))] * 3


@wrong("counterexamples", says="Your first and second block expose nothing")
def two_in_each_others_place(levels):
    tie = torch.zeros(16)
    tie[0], tie[1] = 1.0, (levels[3] + levels[4]) / 2
    return [tie, -torch.arange(16.0), torch.zeros(16)]


@wrong("one-side", says="belongs to no side")
def with_the_middle(count, edge):
    return torch.special.ndtri(torch.linspace(edge, 0.5, count + 1))


@wrong("one-side", says="one probability more than levels")
def a_step_too_wide(count, edge):
    return torch.special.ndtri(torch.linspace(edge, 0.5, count, dtype=torch.float64))[:-1]


@wrong("one-side", says="These levels are equally spaced")
def equally_spaced(count, edge):
    last = torch.special.ndtri(torch.tensor(edge))
    return last * torch.arange(count, 0, -1) / count


@wrong("one-side", says="`ndtr` gives the probability of a number")
def the_other_way_round(count, edge):
    return torch.special.ndtr(torch.linspace(edge, 0.5, count + 1)[:-1])


@wrong("signed-absmax", says="It should become -1")
def extreme_to_one(weight, block_size):
    return torch.stack([max(block, key=abs) for block in weight.flatten().split(block_size)])


@wrong("signed-absmax", says="the ordinary absmax")
def without_sign(weight, block_size):
    return torch.stack([block.abs().max() for block in weight.flatten().split(block_size)])


@wrong("signed-absmax", says="All scales are negative")
def all_negative(weight, block_size):
    return torch.stack([block.abs().max() for block in weight.flatten().split(block_size)]) * -1


@wrong("signed-absmax", says="the sign alone")
def only_the_sign(weight, block_size):
    return torch.stack([-block[block.abs().argmax()].sign() for block in weight.flatten().split(block_size)])


@wrong("decode", says="`//` rounds a step down")
def whole_number_steps(code, low, high):
    step = (high - low) // 15
    return low + code * step


@wrong("decode", says="you took 1 over 15")
def fifteenths_of_one(code, low, high):
    return low + code / 15


@wrong("block-absmax", says="want whole blocks only. Open hint 2. RuntimeError")
def rows_of_whole_blocks(weight, block_size):
    return weight.reshape(-1, block_size).abs().max(dim=1).values


@wrong("block-absmax", says="want whole blocks only. Open hint 2. ValueError")
def whole_blocks_of_numpy(weight, block_size):
    w = weight.numpy().reshape(-1, block_size)
    return torch.from_numpy(np.abs(w).max(axis=1))


@wrong("block-absmax", says="counts an empty one")
def an_empty_block_at_the_end(weight, block_size):
    w = weight.flatten()
    return torch.stack([w[i * block_size : (i + 1) * block_size].abs().max() for i in range(len(w) // block_size + 1)])


@wrong("predict-and-measure", says="keep it as a column")
def steps_no_column(weight, block_size):
    absmax = weight.abs().amax(1)
    step = absmax / 7
    q = (weight / step).round()
    return (step.square().mean() / 12).sqrt().item(), (weight - q * step).square().mean().sqrt().item()


@wrong("predict-and-measure", says="a mean of the blocks' own errors")
def means_of_blocks(weight, block_size):
    absmax = weight.abs().amax(1, keepdim=True)
    step = absmax / 7
    q = (weight / step).round().clamp(-7, 7)
    err = (weight - q * step).square().mean(1).sqrt().mean()
    return (step / 12**0.5).mean().item(), err.item()


@wrong("nearest-code", says="make a column of the numbers")
def no_column(x, levels):
    return (x - levels).abs().argmin().to(torch.uint8)


@wrong("pack-nibbles", says="append one before you make pairs. Open hint 2. RuntimeError")
def pairs_of_an_odd_number(codes):
    pairs = codes.view(-1, 2)
    return pairs[:, 0] * 16 + pairs[:, 1]


@wrong("pack-nibbles", says="append one before you make pairs. Open hint 2. RuntimeError")
def partner_missing(codes):
    return codes[::2] * 16 + codes[1::2]


@wrong("pack-nibbles", says="`+` comes before `<<`")
def plus_before_shift(codes):
    out = []
    for i in range(0, len(codes), 2):
        hi = codes[i]
        lo = codes[i + 1] if i + 1 < len(codes) else 7
        out.append(hi << 4 + lo)
    return torch.tensor(out, dtype=torch.uint8)


@wrong("one-side", says="begin with the zero and leave out the outermost")
def upwards_without_the_edge(count, edge):
    return torch.special.ndtri(torch.linspace(0.5, edge, count + 1))[:-1]


@wrong("normal-float", says="the positive side with a minus and without one level")
def negative_side_a_mirror(bits):
    n = 2**bits
    edge = ((1 - 1 / (2 * n)) + (1 - 1 / (2 * (n - 1)))) / 2
    up = torch.special.ndtri(torch.linspace(edge, 0.5, n // 2 + 1)[:-1])
    levels = torch.cat([-up[1:], torch.zeros(1), up])
    return (levels / levels.max()).sort().values


@wrong("normal-float", says="the outermost probability of four bits")
def edge_of_four_bits(bits):
    def one_side(count, edge):
        return torch.special.ndtri(torch.linspace(edge, 0.5, count + 1).double())[:-1].float()

    n = 2**bits
    pos = one_side(n // 2, 0.9677083)
    neg = -one_side(n // 2 - 1, 0.9677083)
    lv = torch.cat([neg, torch.zeros(1), pos.flip(0)])
    return lv / lv.max()
