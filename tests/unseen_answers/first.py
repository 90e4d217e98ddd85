"""Answers written before the misconceptions of their exercises were read: wrong ones and unusual right ones."""

import json
import math

import numpy as np
import torch

from unseen_answers import right, wrong

# ---- 00


@wrong("weights-in-gb", says="These are MB, 10^6 bytes each; the answer is in GB")
def megabytes(parameters, bits):
    return parameters * bits / 8 / 10**6


@wrong("weights-in-gb", says="It is rounded to 2 places")
def rounded_to_two_places(parameters, bits):
    return round(parameters * bits / 8 / 1e9, 2)


@wrong("weights-in-gb", says="returned a str; a float is wanted")
def a_sentence(parameters, bits):
    return f"{parameters * bits / 8 / 1e9} GB"


@wrong("weights-in-gb", says="Is there a `return`?")
def printed(parameters, bits):
    print(parameters * bits / 8 / 1e9, end="")


@right("weights-in-gb")
def gb_in_float32(parameters, bits):
    return np.float32(parameters) * np.float32(bits) / np.float32(8e9)


@right("weights-in-gb")
def gb_as_a_tensor(parameters, bits):
    return torch.tensor(parameters) * bits / 8 / 1e9


# ---- 01


@wrong("decode", says="That divides the range by 16. Sixteen numbers have fifteen")
def sixteen_steps(code, low, high):
    return low + code * (high - low) / 16


@wrong("decode", says="The range need not start at zero: code 0 stands for `low`.")
def from_zero(code, low, high):
    return code / 15 * (high - low)


@wrong("decode", says="You count down from `high`. Code 0 is the lowest value,")
def from_the_top(code, low, high):
    return high - code * (high - low) / 15


@wrong("decode", says="That takes the range to be as wide below zero as above. It")
def symmetric_only(code, low, high):
    return high * (2 * code / 15 - 1)


@right("decode")
def by_linspace(code, low, high):
    return np.linspace(low, high, 16)[code]


@right("decode")
def by_lerp(code, low, high):
    return torch.lerp(torch.tensor(low), torch.tensor(high), code / 15)


@wrong("block-absmax", says="Each row is cut by itself. Blocks run over the flattened")
def rows_cut_alone(weight, block_size):
    rows = weight.reshape(-1, weight.shape[-1]) if weight.ndim else weight.reshape(1, 1)
    return torch.stack([part.abs().max() for row in rows for part in row.split(block_size)])


@wrong("block-absmax", says="The last block is missing: it may be shorter, and it needs")
def rest_dropped(weight, block_size):
    flat = weight.flatten()
    n = len(flat) // block_size
    return flat[: n * block_size].view(n, block_size).abs().amax(1)


@wrong("block-absmax", says="its dtype is torch.float64 instead of torch.float32")
def in_double(weight, block_size):
    return torch.stack([part.abs().max() for part in weight.double().flatten().split(block_size)])


@wrong("block-absmax", says="It would be right with `weight.T` for `weight`. With")
def read_by_columns(weight, block_size):
    flat = weight.movedim(-1, 0).flatten() if weight.ndim > 1 else weight.flatten()
    return torch.stack([part.abs().max() for part in flat.split(block_size)])


@wrong("block-absmax", says="That makes `block_size` blocks; it is the number of weights")
def so_many_blocks(weight, block_size):
    return torch.stack([part.abs().max() for part in weight.flatten().chunk(block_size)])


@wrong("block-absmax", says="The numbers are right, but in a list; a tensor is wanted.")
def list_of_floats(weight, block_size):
    return [part.abs().max().item() for part in weight.flatten().split(block_size)]


@right("block-absmax")
def by_reduceat(weight, block_size):
    flat = weight.numpy().ravel()
    return torch.from_numpy(np.maximum.reduceat(np.abs(flat), np.arange(0, flat.size, block_size)))


@right("block-absmax")
def larger_of_both_ends(weight, block_size):
    flat = weight.reshape(-1)
    found = torch.zeros(math.ceil(len(flat) / block_size))
    for k in range(len(found)):
        block = flat[k * block_size : (k + 1) * block_size]
        found[k] = max(block.max().item(), -block.min().item())
    return found


@wrong("nearest-code", says="That takes the lowest level not below the number. The")
def bucketed_by_levels(x, levels):
    return torch.bucketize(x, levels).to(torch.uint8)


@wrong("nearest-code", says="That rounds as if the levels were equally spaced. Compare")
def equal_steps(x, levels):
    return ((x + 1) * 7.5).round().to(torch.uint8)


@wrong("nearest-code", says="The right codes, in the wrong dtype: convert them to")
def left_as_int64(x, levels):
    return torch.bucketize(x, (levels[1:] + levels[:-1]) / 2)


@wrong("nearest-code", says="The smallest difference is the most negative one; the")
def smallest_signed_difference(x, levels):
    return (x[:, None] - levels).argmin(1).to(torch.uint8)


@wrong("nearest-code", says="These are the levels; the codes, their places in the table,")
def the_levels_themselves(x, levels):
    return levels[torch.bucketize(x, (levels[1:] + levels[:-1]) / 2)]


@right("nearest-code")
def counted_midpoints(x, levels):
    midpoints = (levels[1:] + levels[:-1]) / 2
    return (x[:, None] > midpoints[None, :]).sum(1, dtype=torch.uint8)


@right("nearest-code")
def searched_in_numpy(x, levels):
    levels = levels.numpy()
    return torch.from_numpy(np.searchsorted((levels[1:] + levels[:-1]) / 2, x.numpy()).astype(np.uint8))


@wrong("pack-nibbles", says="An odd last code is padded with 0, and code 0 is NF4's -1.")
def padded_with_zero(codes):
    if len(codes) % 2:
        codes = torch.cat([codes, torch.zeros(1, dtype=torch.uint8)])
    return codes[::2] * 16 + codes[1::2]


@wrong("pack-nibbles", says="That pairs the first half with the second half; neighbours")
def first_half_with_second(codes):
    if len(codes) % 2:
        codes = torch.cat([codes, torch.tensor([7], dtype=torch.uint8)])
    half = len(codes) // 2
    return (codes[:half] << 4) | codes[half:]


@wrong("pack-nibbles", says="An odd last code is lost. It needs a byte too, filled up")
def odd_one_dropped(codes):
    n = len(codes) // 2
    return (codes[0 : 2 * n : 2] << 4) | codes[1 : 2 * n : 2]


@wrong("pack-nibbles", says="The filler stands in front, so that all codes have moved by")
def partner_in_front(codes):
    if len(codes) % 2:
        codes = torch.cat([torch.tensor([7], dtype=torch.uint8), codes])
    return (codes[::2] << 4) | codes[1::2]


@wrong("pack-nibbles", says="The high nibble is worth 16: four bits to the left. Open")
def shifted_by_three(codes):
    if len(codes) % 2:
        codes = torch.cat([codes, torch.tensor([7], dtype=torch.uint8)])
    return (codes[::2] << 3) | codes[1::2]


@right("pack-nibbles")
def byte_by_byte(codes):
    numbers = codes.tolist() + [7] * (len(codes) % 2)
    return torch.tensor([16 * numbers[k] + numbers[k + 1] for k in range(0, len(numbers), 2)], dtype=torch.uint8)


@right("pack-nibbles")
def filled_with_sevens(codes):
    pairs = torch.full((-(-len(codes) // 2), 2), 7, dtype=torch.uint8)
    pairs.view(-1)[: len(codes)] = codes
    return pairs[:, 0] * 16 ^ pairs[:, 1]


def _outermost(n):
    return 1 - (1 / (2 * n) + 1 / (2 * (n - 1))) / 2


@wrong("normal-float", says="The sides are swapped: the positive side has one level")
def more_below_than_above(bits):
    n = 2**bits
    p = torch.linspace(0.5, _outermost(n), n // 2 + 1, dtype=torch.float64)
    q = torch.linspace(0.5, _outermost(n), n // 2, dtype=torch.float64)
    low, high = -torch.special.ndtri(p)[1:].flip(0), torch.special.ndtri(q)
    found = torch.cat([low, high])
    return (found / found.abs().max()).float()


@wrong("normal-float", says="its dtype is torch.float64 instead of torch.float32")
def nf_in_double(bits):
    n = 2**bits
    p = torch.linspace(0.5, _outermost(n), n // 2 + 1, dtype=torch.float64)
    q = torch.linspace(0.5, _outermost(n), n // 2, dtype=torch.float64)
    found = torch.cat([-torch.special.ndtri(q)[1:].flip(0), torch.special.ndtri(p)])
    return found / found.abs().max()


@wrong("normal-float", says="These are quantiles in standard deviations; divide by the")
def never_normalized(bits):
    n = 2**bits
    p = torch.linspace(0.5, _outermost(n), n // 2 + 1, dtype=torch.float64)
    q = torch.linspace(0.5, _outermost(n), n // 2, dtype=torch.float64)
    return torch.cat([-torch.special.ndtri(q)[1:].flip(0), torch.special.ndtri(p)]).float()


@wrong("normal-float", says="There is no exact zero: you cut the bell curve")
def one_run_of_quantiles(bits):
    n = 2**bits
    found = torch.special.ndtri(torch.linspace(1 - _outermost(n), _outermost(n), n, dtype=torch.float64))
    return (found / found.abs().max()).float()


@wrong("normal-float", says="right numbers in another order")
def negative_side_not_turned(bits):
    n = 2**bits
    p = torch.linspace(0.5, _outermost(n), n // 2 + 1, dtype=torch.float64)
    q = torch.linspace(0.5, _outermost(n), n // 2, dtype=torch.float64)
    found = torch.cat([-torch.special.ndtri(q)[1:], torch.special.ndtri(p)])
    return (found / found.abs().max()).float()


@right("normal-float")
def by_the_standard_library(bits):
    from statistics import NormalDist

    n, top = 2**bits, _outermost(2**bits)
    above = [NormalDist().inv_cdf(0.5 + (top - 0.5) * k / (n // 2)) for k in range(1, n // 2 + 1)]
    below = [-NormalDist().inv_cdf(0.5 + (top - 0.5) * k / (n // 2 - 1)) for k in range(1, n // 2)]
    return torch.tensor(sorted([*below, 0.0, *above])) / above[-1]


@right("normal-float")
def in_float32_all_the_way(bits):
    n = 2**bits
    p = torch.linspace(_outermost(n), 0.5, n // 2 + 1)[:-1]
    q = torch.linspace(_outermost(n), 0.5, n // 2)[:-1]
    found = torch.cat([torch.special.ndtri(p), torch.zeros(1), -torch.special.ndtri(q)]).sort().values
    return found / found.max()


@wrong("bits-per-weight", says="That counts one constant for each block. There may be two")
def constants_forgotten(block_size, constants, double_quant):
    return 4 + (8 / block_size + 32 / (256 * block_size) if double_quant else 32 / block_size)


@wrong("bits-per-weight", says="A second-level scale serves 256 constants, and each of")
def second_level_not_per_block(block_size, constants, double_quant):
    return 4 + constants * (8 / block_size + 32 / 256 if double_quant else 32 / block_size)


@wrong("bits-per-weight", says="Each kind of constant has second-level scales of its own;")
def second_level_shared_by_both(block_size, constants, double_quant):
    if double_quant:
        return 4 + 8 * constants / block_size + 32 / (block_size * 256)
    return 4 + 32 * constants / block_size


@wrong("bits-per-weight", says="All of it is 0.125 times what it should be: bytes, where")
def in_bytes(block_size, constants, double_quant):
    return (4 + constants * (8 + 32 / 256 if double_quant else 32) / block_size) / 8


@right("bits-per-weight")
def counted_over_many(block_size, constants, double_quant):
    weights = block_size * 256 * 1000
    blocks = weights // block_size
    bits = 4 * weights + (blocks * 8 + blocks // 256 * 32 if double_quant else blocks * 32) * constants
    return np.float64(bits) / weights


@right("bits-per-weight")
def bits_in_float32(block_size, constants, double_quant):
    per_constant = torch.where(torch.tensor(double_quant), 8 + 32 / 256, 32.0)
    return 4 + constants * per_constant / block_size


@wrong("predict-and-measure")
def a_step_of_an_eighth(weight, block_size):
    scale = weight.abs().amax(1, keepdim=True)
    rounded = (weight / scale * 7).round() / 7 * scale
    return ((scale / 8) ** 2 / 12).mean().sqrt().item(), (weight - rounded).pow(2).mean().sqrt().item()


@wrong("predict-and-measure", says="The two are swapped: predicted first, then measured.")
def measured_first(weight, block_size):
    scale = weight.abs().amax(1, keepdim=True)
    rounded = (weight / scale * 7).round() / 7 * scale
    return (weight - rounded).pow(2).mean().sqrt().item(), ((scale / 7) ** 2 / 12).mean().sqrt().item()


@wrong("predict-and-measure", says="The prediction averages the steps; it is their squares that")
def mean_of_the_scales(weight, block_size):
    scale = weight.abs().amax(1, keepdim=True)
    rounded = (weight / scale * 7).round() / 7 * scale
    return (scale.mean() / 7 / 12**0.5).item(), (weight - rounded).pow(2).mean().sqrt().item()


@wrong("predict-and-measure", says="That is one step for the whole tensor; each block has the")
def one_scale_for_all(weight, block_size):
    scale = weight.abs().max()
    rounded = (weight / scale * 7).round() / 7 * scale
    return (scale / 7 / 12**0.5).item(), (weight - rounded).pow(2).mean().sqrt().item()


@wrong("predict-and-measure", says="These are mean squares; take the root of both. Open hint 3.")
def squared_errors(weight, block_size):
    scale = weight.abs().amax(1, keepdim=True)
    rounded = (weight / scale * 7).round() / 7 * scale
    return ((scale / 7) ** 2 / 12).mean().item(), (weight - rounded).pow(2).mean().item()


@right("predict-and-measure")
def in_numpy(weight, block_size):
    w = weight.numpy()
    step = np.abs(w).max(1, keepdims=True) / 7
    return np.sqrt(np.mean(step**2) / 12), np.sqrt(np.mean((w - np.round(w / step) * step) ** 2))


@right("predict-and-measure")
def block_by_block(weight, block_size):
    predicted, measured = 0.0, 0.0
    for block in weight.flatten().split(block_size):
        step = block.abs().max() / 7
        predicted += step.square() / 12 * len(block)
        measured += (block - torch.round(block / step) * step).square().sum()
    return (predicted / weight.numel()).sqrt(), (measured / weight.numel()).sqrt()


@wrong("counterexamples")
def in_the_opposite_order(levels):
    first = -torch.ones(16)
    first[0] = 0.3
    second = torch.zeros(16)
    second[0], second[1] = 1.0, (levels[3] + levels[4]) / 2
    return [torch.zeros(16), second, first]


@wrong("counterexamples", says="Your second and third block expose nothing: random numbers")
def random_blocks(levels):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(16, generator=generator) for _ in range(3)]


@wrong("counterexamples", says="Your third block does not expose the division: when does it")
def not_a_number(levels):
    first = -torch.ones(16)
    first[0] = 0.3
    second = torch.zeros(16)
    second[0], second[1] = 1.0, (levels[3] + levels[4]) / 2
    return [first, second, torch.full((16,), math.nan)]


@wrong("counterexamples", says="Your second block does not expose the tie. Random numbers")
def midpoints_without_an_extreme(levels):
    first = -torch.ones(16)
    first[0] = 0.3
    second = torch.zeros(16)
    second[:15] = (levels[1:] + levels[:-1]) / 2
    return [first, second, torch.zeros(16)]


@wrong("counterexamples", says="returned 2 values instead of 3")
def only_two(levels):
    first = -torch.ones(16)
    first[0] = 0.3
    return [first, torch.zeros(16)]


@right("counterexamples")
def as_a_tuple(levels):
    first = -torch.arange(1.0, 17.0)
    middle = torch.cat([(levels[1:] + levels[:-1]) / 2, torch.tensor([-1.0])])
    return first, middle, torch.zeros(16)


@right("counterexamples")
def of_numpy(levels):
    first = np.full(16, -2, dtype=np.float32)
    first[3] = 1
    second = np.full(16, ((levels[7] + levels[8]) / 2).item(), dtype=np.float32)
    second[-1] = 1
    return [torch.from_numpy(first), torch.from_numpy(second), torch.from_numpy(np.zeros(16, dtype=np.float32))]


# ---- 02


@wrong("scale-from-example", says="That is one over the scale: weight = scale * level, so")
def turned_over(weight, code, levels):
    return levels[code] / weight


@wrong("scale-from-example", says="You divided by the code itself. A code is a place in the")
def by_the_code(weight, code, levels):
    return weight / code if code else weight


@wrong("scale-from-example", says="You compute the level from the code, as if levels were")
def int4_only(weight, code, levels):
    return weight * 7 / (code - 8) if code != 8 else 0.0


@wrong("scale-from-example", says="That is a weight decoded once more; the scale is what the")
def multiplied(weight, code, levels):
    return weight * levels[code]


@right("scale-from-example")
def scale_in_float32(weight, code, levels):
    return np.float32(weight) / np.float32(levels[code])


@right("scale-from-example")
def by_linear_algebra(weight, code, levels):
    return torch.linalg.solve(torch.tensor([[levels[code]]]), torch.tensor([weight]))[0]


@wrong("weights-of-a-code", says="These are the neighbouring levels; the border lies halfway")
def neighbouring_levels(code, absmax, levels):
    return levels[max(code - 1, 0)] * absmax, levels[min(code + 1, 15)] * absmax


@wrong("weights-of-a-code", says="The right borders, the highest first; the lowest is wanted")
def highest_first(code, absmax, levels):
    low = levels[0] if code == 0 else (levels[code - 1] + levels[code]) / 2
    high = levels[15] if code == 15 else (levels[code] + levels[code + 1]) / 2
    return high * absmax, low * absmax


@wrong("weights-of-a-code", says="These are the borders before scaling: multiply them by")
def absmax_forgotten(code, absmax, levels):
    low = levels[0] if code == 0 else (levels[code - 1] + levels[code]) / 2
    high = levels[15] if code == 15 else (levels[code] + levels[code + 1]) / 2
    return low, high


@wrong("weights-of-a-code", says="No weight of a block lies beyond its absmax, so the first")
def endless_ends(code, absmax, levels):
    low = -math.inf if code == 0 else (levels[code - 1] + levels[code]) / 2
    high = math.inf if code == 15 else (levels[code] + levels[code + 1]) / 2
    return low * absmax, high * absmax


@wrong("weights-of-a-code", says="`levels[-1]` is the *last* level: code 0 has no level below")
def round_the_corner(code, absmax, levels):
    low = (levels[code - 1] + levels[code]) / 2
    high = (levels[code] + levels[(code + 1) % 16]) / 2
    return low * absmax, high * absmax


@right("weights-of-a-code")
def edges_in_numpy(code, absmax, levels):
    levels = np.array(levels, dtype=np.float32)
    edges = np.concatenate([levels[:1], (levels[1:] + levels[:-1]) / 2, levels[-1:]]) * np.float32(absmax)
    return edges[code], edges[code + 1]


@right("weights-of-a-code")
def edges_in_a_list(code, absmax, levels):
    padded = [levels[0], *levels, levels[-1]]
    return [absmax * sum(padded[k : k + 2]) / 2 for k in (code, code + 1)]


@wrong("dequantize-packed", says="These are the right codes with the nibbles swapped: the")
def low_nibble_first(packed, scales, table, block_size, n):
    codes = torch.stack([packed & 15, packed >> 4], 1).flatten()[:n].long()
    return table[codes] * scales.repeat_interleave(block_size)[:n]


@wrong("dequantize-packed", says="The scales are dealt out in turn; neighbours share one: the")
def scales_in_turn(packed, scales, table, block_size, n):
    codes = torch.stack([packed >> 4, packed & 15], 1).flatten()[:n].long()
    return table[codes] * scales.repeat(block_size)[:n]


@wrong("dequantize-packed", says="A scale is used for `block_size` bytes; it belongs to")
def blocks_of_bytes(packed, scales, table, block_size, n):
    codes = torch.stack([packed >> 4, packed & 15], 1).flatten()[:n].long()
    return table[codes] * scales[(torch.arange(n) // 2 // block_size).clamp(max=len(scales) - 1)]


@wrong("dequantize-packed", says="With an odd n the last byte holds one weight and a filler;")
def the_last_one_too_much(packed, scales, table, block_size, n):
    codes = torch.stack([packed >> 4, packed & 15], 1).flatten().long()
    return table[codes] * torch.cat([scales.repeat_interleave(block_size), scales[-1:]])[: len(codes)]


@wrong("dequantize-packed", says="All high nibbles come first, then all low ones; they have")
def nibbles_in_two_halves(packed, scales, table, block_size, n):
    codes = torch.cat([packed >> 4, packed & 15])[:n].long()
    return table[codes] * scales.repeat_interleave(block_size)[:n]


@right("dequantize-packed")
def weight_by_weight(packed, scales, table, block_size, n):
    found = torch.empty(n)
    for k in range(n):
        byte = packed[k // 2].item()
        found[k] = table[byte % 16 if k % 2 else byte // 16] * scales[k // block_size]
    return found


@right("dequantize-packed")
def dequantized_in_numpy(packed, scales, table, block_size, n):
    packed = packed.numpy()
    codes = np.empty(2 * len(packed), dtype=np.int64)
    codes[::2], codes[1::2] = packed // 16, packed % 16
    return torch.from_numpy(table.numpy()[codes[:n]] * scales.numpy()[np.arange(n) // block_size])


@wrong("least-error-scale", says="The square of the weights is below the line; it has to be")
def divided_by_the_weights(w, q):
    return torch.nan_to_num((w * q).sum(1) / (w * w).sum(1), nan=0.0)


@wrong("least-error-scale", says="gets the scale 0; here that is 0 divided by 0, which is NaN")
def zero_over_zero(w, q):
    return (w * q).sum(1) / (q * q).sum(1)


@wrong("least-error-scale", says="That is the mean of the quotients: a level near zero then")
def mean_of_quotients(w, q):
    return torch.where(q == 0, 0, w / q).mean(1)


@wrong("least-error-scale", says="This is one scale for all blocks together; each has its")
def one_for_all_blocks(w, q):
    return ((w * q).sum() / (q * q).sum()).expand(len(w)).clone()


@wrong("least-error-scale", says="its dtype is torch.float64 instead of torch.float32")
def scale_in_double(w, q):
    w, q = w.double(), q.double()
    below = (q * q).sum(1)
    return torch.where(below == 0, 0, (w * q).sum(1) / below.clamp(min=1e-30))


@wrong("least-error-scale", says="This makes the decoded block as long as the weights; that")
def quotient_of_norms(w, q):
    return torch.where((q == 0).all(1), 0, w.norm(dim=1) / q.norm(dim=1))


@right("least-error-scale")
def by_einsum(w, q):
    above, below = torch.einsum("bi,bi->b", w, q), torch.einsum("bi,bi->b", q, q)
    return torch.where(below > 0, above / torch.where(below > 0, below, 1), 0)


@right("least-error-scale")
def by_least_squares(w, q):
    found = [np.linalg.lstsq(b[:, None], a, rcond=None)[0][0] for a, b in zip(w.numpy(), q.numpy(), strict=True)]
    return torch.tensor(np.array(found), dtype=torch.float32)


def _nearest_level(x, levels):
    return torch.bucketize(x, (levels[1:] + levels[:-1]) / 2).to(torch.uint8)


@wrong("double-quantize", says="There is no offset: subtract the mean before anything else,")
def no_offset(scales, levels):
    groups = scales.split(256)
    absmax2 = torch.stack([group.abs().max() for group in groups])
    codes = [_nearest_level(g / a if a else g, levels) for g, a in zip(groups, absmax2, strict=True)]
    return torch.cat(codes), absmax2, torch.zeros(())


@wrong("double-quantize", says="The offset is the mean of the scales; you took another")
def offset_from_the_middle(scales, levels):
    offset = (scales.max() + scales.min()) / 2
    groups = (scales - offset).split(256)
    absmax2 = torch.stack([group.abs().max() for group in groups])
    codes = [_nearest_level(g / a if a else g, levels) for g, a in zip(groups, absmax2, strict=True)]
    return torch.cat(codes), absmax2, offset


@wrong("double-quantize", says="One absmax for all scales; each 256 of them have their own.")
def one_group(scales, levels):
    offset = scales.mean()
    x = scales - offset
    absmax2 = x.abs().max()
    return _nearest_level(x / absmax2 if absmax2 else x, levels), absmax2.reshape(1), offset


@wrong("double-quantize", says="Each block has a mean of its own here; the offset is one")
def offset_for_each_group(scales, levels):
    groups = [group - group.mean() for group in scales.split(256)]
    absmax2 = torch.stack([group.abs().max() for group in groups])
    codes = [_nearest_level(g / a if a else g, levels) for g, a in zip(groups, absmax2, strict=True)]
    return torch.cat(codes), absmax2, torch.stack([group.mean() for group in scales.split(256)])


@wrong("double-quantize", says="The values are right, but where 1 to 3 should be, there is")
def other_order(scales, levels):
    offset = scales.mean()
    groups = (scales - offset).split(256)
    absmax2 = torch.stack([group.abs().max() for group in groups])
    codes = [_nearest_level(g / a if a else g, levels) for g, a in zip(groups, absmax2, strict=True)]
    return torch.cat(codes), offset, absmax2


@wrong("double-quantize", says="In a group whose scales are all equal to the offset you")
def divided_by_zero(scales, levels):
    offset = scales.mean()
    groups = (scales - offset).split(256)
    absmax2 = torch.stack([group.abs().max() for group in groups])
    return torch.cat([_nearest_level(g / a, levels) for g, a in zip(groups, absmax2, strict=True)]), absmax2, offset


@right("double-quantize")
def padded_groups(scales, levels):
    offset = scales.mean()
    x = scales - offset
    n = len(x)
    padded = torch.zeros(-(-n // 256) * 256)
    padded[:n] = x
    padded = padded.view(-1, 256)
    absmax2 = padded.abs().amax(1)
    normed = padded / absmax2.where(absmax2 > 0, torch.ones(()))[:, None]
    return _nearest_level(normed, levels).flatten()[:n], absmax2, offset


@right("double-quantize")
def double_quantized_in_loops(scales, levels):
    offset = torch.mean(scales)
    midpoints = (levels[1:] + levels[:-1]) / 2
    codes, absmax2 = [], []
    for start in range(0, len(scales), 256):
        group = scales[start : start + 256] - offset
        largest = group.abs().max()
        absmax2.append(largest)
        for x in group:
            codes.append(int((midpoints < (x / largest if largest > 0 else 0.0)).sum()))
    return torch.tensor(codes, dtype=torch.uint8), torch.tensor(absmax2), offset


@wrong("flipped-blocks", says="The scales are right, but a mask came back; the places are")
def a_mask(codes, absmax2, offset, levels):
    decoded = levels[codes.long()] * absmax2.repeat_interleave(256)[: len(codes)] + offset
    return decoded, decoded < 0


@wrong("flipped-blocks", says="The offset is missing, so about half of the scales seem")
def offset_left_out(codes, absmax2, offset, levels):
    decoded = levels[codes.long()] * absmax2.repeat_interleave(256)[: len(codes)]
    return decoded, (decoded < 0).nonzero().flatten()


@wrong("flipped-blocks", says="Value 2 of 2 is wrong; the rest is right: the numbers are")
def in_a_column(codes, absmax2, offset, levels):
    decoded = levels[codes.long()] * absmax2.repeat_interleave(256)[: len(codes)] + offset
    return decoded, (decoded < 0).nonzero()


@wrong("flipped-blocks", says="The values are right, but where 1 to 2 should be, there is")
def indices_first(codes, absmax2, offset, levels):
    decoded = levels[codes.long()] * absmax2.repeat_interleave(256)[: len(codes)] + offset
    return (decoded < 0).nonzero().flatten(), decoded


@wrong("flipped-blocks", says="Value 2 of 2 is wrong; the rest is right: the numbers are")
def indices_as_a_list(codes, absmax2, offset, levels):
    decoded = levels[codes.long()] * absmax2.repeat_interleave(256)[: len(codes)] + offset
    return decoded, [k for k, value in enumerate(decoded.tolist()) if value < 0]


@right("flipped-blocks")
def found_in_numpy(codes, absmax2, offset, levels):
    decoded = levels.numpy()[codes.numpy()] * np.repeat(absmax2.numpy(), 256)[: len(codes)] + offset.numpy()
    return torch.from_numpy(decoded), torch.from_numpy(np.flatnonzero(decoded < 0))


@right("flipped-blocks")
def found_by_where(codes, absmax2, offset, levels):
    decoded = torch.zeros(len(codes))
    for k in range(len(codes)):
        decoded[k] = levels[int(codes[k])] * absmax2[k // 256] + offset
    return decoded, torch.where(decoded < 0)[0]


@wrong("double-quantized-bits", says="A second-level scale serves `scale_block` *scales*, and")
def second_level_alone(block_size, scale_block):
    return 4 + 8 / block_size + 32 / scale_block


@wrong("double-quantized-bits", says="A second-level scale serves `scale_block` scales: divide by")
def both_per_block(block_size, scale_block):
    return 4 + (8 + 32) / block_size


@wrong("double-quantized-bits", says="The four bits of the code itself are missing: this is the")
def only_the_overhead(block_size, scale_block):
    return 8 / block_size + 32 / (block_size * scale_block)


@wrong("double-quantized-bits", says="It would be right with `block_size` and `scale_block`")
def turned_sizes(block_size, scale_block):
    return 4 + 8 / scale_block + 32 / (block_size * scale_block)


@right("double-quantized-bits")
def of_one_scale_block(block_size, scale_block):
    weights = np.int64(block_size) * scale_block
    return (4 * weights + 8 * scale_block + 32) / weights


@right("double-quantized-bits")
def nested(block_size, scale_block):
    return np.float32(4) + (np.float32(8) + np.float32(32) / scale_block) / block_size


@wrong("model-bytes", says="You rounded once, for all tensors together. Each is stored")
def all_in_one(shapes, block_size):
    n = sum(rows * columns for rows, columns in shapes)
    blocks = -(-n // block_size)
    return -(-n // 2) + blocks + 4 * -(-blocks // 256) + 4


@wrong("model-bytes", says="The offset, four bytes for each tensor, is missing. Open")
def offsets_forgotten(shapes, block_size):
    total = 0
    for rows, columns in shapes:
        blocks = -(-rows * columns // block_size)
        total += -(-rows * columns // 2) + blocks + 4 * -(-blocks // 256)
    return total


@wrong("model-bytes", says="Each row is cut by itself. Blocks run over the flattened")
def each_row_by_itself(shapes, block_size):
    total = 0
    for rows, columns in shapes:
        blocks = rows * -(-columns // block_size)
        total += -(-rows * columns // 2) + blocks + 4 * -(-blocks // 256) + 4
    return total


@wrong("model-bytes", says="More than one thing is rounded down: bytes of codes,")
def rounded_down(shapes, block_size):
    total = 0
    for rows, columns in shapes:
        blocks = rows * columns // block_size
        total += rows * columns // 2 + blocks + 4 * (blocks // 256) + 4
    return total


@right("model-bytes")
def counted_in_numpy(shapes, block_size):
    n = np.array(shapes, dtype=np.int64).prod(axis=1)
    blocks = np.ceil(n / block_size)
    return (np.ceil(n / 2) + blocks + np.ceil(blocks / 256) * 4 + 4).sum().astype(np.int64)


@right("model-bytes")
def really_quantized(shapes, block_size):
    from qlora_lab import quantize

    return sum(quantize(torch.ones(shape), block_size=block_size, double_quant=True).nbytes for shape in shapes)


# ---- 03


@wrong("adapter-parameters", says="That counts the product B A, or the weight, r times over:")
def of_the_product(n_in, n_out, rank):
    return n_in * n_out * rank


@wrong("adapter-parameters", says="That is 2 r d, the chapter's formula, which holds for")
def as_if_square(n_in, n_out, rank):
    return 2 * rank * n_in


@wrong("adapter-parameters", says="It is too large by `rank` times `rank` in each case. With")
def and_the_square(n_in, n_out, rank):
    return rank * (n_in + n_out) + rank * rank


@wrong("adapter-parameters", says="That counts the product B A, or the weight, r times over:")
def a_float(n_in, n_out, rank):
    return rank * (n_in * n_out) / 1


@right("adapter-parameters")
def counted_elements(n_in, n_out, rank):
    return torch.empty(rank, n_in, device="meta").numel() + torch.empty(n_out, rank, device="meta").numel()


@right("adapter-parameters")
def dot_of_numpy(n_in, n_out, rank):
    return np.dot([n_in, n_out], [rank, rank])


@wrong("break-even-rank", says="At exactly in * out / (in + out) both have equally many")
def not_strict(n_in, n_out):
    return n_in * n_out // (n_in + n_out)


@wrong("break-even-rank", says="One is always subtracted. Only at an exact tie is that")
def always_one_less(n_in, n_out):
    return n_in * n_out // (n_in + n_out) - 1


@wrong("break-even-rank", says="min(in, out) is the largest rank a matrix can have; an")
def full_rank(n_in, n_out):
    return min(n_in, n_out)


@wrong("break-even-rank", says="The answer is a whole number, the largest rank that")
def left_a_float(n_in, n_out):
    return n_in * n_out / (n_in + n_out)


@right("break-even-rank")
def searched(n_in, n_out):
    r = np.int64(0)
    while (r + 1) * (n_in + n_out) < n_in * n_out:
        r += 1
    return r


@right("break-even-rank")
def ceiling_less_one(n_in, n_out):
    return math.ceil(n_in * n_out / (n_in + n_out)) - 1


@wrong("lora-forward", says="r is the number of rows of A, (r, in); you divide by its")
def rank_of_the_other_side(x, w, a, b, alpha, use_rslora):
    r = a.shape[1]
    return x @ w.T + alpha / (r**0.5 if use_rslora else r) * (x @ a.T @ b.T)


@wrong("lora-forward", says="Part by part: base missing, the rest right")
def no_base(x, w, a, b, alpha, use_rslora):
    r = a.shape[0]
    return alpha / (r**0.5 if use_rslora else r) * (x @ a.T @ b.T)


@wrong("lora-forward", says="The factor belongs to the adapter only; you scale the base")
def everything_scaled(x, w, a, b, alpha, use_rslora):
    r = a.shape[0]
    return (x @ w.T + x @ a.T @ b.T) * alpha / (r**0.5 if use_rslora else r)


@wrong("lora-forward", says="The factor is missing. Open hint 2.")
def no_scaling(x, w, a, b, alpha, use_rslora):
    return x @ (w + b @ a).T


@wrong("lora-forward", says="A weight is (out, in), so x needs its transpose. With")
def base_not_transposed(x, w, a, b, alpha, use_rslora):
    r = a.shape[0]
    return x @ w + alpha / (r**0.5 if use_rslora else r) * (x @ a.T @ b.T)


@wrong("lora-forward", says="use_rslora is ignored: with it the factor is alpha /")
def plain_lora_always(x, w, a, b, alpha, use_rslora):
    return x @ w.T + alpha / len(a) * (x @ a.T @ b.T)


@right("lora-forward")
def forward_by_einsum(x, w, a, b, alpha, use_rslora):
    s = alpha / (math.sqrt(b.shape[1]) if use_rslora else b.shape[1])
    return torch.einsum("bni,oi->bno", x, w) + s * torch.einsum("bni,ri,or->bno", x, a, b)


@right("lora-forward")
def merged_first(x, w, a, b, alpha, use_rslora):
    merged = w.double() + b.double() @ a.double() * alpha * len(a) ** (-0.5 if use_rslora else -1)
    return (merged @ x.double().transpose(1, 2)).transpose(1, 2).float()


@wrong("adapter-gradients", says="The factor s is missing: W = W0 + s B A, so both gradients")
def scale_forgotten(gradient, a, b, s):
    return b.T @ gradient, gradient @ a.T


@wrong("adapter-gradients", says="dA and dB are swapped: return A's first. Open hint 1.")
def db_before_da(gradient, a, b, s):
    return s * gradient @ a.T, s * b.T @ gradient


@wrong("adapter-gradients", says="These are the transposes: a gradient has the shape of what")
def transposed_both(gradient, a, b, s):
    return (s * b.T @ gradient).T, (s * gradient @ a.T).T


@wrong("adapter-gradients", says="Value 2 of 2 is wrong; the rest is right: all of it is what it should be")
def only_one_scaled(gradient, a, b, s):
    return s * b.T @ gradient, gradient @ a.T


@wrong("adapter-gradients", says="In each of the 2 values: all of it is -1 times what it")
def downhill(gradient, a, b, s):
    return -s * b.T @ gradient, -s * gradient @ a.T


@right("adapter-gradients")
def by_autograd(gradient, a, b, s):
    a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
    (s * b @ a * gradient).sum().backward()
    return a.grad, b.grad


@right("adapter-gradients")
def sums_of_products(gradient, a, b, s):
    return (
        (b[:, :, None] * gradient[:, None, :]).sum(0) * s,
        [s * (gradient[:, None, :] * a[None]).sum(2)][0],
    )


@wrong("merge-adapter", says="A and B are rounded to the weight's dtype before they are")
def product_in_sixteen_bits(w, a, b, alpha):
    return w + alpha / len(a) * (b.to(w.dtype) @ a.to(w.dtype))


@wrong("merge-adapter", says="The merged weight should have the dtype of the base, so")
def stays_in_float32(w, a, b, alpha):
    return w.float() + alpha / len(a) * (b @ a)


@wrong("merge-adapter", says="The update is rounded to the weight's dtype before the sum")
def rounded_twice(w, a, b, alpha):
    return w + (alpha / len(a) * (b @ a)).to(w.dtype)


@wrong("merge-adapter", says="You multiply by alpha instead of alpha / r. Open hint 1.")
def alpha_alone(w, a, b, alpha):
    return (w.float() + alpha * (b @ a)).to(w.dtype)


@wrong("merge-adapter", says="Your function changes its arguments in place (`w`); compute with")
def into_the_weight(w, a, b, alpha):
    w += (alpha / len(a) * (b @ a)).to(w.dtype)
    return w


@right("merge-adapter")
def merged_in_double(w, a, b, alpha):
    return (w.double() + alpha / a.shape[0] * (b.double() @ a.double())).to(w.dtype)


@right("merge-adapter")
def by_addmm(w, a, b, alpha):
    return torch.addmm(w.float(), b, a, alpha=alpha / b.shape[1]).to(w.dtype)


@wrong("find-targets", says="The end has to begin after a dot: gate_up_proj also ends in")
def any_ending(paths, targets):
    return [p for p in paths if any(p.endswith(t) for t in targets)]


@wrong("find-targets", says="You compare the last name only; a target may be several")
def last_part_only(paths, targets):
    return [p for p in paths if p.split(".")[-1] in targets]


@wrong("find-targets", says="These are the right paths in the order of the targets, or")
def in_the_order_of_targets(paths, targets):
    return [p for t in targets for p in paths if p == t or p.endswith("." + t)]


@wrong("find-targets", says="a set where a list of 1 is wanted")
def a_set_of_paths(paths, targets):
    return {p for p in paths if any(p == t or p.endswith("." + t) for t in targets)}


@wrong("find-targets", says="You compare with any one of the names in the path, not with")
def any_part(paths, targets):
    return [p for p in paths if any(t in p.split(".") for t in targets)]


@right("find-targets")
def by_the_tails(paths, targets):
    found = []
    for path in paths:
        parts = path.split(".")
        if {".".join(parts[k:]) for k in range(len(parts))} & set(targets):
            found.append(path)
    return found


@right("find-targets")
def with_a_leading_dot(paths, targets):
    return list(filter(lambda p: ("." + p).endswith(tuple("." + t for t in targets)), paths))


@wrong("best-rank-r", says="That keeps the smallest singular values; they come sorted")
def smallest_values_kept(matrix, rank):
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, -rank:] * s[-rank:] @ vh[-rank:]


@wrong("best-rank-r", says="The singular values are missing: without them all")
def without_singular_values(matrix, rank):
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] @ vh[:rank]


@wrong("best-rank-r", says="That cuts off rows or columns. Such a matrix has rank r,")
def first_columns(matrix, rank):
    found = torch.zeros_like(matrix)
    found[:, :rank] = matrix[:, :rank]
    return found


@wrong("best-rank-r", says="returned a tuple; a tensor of shape (8, 8) is wanted")
def the_two_factors(matrix, rank):
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] * s[:rank], vh[:rank]


@wrong("best-rank-r", says="It is the transpose of what it should be")
def v_turned(matrix, rank):
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return (vh[:rank].T * s[:rank]) @ u[:, :rank].T


@right("best-rank-r")
def sum_of_outer_products(matrix, rank):
    u, s, v = np.linalg.svd(matrix.numpy())
    found = np.zeros(matrix.shape, dtype=np.float32)
    for k in range(min(rank, len(s))):
        found += s[k] * np.outer(u[:, k], v[k])
    return torch.from_numpy(found)


@right("best-rank-r")
def projected(matrix, rank):
    m = matrix.double()
    vectors = torch.linalg.eigh(m @ m.T).eigenvectors.flip(1)[:, :rank]
    return (vectors @ (vectors.T @ m)).float()


@wrong("predict-trainable", says="Keys and values have kv_heads heads only: k_proj and v_proj")
def no_grouped_heads(hidden, mlp, layers, heads, kv_heads, rank):
    return layers * rank * (4 * 2 * hidden + 3 * (hidden + mlp))


@wrong("predict-trainable", says="That is one block; a model has `layers` of them. Open hint")
def one_block(hidden, mlp, layers, heads, kv_heads, rank):
    kv = kv_heads * (hidden // heads)
    return rank * (2 * 2 * hidden + 2 * (hidden + kv) + 3 * (hidden + mlp))


@wrong("predict-trainable", says="That is the attention alone; the MLP has three linear")
def attention_alone(hidden, mlp, layers, heads, kv_heads, rank):
    kv = kv_heads * (hidden // heads)
    return layers * rank * (2 * 2 * hidden + 2 * (hidden + kv))


@wrong("predict-trainable", says="Every head has hidden // heads numbers")
def heads_of_another_size(hidden, mlp, layers, heads, kv_heads, rank):
    kv = hidden // kv_heads
    return layers * rank * (2 * 2 * hidden + 2 * (hidden + kv) + 3 * (hidden + mlp))


@wrong("predict-trainable", says="The MLP of these models has three linear layers, not two:")
def down_forgotten(hidden, mlp, layers, heads, kv_heads, rank):
    kv = kv_heads * (hidden // heads)
    return layers * rank * (2 * 2 * hidden + 2 * (hidden + kv) + 2 * (hidden + mlp))


@right("predict-trainable")
def summed_over_shapes(hidden, mlp, layers, heads, kv_heads, rank):
    kv = kv_heads * (hidden // heads)
    shapes = np.array([(hidden, hidden), (hidden, kv), (hidden, kv), (hidden, hidden)] + [(hidden, mlp)] * 3)
    return layers * rank * shapes.sum()


@right("predict-trainable")
def layer_by_layer(hidden, mlp, layers, heads, kv_heads, rank):
    total = 0
    for _ in range(layers):
        for n_in, n_out in [(hidden, hidden)] * 2 + [(hidden, hidden * kv_heads // heads)] * 2:
            total += torch.tensor(rank * n_in + rank * n_out)
        total += rank * 3 * (mlp + hidden)
    return total


# ---- 04


@wrong("state-bytes", says="AdamW keeps two moments, m and v; that is one. Open hint 1.")
def one_moment(parameters, bits):
    return parameters * bits // 8 + (4 * math.ceil(parameters / 256) if bits == 8 else 0)


@wrong("state-bytes", says="There are scales for both moments; you count them for one.")
def scales_once(parameters, bits):
    return 2 * parameters * bits // 8 + (4 * math.ceil(parameters / 256) if bits == 8 else 0)


@wrong("state-bytes", says="The last block of 256 may be shorter and has a scale all")
def whole_blocks_only(parameters, bits):
    return 2 * (parameters * bits // 8 + (parameters // 256 * 4 if bits == 8 else 0))


@wrong("state-bytes", says="Only in 8 bits are there scales; 16 and 32 bits hold the")
def scales_always(parameters, bits):
    return 2 * (parameters * bits // 8 + 4 * math.ceil(parameters / 256))


@right("state-bytes")
def of_real_tensors(parameters, bits):
    dtype = {32: torch.float32, 16: torch.float16, 8: torch.uint8}[bits]
    size = torch.empty(parameters, dtype=dtype, device="meta").nbytes
    return np.int64(2 * size) + (bits == 8) * 2 * 4 * -(-parameters // 256)


@right("state-bytes")
def block_after_block(parameters, bits):
    total = 2 * parameters * (bits / 8)
    if bits == 8:
        total += 2 * 4 * np.ceil(parameters / 256)
    return int(total)


@wrong("adamw-step", says="Weight decay goes into the gradient here, which is Adam")
def decay_in_the_gradient(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    g = gradient + weight_decay * p
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    return p - lr * (m / (1 - beta1**step)) / ((v / (1 - beta2**step)).sqrt() + eps), m, v


@wrong("adamw-step", says="Both moments start at zero and are too small at first;")
def no_bias_correction(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    m = beta1 * m + (1 - beta1) * gradient
    v = beta2 * v + (1 - beta2) * gradient * gradient
    return p * (1 - lr * weight_decay) - lr * m / (v.sqrt() + eps), m, v


@wrong("adamw-step", says="eps is added after the square root, not inside it. Open")
def eps_in_the_root(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    m = beta1 * m + (1 - beta1) * gradient
    v = beta2 * v + (1 - beta2) * gradient * gradient
    update = (m / (1 - beta1**step)) / (v / (1 - beta2**step) + eps).sqrt()
    return p * (1 - lr * weight_decay) - lr * update, m, v


@wrong("adamw-step", says="The values are right, but where 1 to 3 should be, there is")
def moments_first(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    m = beta1 * m + (1 - beta1) * gradient
    v = beta2 * v + (1 - beta2) * gradient * gradient
    update = (m / (1 - beta1**step)) / ((v / (1 - beta2**step)).sqrt() + eps)
    return m, v, p * (1 - lr * weight_decay) - lr * update


@wrong("adamw-step", says="m and v come back corrected. They are running means that go")
def corrected_moments_kept(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    m = (beta1 * m + (1 - beta1) * gradient) / (1 - beta1**step)
    v = (beta2 * v + (1 - beta2) * gradient * gradient) / (1 - beta2**step)
    return p * (1 - lr * weight_decay) - lr * m / (v.sqrt() + eps), m, v


@wrong("adamw-step", says="The decay is lr * weight_decay, so that a schedule of the")
def decay_without_the_rate(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    m = beta1 * m + (1 - beta1) * gradient
    v = beta2 * v + (1 - beta2) * gradient * gradient
    update = (m / (1 - beta1**step)) / ((v / (1 - beta2**step)).sqrt() + eps)
    return p * (1 - weight_decay) - lr * update, m, v


@right("adamw-step")
def of_torch(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    parameter = torch.nn.Parameter(p.clone())
    optimizer = torch.optim.AdamW([parameter], lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay)
    state = {"step": torch.tensor(float(step - 1)), "exp_avg": m.clone(), "exp_avg_sq": v.clone()}
    optimizer.state[parameter] = state
    parameter.grad = gradient.clone()
    optimizer.step()
    return parameter.detach(), optimizer.state[parameter]["exp_avg"], optimizer.state[parameter]["exp_avg_sq"]


@right("adamw-step")
def in_place_on_copies(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    p, m, v = p.clone(), m.clone(), v.clone()
    m.lerp_(gradient, 1 - beta1)
    v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    p -= lr * weight_decay * p
    p.addcdiv_(m, v.sqrt() / math.sqrt(1 - beta2**step) + eps, value=-lr / (1 - beta1**step))
    return [p, m, v]


@wrong("pages-of", says="The page of the last element is missing: a range in Python")
def last_page_left_out(first, count, per_page):
    return list(range(first // per_page, (first + count - 1) // per_page))


@wrong("pages-of", says="The last element is first + count - 1; you ask for the page")
def one_page_too_many(first, count, per_page):
    return list(range(first // per_page, (first + count) // per_page + 1))


@wrong("pages-of", says="a range where a list of 2 is wanted")
def a_range(first, count, per_page):
    return range(first // per_page, (first + count - 1) // per_page + 1)


@wrong("pages-of", says="a set where a list of 2 is wanted")
def a_set_of_pages(first, count, per_page):
    return {element // per_page for element in range(first, first + count)}


@wrong("pages-of", says="They are the right ones, but some are there more than once.")
def a_page_for_each_element(first, count, per_page):
    return [element // per_page for element in range(first, first + count)]


@wrong("pages-of", says="The number of pages is not ceil(count / per_page): a")
def as_if_from_a_page_start(first, count, per_page):
    start = first // per_page
    return list(range(start, start + math.ceil(count / per_page)))


@right("pages-of")
def unique_pages(first, count, per_page):
    return list(np.unique(np.arange(first, first + count) // per_page))


@right("pages-of")
def overlapping_pages(first, count, per_page):
    last = first + count
    return [page for page in range(last) if page * per_page < last and (page + 1) * per_page > first]


@wrong("sweep-order", says="Steps count from 1, and the first one goes forward. Open")
def backwards_first(step, pages):
    return list(range(pages))[:: 1 if step % 2 == 0 else -1]


@wrong("sweep-order", says="Always forward: with room for half of the pages, LRU then")
def always_forward(step, pages):
    return list(range(pages))


@wrong("sweep-order", says="All are one too large: is it counted from 0?")
def pages_from_one(step, pages):
    order = list(range(1, pages + 1))
    return order if step % 2 else order[::-1]


@wrong("sweep-order", says="a range where a list of 5 is wanted")
def an_iterator(step, pages):
    return range(pages) if step % 2 else reversed(range(pages))


@wrong("sweep-order", says="Backwards page 0 is missing: a range in Python ends before its end")
def last_page_missing_on_the_way_back(step, pages):
    return list(range(pages)) if step % 2 else list(range(pages - 1, 0, -1))


@right("sweep-order")
def sorted_pages(step, pages):
    return sorted(range(pages), key=lambda page: page * (-1) ** (step + 1))


@right("sweep-order")
def pages_of_numpy(step, pages):
    order = np.arange(pages)
    return [*order] if step & 1 else [*order[::-1]]


@wrong("evict", says="That is the page used last, which LRU keeps: the smallest")
def the_most_recent(last_used, due):
    return max((page for page in last_used if page not in due), key=last_used.get)


@wrong("evict", says="That page is the oldest, but it is still due in this sweep")
def due_or_not(last_used, due):
    return min(last_used, key=last_used.get)


@wrong("evict", says="That is a time; the page is wanted. Open hint 1.")
def its_time(last_used, due):
    return min(time for page, time in last_used.items() if page not in due)


@wrong("evict", says="That is the page with the smallest number, not the one that")
def smallest_page(last_used, due):
    return min(set(last_used) - due)


@wrong("evict", says="Of the 2 values that came back, value 2 is the right one:")
def page_and_time(last_used, due):
    return min((time, page) for page, time in last_used.items() if page not in due)


@right("evict")
def by_argmin(last_used, due):
    pages = np.array([page for page in last_used if page not in due])
    return pages[np.argmin([last_used[page] for page in pages])]


@right("evict")
def sorted_by_time(last_used, due):
    for _, page in sorted((time, page) for page, time in last_used.items()):
        if page not in due:
            return page


@wrong("bytes-moved", says="What comes in has to go out again: each page that is not")
def one_way(pages, resident, page_bytes):
    return max(pages - resident, 0) * page_bytes


@wrong("bytes-moved", says="If there is room for more pages than there are, nothing")
def below_zero(pages, resident, page_bytes):
    return 2 * (pages - resident) * page_bytes


@wrong("bytes-moved", says="These are all pages; the resident ones need not move. Open")
def all_pages(pages, resident, page_bytes):
    return 2 * pages * page_bytes


@wrong("bytes-moved", says="These are the pages that stay; the others move. Open hint 1.")
def the_residents(pages, resident, page_bytes):
    return 2 * min(resident, pages) * page_bytes


@right("bytes-moved")
def in_and_out(pages, resident, page_bytes):
    away = np.maximum(0, pages - resident)
    return away * page_bytes + away * page_bytes


@right("bytes-moved")
def page_by_page(pages, resident, page_bytes):
    return sum(2 * page_bytes for page in range(pages) if page >= resident)


# ---- 05


@wrong("full-training-bytes", says="That is the bill for weights and gradients in 32 bits; here")
def with_a_master_copy(parameters):
    return parameters * (2 + 2 + 4 + 4 + 4)


@wrong("full-training-bytes", says="AdamW keeps two moments for each weight, with four bytes")
def one_moment_only(parameters):
    return parameters * (2 + 2 + 4)


@wrong("full-training-bytes", says="These are the bits of one number; the answer is in bytes.")
def bits_not_bytes(parameters):
    return parameters * (16 + 16 + 32 + 32)


@wrong("full-training-bytes", says="All of it is 1e-09 times what it should be: in GB, where")
def in_gb(parameters):
    return parameters * 12 / 1e9


@right("full-training-bytes")
def one_after_the_other(parameters):
    return np.int64(parameters) * 2 + parameters * 2 + 2 * (parameters * 4)


@right("full-training-bytes")
def a_float_of_bytes(parameters):
    return 12.0 * parameters


@wrong("qlora-forward", says="The adapter's share is there without its factor s = alpha /")
def unscaled(x, w, a, b, s):
    return x @ w.T + x @ a.T @ b.T


@wrong("qlora-forward", says="s multiplies the adapter's share only; you scale the base")
def scaled_altogether(x, w, a, b, s):
    return s * (x @ w.T + x @ a.T @ b.T)


@wrong("qlora-forward", says="None of the weights is transposed: each is (out, in), so x")
def untransposed(x, w, a, b, s):
    return x @ w + s * (x @ a @ b)


@wrong("qlora-forward", says="It is the transpose of what it should be")
def transposed_result(x, w, a, b, s):
    return (w + s * b @ a) @ x.T


@wrong("qlora-forward", says="Adapter: this part is -1 times what it should be: the sign")
def subtracted(x, w, a, b, s):
    return x @ w.T - s * x @ a.T @ b.T


@right("qlora-forward")
def by_functional(x, w, a, b, s):
    linear = torch.nn.functional.linear
    return linear(x, w).add_(linear(linear(x, a), b), alpha=s)


@right("qlora-forward")
def of_the_merged_weight(x, w, a, b, s):
    return ((w + s * torch.einsum("or,ri->oi", b, a)) @ x.T).T


@wrong("qlora-backward", says="dx has only the base's share; x went through the adapter")
def dx_of_the_base_only(g, x, w, a, b, s):
    return g @ w, s * (g @ b).T @ x, s * g.T @ (x @ a.T)


@wrong("qlora-backward", says="dx has only the adapter's share. The frozen weight has no")
def dx_of_the_adapter_only(g, x, w, a, b, s):
    return s * g @ b @ a, s * (g @ b).T @ x, s * g.T @ (x @ a.T)


@wrong("qlora-backward", says="The factor s is missing everywhere. Open hint 2.")
def no_s_anywhere(g, x, w, a, b, s):
    return g @ w + g @ b @ a, (g @ b).T @ x, g.T @ (x @ a.T)


@wrong("qlora-backward", says="dA and dB are swapped: return dx, dA, dB.")
def db_and_da_swapped(g, x, w, a, b, s):
    return g @ w + s * g @ b @ a, s * g.T @ (x @ a.T), s * (g @ b).T @ x


@wrong("qlora-backward", says="Value 2 of 3 is wrong; the rest is right: it is the")
def da_transposed(g, x, w, a, b, s):
    return g @ w + s * g @ b @ a, s * x.T @ (g @ b), s * g.T @ (x @ a.T)


@wrong("qlora-backward", says="Value 2 of 3 is wrong: all of it is what it should be, divided by")
def averaged_over_the_batch(g, x, w, a, b, s):
    n = len(x)
    return g @ w + s * g @ b @ a, s * (g @ b).T @ x / n, s * g.T @ (x @ a.T) / n


@right("qlora-backward")
def autograd_of_the_forward(g, x, w, a, b, s):
    x, a, b = (tensor.clone().requires_grad_() for tensor in (x, a, b))
    (x @ w.T + s * (x @ a.T @ b.T)).backward(g)
    return x.grad, a.grad, b.grad


@right("qlora-backward")
def through_the_whole_weight(g, x, w, a, b, s):
    dw = torch.einsum("no,ni->oi", g, x)
    return g.mm(w + s * b @ a), s * (dw.T @ b).T, s * (a @ dw.T).T


@wrong("stored-bytes", says="Blocks and groups are rounded down; the last ones may be a")
def scales_rounded_down(elements, block_size, double_quant):
    blocks = elements // block_size
    return math.ceil(elements / 2) + (blocks + 4 * (blocks // 256) + 4 if double_quant else 4 * blocks)


@wrong("stored-bytes", says="The offset (the mean of the scales, four bytes for the")
def the_offset_forgotten(elements, block_size, double_quant):
    blocks = math.ceil(elements / block_size)
    return math.ceil(elements / 2) + (blocks + 4 * math.ceil(blocks / 256) if double_quant else 4 * blocks)


@wrong("stored-bytes", says="That counts a whole byte for each code; two share one. Open")
def a_byte_for_each_code(elements, block_size, double_quant):
    blocks = math.ceil(elements / block_size)
    return elements + (blocks + 4 * math.ceil(blocks / 256) + 4 if double_quant else 4 * blocks)


@wrong("stored-bytes", says="The second-level scales, four bytes for each 256 scales or")
def second_level_left_out(elements, block_size, double_quant):
    blocks = math.ceil(elements / block_size)
    return math.ceil(elements / 2) + (blocks + 4 if double_quant else 4 * blocks)


@wrong("stored-bytes", says="A whole number is wanted: it has to be rounded up. With")
def half_a_byte(elements, block_size, double_quant):
    blocks = math.ceil(elements / block_size)
    return elements / 2 + (blocks + 4 * math.ceil(blocks / 256) + 4 if double_quant else 4 * blocks)


@right("stored-bytes")
def stored_by_numpy(elements, block_size, double_quant):
    blocks = np.ceil(elements / block_size)
    rest = blocks + 4 * np.ceil(blocks / 256) + 4 if double_quant else 4 * blocks
    return np.ceil(elements / 2) + rest


@right("stored-bytes")
def lengths_of_ranges(elements, block_size, double_quant):
    blocks = len(range(0, elements, block_size))
    codes = len(range(0, elements, 2))
    if not double_quant:
        return codes + 4 * blocks
    return codes + blocks + 4 * len(range(0, blocks, 256)) + 4


@wrong("qlora-bytes", says="AdamW keeps two moments, each in 32 bits: eight bytes, and")
def moments_of_sixteen(quantized, others, adapters, tokens, hidden, layers):
    return quantized * 4.127 / 8 + 2 * others + adapters * (2 + 2 + 2 + 2) + 2 * tokens * hidden * layers


@wrong("qlora-bytes", says="4 bits are not all a quantized weight takes: its share of")
def four_bits_flat(quantized, others, adapters, tokens, hidden, layers):
    return quantized * 4 / 8 + 2 * others + adapters * (2 + 2 + 8) + 2 * tokens * hidden * layers


@wrong("qlora-bytes", says="With checkpointing each layer keeps its input, so the")
def one_layers_input(quantized, others, adapters, tokens, hidden, layers):
    return quantized * 4.127 / 8 + 2 * others + adapters * (2 + 2 + 8) + 2 * tokens * hidden


@wrong("qlora-bytes", says="other weights 2 times what it should be")
def gradients_of_the_others(quantized, others, adapters, tokens, hidden, layers):
    return quantized * 4.127 / 8 + 4 * others + adapters * (2 + 2 + 8) + 2 * tokens * hidden * layers


@wrong("qlora-bytes", says="All of it is 8 times what it should be: bits, where bytes")
def all_in_bits(quantized, others, adapters, tokens, hidden, layers):
    return quantized * 4.127 + 16 * others + adapters * (16 + 16 + 64) + 16 * tokens * hidden * layers


@right("qlora-bytes")
def added_in_float32(quantized, others, adapters, tokens, hidden, layers):
    terms = [quantized * 4.127 / 8, others * 2, adapters * 2, adapters * 2, adapters * 8, tokens * hidden * layers * 2]
    return np.array(terms, dtype=np.float32).sum()


@right("qlora-bytes")
def added_as_a_tensor(quantized, others, adapters, tokens, hidden, layers):
    counts = torch.tensor([quantized, others, 6 * adapters, tokens * hidden * layers], dtype=torch.float64)
    return counts @ torch.tensor([4.127 / 8, 2, 2, 2], dtype=torch.float64)


@wrong("fits", says="A card sold as so many gigabytes has GiB, 2^30 bytes each,")
def all_in_gb(peak, gib, reserve):
    return peak <= (gib - reserve) * 10**9


@wrong("fits", says="The reserve is given in GB, 10^9 bytes each; you take it")
def all_in_gib(peak, gib, reserve):
    return peak <= (gib - reserve) * 2**30


@wrong("fits", says="The reserve is not subtracted, or next to nothing of it")
def nothing_reserved(peak, gib, reserve):
    return peak <= gib * 2**30


@wrong("fits", says="returned a str; a bool is wanted")
def yes_or_no(peak, gib, reserve):
    return "yes" if peak <= gib * 2**30 - reserve * 10**9 else "no"


@wrong("fits")
def reserve_added(peak, gib, reserve):
    return peak <= gib * 2**30 + reserve * 10**9


@right("fits")
def a_bool_of_numpy(peak, gib, reserve):
    return np.less_equal(peak + reserve * 1e9, np.float64(gib) * 1024**3)


@right("fits")
def something_is_left(peak, gib, reserve):
    return not gib * 2**30 - reserve * 10**9 - peak < 0


# ---- 06


@wrong("guessing-loss", says="These are bits; losses are in nats, with the natural")
def in_bits(vocabulary):
    return math.log2(vocabulary)


@wrong("guessing-loss", says="The sign is wrong: a loss is positive. Open hint 1.")
def log_of_the_probability(vocabulary):
    return math.log(1 / vocabulary)


@wrong("guessing-loss", says="That is the probability of the right token; the loss is")
def the_probability(vocabulary):
    return 1 / vocabulary


@wrong("guessing-loss", says="That is the perplexity, e to the power of the loss; the")
def perplexity(vocabulary):
    return math.exp(math.log(vocabulary))


@right("guessing-loss")
def by_cross_entropy(vocabulary):
    return torch.nn.functional.cross_entropy(torch.zeros(1, vocabulary), torch.zeros(1, dtype=torch.long))


@right("guessing-loss")
def minus_mean_log_softmax(vocabulary):
    return np.float32(-np.log(np.full(vocabulary, 1 / vocabulary, dtype=np.float32)).mean(dtype=np.float64))


@wrong("build-labels", says="The end of the answer has no label: a model trained like this")
def padding_by_its_token(input_ids, prompt_lengths, lengths):
    labels = input_ids.clone()
    labels[labels == 2] = -100
    for row, n in enumerate(prompt_lengths.tolist()):
        labels[row, :n] = -100
    return labels


@wrong("build-labels", says="The prompt has labels too: the model would be trained to")
def prompt_has_labels(input_ids, prompt_lengths, lengths):
    place = torch.arange(input_ids.shape[1])
    return torch.where(place < lengths[:, None], input_ids, -100)


@wrong("build-labels", says="The padding has labels: the model would be trained to go on")
def padding_has_labels(input_ids, prompt_lengths, lengths):
    place = torch.arange(input_ids.shape[1])
    return torch.where(place >= prompt_lengths[:, None], input_ids, -100)


@wrong("build-labels", says="These are shifted by one already. A label stands where its")
def shifted_already(input_ids, prompt_lengths, lengths):
    place = torch.arange(input_ids.shape[1])
    labels = torch.where((place >= prompt_lengths[:, None]) & (place < lengths[:, None]), input_ids, -100)
    return torch.cat([labels[:, 1:], torch.full((len(labels), 1), -100)], 1)


@wrong("build-labels", says="What has no label is 0 instead of -100. 0 is a token like")
def zeros_for_none(input_ids, prompt_lengths, lengths):
    place = torch.arange(input_ids.shape[1])
    return torch.where((place >= prompt_lengths[:, None]) & (place < lengths[:, None]), input_ids, 0)


@wrong("build-labels", says="`lengths` counts prompt and answer together; you add the")
def prompt_and_lengths_added(input_ids, prompt_lengths, lengths):
    labels = torch.full_like(input_ids, -100)
    for row in range(len(labels)):
        begin, end = prompt_lengths[row], prompt_lengths[row] + lengths[row]
        labels[row, begin:end] = input_ids[row, begin:end]
    return labels


@right("build-labels")
def row_by_row(input_ids, prompt_lengths, lengths):
    rows = []
    for ids, begin, end in zip(input_ids.tolist(), prompt_lengths.tolist(), lengths.tolist(), strict=True):
        rows.append([token if begin <= k < end else -100 for k, token in enumerate(ids)])
    return torch.tensor(rows)


@right("build-labels")
def masked_in_numpy(input_ids, prompt_lengths, lengths):
    ids = input_ids.numpy().copy()
    place = np.arange(ids.shape[1])[None]
    ids[(place < prompt_lengths.numpy()[:, None]) | (place >= lengths.numpy()[:, None])] = -100
    return torch.from_numpy(ids)


@wrong("supervised-loss", says="Logits are compared with the token at their own position,")
def no_shift(logits, labels):
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


@wrong("supervised-loss", says="The shift goes the wrong way: logits at t predict the token")
def shifted_the_other_way(logits, labels):
    return torch.nn.functional.cross_entropy(logits[:, 1:].flatten(0, 1), labels[:, :-1].flatten())


@wrong("supervised-loss", says="That is the mean of the examples' means, in which a token")
def mean_of_the_rows(logits, labels):
    rows = [torch.nn.functional.cross_entropy(x[:-1], y[1:]) for x, y in zip(logits, labels, strict=True)]
    return torch.stack(rows).nanmean()


@wrong("supervised-loss", says="The sum is divided by all positions instead of those with a")
def over_all_positions(logits, labels):
    total = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    return total / labels[:, 1:].numel()


@wrong("supervised-loss", says="That is the sum; the mean is wanted. Open hint 2.")
def summed(logits, labels):
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")


@wrong("supervised-loss", says="returned a float; a tensor of shape () is wanted")
def a_number(logits, labels):
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()).item()


@right("supervised-loss")
def by_logsumexp(logits, labels):
    logits, labels = logits[:, :-1], labels[:, 1:]
    mask = labels != -100
    picked = logits.gather(2, labels.clamp(min=0)[..., None])[..., 0]
    return (logits.logsumexp(2) - picked)[mask].mean()


@right("supervised-loss")
def token_by_token(logits, labels):
    losses = []
    for x, y in zip(logits, labels, strict=True):
        for t in range(len(y) - 1):
            if y[t + 1] >= 0:
                losses.append(-x[t].double().softmax(0)[y[t + 1]].log())
    return (sum(losses) / len(losses)).float()


@wrong("accumulate", says="That is the mean of the means. A token of a part")
def plain_mean(gradients, tokens):
    return torch.stack(gradients).mean(0)


@wrong("accumulate", says="That is the sum of the means, too large by about the number")
def plain_sum(gradients, tokens):
    return sum(gradients)


@wrong("accumulate", says="The weights are right, but they must be divided by the")
def divided_by_the_parts(gradients, tokens):
    return sum(g * t for g, t in zip(gradients, tokens, strict=True)) / len(tokens)


@wrong("accumulate", says="That is the gradient of the summed loss: divide by the")
def never_divided(gradients, tokens):
    return sum(g * t for g, t in zip(gradients, tokens, strict=True))


@wrong("accumulate", says="Each gradient is divided by its tokens. It is a mean")
def divided_by_own_tokens(gradients, tokens):
    return sum(g / t for g, t in zip(gradients, tokens, strict=True))


@right("accumulate")
def by_tensordot(gradients, tokens):
    share = torch.tensor(tokens, dtype=torch.float32) / sum(tokens)
    return torch.tensordot(share, torch.stack(gradients), dims=1)


@right("accumulate")
def a_running_mean(gradients, tokens):
    mean, seen = torch.zeros_like(gradients[0]), 0
    for gradient, count in zip(gradients, tokens, strict=True):
        seen += count
        mean += (gradient - mean) * (count / max(seen, 1))
    return mean


@wrong("learning-rate", says="It falls to zero; a tenth of the peak is what should be")
def falls_to_zero(step, steps, peak, warmup):
    if step <= warmup:
        return peak * step / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


@wrong("learning-rate", says="Steps count from 1: the first one would have rate zero and")
def first_step_at_zero(step, steps, peak, warmup):
    if step <= warmup:
        return peak * (step - 1) / warmup
    return peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))))


@wrong("learning-rate", says="After the warm-up the cosine must begin at its start:")
def cosine_over_all_steps(step, steps, peak, warmup):
    if step <= warmup:
        return peak * step / warmup
    return peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / steps)))


@wrong("learning-rate", says="That is a whole period: the rate falls and rises again.")
def a_whole_period(step, steps, peak, warmup):
    if step <= warmup:
        return peak * step / warmup
    return peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(2 * math.pi * (step - warmup) / (steps - warmup))))


@wrong("learning-rate", says="It falls along a straight line; a cosine is wanted. Open")
def straight_down(step, steps, peak, warmup):
    if step <= warmup:
        return peak * step / warmup
    return peak * (1 - 0.9 * (step - warmup) / (steps - warmup))


@wrong("learning-rate", says="The cosine falls to zero and is cut off at a tenth of the")
def a_floor_by_max(step, steps, peak, warmup):
    if step <= warmup:
        return peak * step / warmup
    return max(0.1 * peak, peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))))


@right("learning-rate")
def rate_in_float32(step, steps, peak, warmup):
    if step < warmup:
        return torch.tensor(step) * peak / warmup
    progress = torch.tensor((step - warmup) / (steps - warmup))
    return peak / 10 + (peak - peak / 10) * (1 + torch.cos(progress * torch.pi)) / 2


@right("learning-rate")
def by_interpolation(step, steps, peak, warmup):
    if step <= warmup:
        return np.interp(step, [0, warmup], [0, peak])
    return peak * (0.1 + 0.9 * np.cos(np.pi / 2 * (step - warmup) / (steps - warmup)) ** 2)


@wrong("calls-match", says="In Python `True == 1`, so the answer `true` passes for 1,")
def plain_equality(said, wanted):
    return said == wanted


@wrong("calls-match", says="5 and 5.0 are the same number, of two types. Ask whether")
def as_text(said, wanted):
    return json.dumps(said, sort_keys=True) == json.dumps(wanted, sort_keys=True)


@wrong("calls-match", says="Call 1 is to 'add' where 'timer' is wanted: your function")
def in_any_order(said, wanted):
    if said is None:
        return False
    return sorted(json.dumps(call, sort_keys=True) for call in said) == sorted(
        json.dumps(call, sort_keys=True) for call in wanted
    )


@wrong("calls-match", says="Only the names of the functions are compared. Open hint 3.")
def names_only(said, wanted):
    return said is not None and [call["name"] for call in said] == [call["name"] for call in wanted]


@wrong("calls-match", says="5 and 5.0 are the same number, of two types. Ask whether")
def types_must_agree(said, wanted):
    if said is None or len(said) != len(wanted):
        return False
    for one, other in zip(said, wanted, strict=True):
        if one["name"] != other["name"] or one["arguments"].keys() != other["arguments"].keys():
            return False
        for key, value in one["arguments"].items():
            if type(value) is not type(other["arguments"][key]) or value != other["arguments"][key]:
                return False
    return True


@wrong("calls-match", says="The answer is None: your function returned None instead of")
def none_for_none(said, wanted):
    if said is None:
        return None
    return said == wanted


def _with_kinds(call):
    values = {key: (isinstance(value, bool), value) for key, value in call["arguments"].items()}
    return call["name"], values


@right("calls-match")
def tagged_values(said, wanted):
    return said is not None and [_with_kinds(call) for call in said] == [_with_kinds(call) for call in wanted]


@right("calls-match")
def canonical_text(said, wanted):
    def text(calls):
        plain = [[c["name"], {k: float(v) if type(v) is int else v for k, v in c["arguments"].items()}] for c in calls]
        return json.dumps(plain, sort_keys=True)

    return np.bool_(isinstance(said, list) and text(said) == text(wanted))


# ---- 07


@wrong("seed-interval", says="That takes the spread with n in its denominator. With the")
def population_deviation(results, t):
    half = t * np.std(results) / math.sqrt(len(results))
    return np.mean(results) - half, np.mean(results) + half


@wrong("seed-interval", says="That is where single runs fall, not their mean: the mean of")
def root_forgotten(results, t):
    half = t * np.std(results, ddof=1)
    return np.mean(results) - half, np.mean(results) + half


@wrong("seed-interval", says="That divides by n, not by its root. Open hint 2.")
def divided_by_n(results, t):
    half = t * np.std(results, ddof=1) / len(results)
    return np.mean(results) - half, np.mean(results) + half


@wrong("seed-interval", says="These are the mean and half of the interval; its two ends")
def mean_and_half(results, t):
    half = t * np.std(results, ddof=1) / math.sqrt(len(results))
    return np.mean(results), half


@wrong("seed-interval", says="The values are right, but where 1 to 2 should be, there is")
def high_before_low(results, t):
    half = t * np.std(results, ddof=1) / math.sqrt(len(results))
    return np.mean(results) + half, np.mean(results) - half


@wrong("seed-interval", says="The interval is that of the mean; its middle is not the")
def around_the_median(results, t):
    half = t * np.std(results, ddof=1) / math.sqrt(len(results))
    return np.median(results) - half, np.median(results) + half


@right("seed-interval")
def interval_in_float32(results, t):
    x = torch.tensor(results)
    half = t * x.std() / len(x) ** 0.5
    return x.mean() - half, x.mean() + half


@right("seed-interval")
def interval_of_numpy(results, t):
    x = np.array(results)
    return tuple(x.mean() + np.array([-1, 1]) * t * x.std(ddof=1) / np.sqrt(x.size))


@wrong("paired", says="These are differences of runs that stand at the same place")
def by_position(ours, theirs):
    return [a - b for a, b in zip(ours.values(), theirs.values(), strict=False)]


@wrong("paired", says="The signs are the other way round: ours minus theirs.")
def theirs_minus_ours(ours, theirs):
    return [theirs[seed] - ours[seed] for seed in sorted(ours.keys() & theirs.keys())]


@wrong("paired", says="These are the right differences, but not in the order of")
def in_our_order(ours, theirs):
    return [ours[seed] - theirs[seed] for seed in ours if seed in theirs]


@wrong("paired", says="The differences are right, and come with their seeds: give")
def a_dictionary(ours, theirs):
    return {seed: ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())}


@wrong("paired", says="A seed that only one side has got a partner out of thin air")
def missing_is_zero(ours, theirs):
    return [ours.get(seed, 0.0) - theirs.get(seed, 0.0) for seed in sorted(ours.keys() | theirs.keys())]


@wrong("paired", says="an ndarray where a list of 3 is wanted")
def an_array(ours, theirs):
    return np.array([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])


@right("paired")
def differences_of_numpy(ours, theirs):
    seeds = sorted(set(ours).intersection(theirs))
    return list(np.array([ours[s] for s in seeds]) - np.array([theirs[s] for s in seeds]))


@right("paired")
def in_single_precision(ours, theirs):
    return [np.float32(ours[seed]) - np.float32(theirs[seed]) for seed in np.intersect1d(list(ours), list(theirs))]


@wrong("smallest-rank", says="You ask whether the middle or the upper end lies above")
def lowest_mean(differences):
    return min(differences, key=lambda rank: sum(differences[rank]))


@wrong("smallest-rank", says="That is the smallest rank there is, whatever its interval")
def smallest_of_all(differences):
    return min(differences)


@wrong("smallest-rank", says="You ask whether the middle or the upper end lies above")
def high_below_zero(differences):
    return min(rank for rank, (low, high) in differences.items() if high <= 0)


@wrong("smallest-rank", says="An interval that begins at zero does not lie above it: `low")
def strictly_below_zero(differences):
    return min((rank for rank, (low, high) in differences.items() if low < 0), default=min(differences))


@wrong("smallest-rank", says="That is the largest such rank. The smallest costs least.")
def largest_such_rank(differences):
    return max(rank for rank, (low, high) in differences.items() if low <= 0 <= high)


@right("smallest-rank")
def ranks_in_order(differences):
    for rank in sorted(differences):
        if not differences[rank][0] > 0:
            return rank


@right("smallest-rank")
def a_rank_of_numpy(differences):
    ranks = np.array(list(differences))
    return ranks[np.array([low for low, _ in differences.values()]) <= 0].min()


@wrong("not-dominated", says="That wants both to be strictly less. One of equal bytes and")
def worse_in_both(conditions):
    return sorted(
        name
        for name, (size, loss) in conditions.items()
        if not any(s < size and x < loss for s, x in conditions.values())
    )


@wrong("not-dominated", says="Two equal conditions beat each other here, and both are")
def equals_beat(conditions):
    return sorted(
        name
        for name, (size, loss) in conditions.items()
        if not any(s <= size and x <= loss for other, (s, x) in conditions.items() if other != name)
    )


@wrong("not-dominated", says="Those are the right ones; return their names sorted.")
def as_they_come(conditions):
    return [
        name
        for name, (size, loss) in conditions.items()
        if not any(s <= size and x <= loss and (s, x) != (size, loss) for s, x in conditions.values())
    ]


@wrong("not-dominated", says="Those are the ones that are beaten. Return the others.")
def the_dominated(conditions):
    return sorted(
        name
        for name, (size, loss) in conditions.items()
        if any(s <= size and x <= loss and (s, x) != (size, loss) for s, x in conditions.values())
    )


@wrong("not-dominated", says="They are the right ones, in another order")
def sorted_by_bytes(conditions):
    kept = [
        name
        for name, (size, loss) in conditions.items()
        if not any(s <= size and x <= loss and (s, x) != (size, loss) for s, x in conditions.values())
    ]
    return sorted(kept, key=lambda name: conditions[name])


@right("not-dominated")
def by_a_sweep(conditions):
    kept, best = [], math.inf
    ordered = sorted(conditions.items(), key=lambda item: item[1])
    last = None
    for name, (size, loss) in ordered:
        if loss < best or (size, loss) == last:
            kept.append(name)
            best, last = loss, (size, loss)
    return sorted(kept)


@right("not-dominated")
def by_broadcasting(conditions):
    names = np.array(list(conditions))
    x = np.array([conditions[name] for name in names])
    beaten = ((x[None] <= x[:, None]).all(2) & (x[None] < x[:, None]).any(2)).any(1)
    return sorted(names[~beaten].tolist())


@wrong("tokens-for-share", says="Rounded down: with that many tokens the share is still a")
def tokens_rounded_down(decoding, fixed, per_token, share):
    return max(1, int((decoding / share - fixed) / per_token))


@wrong("tokens-for-share", says="Where decoding is cheap from the first token on, your")
def may_be_negative(decoding, fixed, per_token, share):
    return math.ceil((decoding / share - fixed) / per_token)


@wrong("tokens-for-share", says="That counts decoding twice: `fixed` has it already. Open")
def decoding_on_top(decoding, fixed, per_token, share):
    return max(1, math.ceil((decoding / share - fixed - decoding) / per_token))


@wrong("tokens-for-share", says="That leaves out what a step takes however few its tokens")
def fixed_ignored(decoding, fixed, per_token, share):
    return max(1, math.ceil(decoding / share / per_token))


@wrong("tokens-for-share", says="`fixed` is a time and is subtracted from a number of")
def a_share_of_the_tokens(decoding, fixed, per_token, share):
    return max(1, math.ceil(decoding / (share * per_token) - fixed))


@right("tokens-for-share")
def by_bisection(decoding, fixed, per_token, share):
    low, high = 0, 1
    while decoding > share * (fixed + per_token * high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if decoding > share * (fixed + per_token * middle):
            low = middle
        else:
            high = middle
    return high


@right("tokens-for-share")
def ceiling_of_numpy(decoding, fixed, per_token, share):
    return np.maximum(1, np.ceil((decoding / share - fixed) / per_token)).astype(int)


# ---- 08


def cut(whole, processes):
    """The parts that processes keep: answers to combine-gradients, which asked for the whole, cut."""
    rows = -(-len(whole) // processes)
    return [whole[k * rows : (k + 1) * rows] for k in range(processes)]


@wrong("reduce-scatter", says="That is the plain average over processes, in which a token")
def averaged(gradients, tokens):
    return cut(torch.stack(gradients).mean(0), len(tokens))


@wrong("reduce-scatter", says="The weights are right, but they must be divided by the")
def weighted_and_averaged(gradients, tokens):
    return cut(sum(g * t for g, t in zip(gradients, tokens, strict=True)) / len(gradients), len(tokens))


@wrong("reduce-scatter", says="Each gradient is a mean over its own tokens: multiply it")
def sum_of_all(gradients, tokens):
    return cut(torch.stack(gradients).sum(0) / sum(tokens), len(tokens))


@wrong("reduce-scatter", says="The weights are the wrong way round: many tokens must count")
def weighted_the_wrong_way(gradients, tokens):
    weights = [1 / t for t in tokens if t]
    return cut(sum(g * w for g, w in zip(gradients, weights, strict=False)) / sum(weights), len(tokens))


@right("reduce-scatter")
def combined_in_numpy(gradients, tokens):
    found = np.average([g.numpy() for g in gradients], axis=0, weights=tokens)
    return cut(torch.from_numpy(np.asarray(found, dtype=np.float32)), len(tokens))


@right("reduce-scatter")
def into_a_total(gradients, tokens):
    total = torch.zeros(gradients[0].shape)
    for k in range(len(tokens)):
        total.add_(gradients[k], alpha=tokens[k])
    total /= sum(tokens)
    return cut(total, len(tokens))


@wrong("part-of", says="These parts differ by one row at most, which is fair, but")
def balanced_parts(tensor, process, processes):
    return tensor.tensor_split(processes)[process]


@wrong("part-of", says="That is every n-th row, which is how a batch is split. A")
def every_nth_row(tensor, process, processes):
    return tensor[process::processes]


@wrong("part-of", says="Rounded down, the rows that are left over belong to nobody.")
def rows_rounded_down(tensor, process, processes):
    rows = len(tensor) // processes
    return tensor[process * rows : (process + 1) * rows]


@wrong("part-of", says="The last process takes all that is left over, so its part")
def rest_to_the_last(tensor, process, processes):
    rows = len(tensor) // processes
    return tensor[process * rows :] if process == processes - 1 else tensor[process * rows : (process + 1) * rows]


@wrong("part-of")
def elements_instead_of_rows(tensor, process, processes):
    flat = tensor.flatten()
    size = -(-len(flat) // processes)
    return flat[process * size : (process + 1) * size]


@wrong("part-of", says="IndexError in `return tensor.chunk(")
def not_enough_chunks(tensor, process, processes):
    return tensor.chunk(processes)[process]


@right("part-of")
def chunks_and_nothing(tensor, process, processes):
    chunks = torch.chunk(tensor, processes)
    return chunks[process] if process < len(chunks) else tensor[:0]


@right("part-of")
def by_index(tensor, process, processes):
    size = math.ceil(tensor.shape[0] / processes)
    keep = torch.arange(tensor.shape[0]) // size == process
    return tensor[keep]


@wrong("bytes-on-the-wire", says="Blocks are dropped after the forward pass, so they are")
def gathered_once(blocks, gradients, processes):
    return (blocks + gradients) * (processes - 1) / processes


@wrong("bytes-on-the-wire", says="These are the whole tensors; a process has one n-th of each")
def own_part_too(blocks, gradients, processes):
    return 2 * blocks + gradients


@wrong("bytes-on-the-wire", says="These are the bytes to all processes together; a process")
def to_all_together(blocks, gradients, processes):
    return (2 * blocks + gradients) * (processes - 1)


@wrong("bytes-on-the-wire", says="Gradients cross once: nobody needs all of them, so they are")
def gradients_all_reduced(blocks, gradients, processes):
    return (2 * blocks + 2 * gradients) * (processes - 1) / processes


@right("bytes-on-the-wire")
def wire_in_float32(blocks, gradients, processes):
    return np.float32(2 * blocks + gradients) * np.float32(1 - 1 / processes)


@right("bytes-on-the-wire")
def part_by_part(blocks, gradients, processes):
    return sum((2 * blocks + gradients) / processes for other in range(1, processes))


@wrong("gpu-bytes", says="A single GPU has everything: nothing is gathered there, and")
def gathered_on_one_too(sharded, block, own, gpus):
    return sharded / gpus + 2 * block + own


@wrong("gpu-bytes", says="Embeddings and head are not cut, and activations belong to")
def own_is_cut(sharded, block, own, gpus):
    return (sharded + own) / gpus + (2 * block if gpus > 1 else 0)


@wrong("gpu-bytes", says="The gathered blocks are divided; each GPU has them whole")
def block_is_cut(sharded, block, own, gpus):
    return (sharded + 2 * block) / gpus + own if gpus > 1 else sharded + own


@wrong("gpu-bytes", says="Nothing is divided here: of what is cut, each GPU has one")
def nothing_is_cut(sharded, block, own, gpus):
    return sharded + (2 * block if gpus > 1 else 0) + own


@right("gpu-bytes")
def bill_in_float32(sharded, block, own, gpus):
    return np.float32(sharded / gpus) + np.float32(own) + np.float32(2 * block) * (gpus > 1)


@right("gpu-bytes")
def bill_as_a_tensor(sharded, block, own, gpus):
    return torch.tensor([sharded / gpus, own, 2 * block if gpus != 1 else 0], dtype=torch.float64).sum()


@wrong("smallest-node", says="On a single card nothing is gathered: try that one first,")
def formula_for_all(sharded, gathered, own, card):
    room = card - own - gathered
    return math.ceil(sharded / room) if room > 0 else None


@wrong("smallest-node", says="You stop at a number of cards; more than that may be")
def at_most_a_hundred(sharded, gathered, own, card):
    for gpus in range(1, 101):
        if sharded / gpus + (gathered if gpus > 1 else 0) + own <= card:
            return gpus
    return None


@wrong("smallest-node", says="If no number is enough, return None. Open hint 3.")
def zero_for_never(sharded, gathered, own, card):
    if sharded + own <= card:
        return 1
    room = card - own - gathered
    return max(2, math.ceil(sharded / room)) if room > 0 else 0


@wrong("smallest-node", says="Rounded down, the last piece has no place. Open hint 1.")
def node_rounded_down(sharded, gathered, own, card):
    if sharded + own <= card:
        return 1
    room = card - own - gathered
    return max(2, sharded // room) if room > 0 else None


@wrong("smallest-node", says="What exactly fills a card fits: `<=`. Open hint 2.")
def must_not_be_full(sharded, gathered, own, card):
    if sharded + own < card:
        return 1
    room = card - own - gathered
    return max(2, sharded // room + 1) if room > 0 else None


@wrong("smallest-node", says="On a single card nothing is gathered: try that one first,")
def never_one_card(sharded, gathered, own, card):
    room = card - own - gathered
    return max(2, math.ceil(sharded / room)) if room > 0 else None


@right("smallest-node")
def tried_in_turn(sharded, gathered, own, card):
    if sharded + own <= card:
        return 1
    if own + gathered >= card:
        return None
    gpus = np.int64(2)
    while gpus * (own + gathered) + sharded > card * gpus:
        gpus += 1
    return gpus


@right("smallest-node")
def with_a_limit_that_is_enough(sharded, gathered, own, card):
    for gpus in range(1, sharded + 3):
        if sharded + (gathered * gpus if gpus > 1 else 0) + own * gpus <= card * gpus:
            return gpus


def _bounds(rows, processes, process):
    size = -(-rows // processes)
    return min(process * size, rows), min((process + 1) * size, rows)


@wrong("read-plan", says="These are rows of the whole tensor; each file begins with")
def rows_of_the_whole(rows, before, after, process):
    begin, end = _bounds(rows, after, process)
    plan = []
    for file in range(before):
        first, last = _bounds(rows, before, file)
        if max(begin, first) < min(end, last):
            plan.append((file, max(begin, first), min(end, last)))
    return plan


@wrong("read-plan", says="The last number is the row *after* the last one, as in a")
def last_row_included(rows, before, after, process):
    begin, end = _bounds(rows, after, process)
    plan = []
    for file in range(before):
        first, last = _bounds(rows, before, file)
        if max(begin, first) < min(end, last):
            plan.append((file, max(begin, first) - first, min(end, last) - first - 1))
    return plan


@wrong("read-plan", says="None is missing, but some are there that should not be.")
def files_in_vain(rows, before, after, process):
    begin, end = _bounds(rows, after, process)
    plan = []
    for file in range(before):
        first, last = _bounds(rows, before, file)
        if max(begin, first) <= min(end, last):
            plan.append((file, max(begin, first) - first, min(end, last) - first))
    return plan


@wrong("read-plan", says="It would be right with `before` and `after` exchanged. With")
def before_and_after_swapped(rows, before, after, process):
    begin, end = _bounds(rows, before, process)
    plan = []
    for file in range(after):
        first, last = _bounds(rows, after, file)
        if max(begin, first) < min(end, last):
            plan.append((file, max(begin, first) - first, min(end, last) - first))
    return plan


@wrong("read-plan", says="Whole files are read; read only the rows that this process")
def whole_files(rows, before, after, process):
    begin, end = _bounds(rows, after, process)
    plan = []
    for file in range(before):
        first, last = _bounds(rows, before, file)
        if max(begin, first) < min(end, last):
            plan.append((file, 0, last - first))
    return plan


@right("read-plan")
def row_after_row(rows, before, after, process):
    size, mine, plan = -(-rows // before), -(-rows // after), {}
    for row in range(rows):
        if row // mine == process:
            plan.setdefault(row // size, []).append(row % size)
    return [(file, found[0], found[-1] + 1) for file, found in sorted(plan.items())]


@right("read-plan")
def lists_of_numpy(rows, before, after, process):
    places = np.arange(rows)
    mine = places[places // -(-rows // after) == process]
    size = -(-rows // before)
    files = np.unique(mine // size)
    return [
        [f, (mine[mine // size == f] - f * size).min(), (mine[mine // size == f] - f * size).max() + 1] for f in files
    ]
