"""Answers written before the checks were repaired, and first run afterwards: wrong ones and unusual right ones."""

import functools
import itertools
import math
import statistics
from fractions import Fraction

import numpy as np
import torch

from unseen_answers import right, wrong

# ---- 00


@wrong("weights-in-gb", says="All of it is what it should be, divided by `bits`")
def a_bit_for_a_byte(parameters, bits):
    return parameters / 8 / 1e9


@wrong("weights-in-gb", says="It is rounded down to a whole number")
def whole_gigabytes(parameters, bits):
    return int(parameters * bits / 8 / 1e9)


@right("weights-in-gb")
def of_an_array(parameters, bits):
    return np.array(parameters * bits / 8e9)


# ---- 01


@wrong("decode", says="These are codes counted from 1. Code 0 is the lowest value,")
def codes_from_one(code, low, high):
    return low + (code - 1) * (high - low) / 14


@wrong("decode", says="That is the middle of one of sixteen parts of the range;")
def in_the_middle_of_its_step(code, low, high):
    return low + (code + 0.5) * (high - low) / 16


@wrong("decode", says="It is rounded to 2 places")
def rounded_to_two(code, low, high):
    return round(low + code * (high - low) / 15, 2)


@right("decode")
def weighted_ends(code, low, high):
    return torch.tensor((15 - code) / 15) * low + torch.tensor(code / 15) * high


@wrong("block-absmax", says="The largest magnitude has kept its sign; a scale is not")
def signed_extreme(weight, block_size):
    return torch.stack([part[part.abs().argmax()] for part in weight.flatten().split(block_size)])


@wrong("block-absmax", says="The numbers are right, but there is a dimension of 1 too")
def keepdim_left(weight, block_size):
    return torch.stack([part.abs().max().reshape(1) for part in weight.flatten().split(block_size)])


@wrong("block-absmax", says="These blocks take every n-th weight; a block is")
def whole_rows_of_blocks(weight, block_size):
    return weight.view(-1, block_size).abs().amax(dim=0)


@right("block-absmax")
def padded_with_zeros(weight, block_size):
    flat = torch.nn.functional.pad(weight.flatten(), (0, -weight.numel() % block_size))
    return torch.linalg.vector_norm(flat.view(-1, block_size), ord=math.inf, dim=1)


@wrong("nearest-code", says="All are one too large")
def one_too_high(x, levels):
    return (torch.bucketize(x, (levels[1:] + levels[:-1]) / 2) + 1).to(torch.uint8)


@wrong("nearest-code", says="Right, except for numbers exactly halfway between two")
def nearest_by_last(x, levels):
    distance = (x[:, None] - levels.flip(0)).abs()
    return (15 - distance.argmin(1)).to(torch.uint8)


@wrong("nearest-code", says="The numbers are right, but in a list; a tensor is wanted.")
def codes_as_a_list(x, levels):
    midpoints = (levels[1:] + levels[:-1]) / 2
    return [int((value > midpoints).sum()) for value in x]


@right("nearest-code")
def nearest_by_distance(x, levels):
    return (x.unsqueeze(1).double() - levels.double()).abs().argmin(dim=1).type(torch.uint8)


@wrong("pack-nibbles", says="The high nibble is worth 16: four bits to the left. Open")
def joined_as_decimals(codes):
    if len(codes) % 2:
        codes = torch.cat([codes, torch.tensor([7], dtype=torch.uint8)])
    return codes[::2] * 10 + codes[1::2]


@wrong("pack-nibbles", says="An even number of codes needs no filler: you add two, and a")
def always_padded(codes):
    codes = torch.cat([codes, torch.full((2 - len(codes) % 2,), 7, dtype=torch.uint8)])
    return codes[::2] * 16 + codes[1::2]


@right("pack-nibbles")
def viewed_in_pairs(codes):
    codes = np.pad(codes.numpy(), (0, len(codes) % 2), constant_values=7).reshape(-1, 2)
    return torch.from_numpy(np.bitwise_or(np.left_shift(codes[:, 0], 4), codes[:, 1]))


@wrong("normal-float", says="There is no exact zero, and both sides have the same number")
def no_zero_at_all(bits):
    n = 2**bits
    edge = 1 - (1 / (2 * n) + 1 / (2 * (n - 1))) / 2
    above = torch.special.ndtri(torch.linspace(0.5, edge, n // 2 + 1, dtype=torch.float64))[1:]
    found = torch.cat([-above.flip(0), above])
    return (found / found.max()).float()


@wrong("normal-float", says="That is the same table for any number of bits: the number")
def always_four_bits(bits):
    n = 16
    edge = 1 - (1 / (2 * n) + 1 / (2 * (n - 1))) / 2
    above = torch.special.ndtri(torch.linspace(0.5, edge, n // 2 + 1, dtype=torch.float64))
    below = -torch.special.ndtri(torch.linspace(0.5, edge, n // 2, dtype=torch.float64))[1:].flip(0)
    return (torch.cat([below, above]) / above[-1]).float()


@wrong("normal-float", says="right numbers in another order")
def not_sorted(bits):
    n = 2**bits
    edge = 1 - (1 / (2 * n) + 1 / (2 * (n - 1))) / 2
    above = torch.special.ndtri(torch.linspace(0.5, edge, n // 2 + 1, dtype=torch.float64))
    below = -torch.special.ndtri(torch.linspace(0.5, edge, n // 2, dtype=torch.float64))[1:]
    return (torch.cat([above, below]) / above[-1]).float()


@right("normal-float")
def by_erfinv(bits):
    n = 2**bits
    edge = (1 - 1 / (2 * n) + 1 - 1 / (2 * (n - 1))) / 2
    p = [0.5 + k / (n // 2) * (edge - 0.5) for k in range(n // 2 + 1)]
    q = [0.5 - k / (n // 2 - 1) * (edge - 0.5) for k in range(n // 2 - 1, 0, -1)]
    x = torch.erfinv(2 * torch.tensor(q + p, dtype=torch.float64) - 1)
    return (x / x[-1]).to(torch.float32)


@wrong("bits-per-weight", says="A constant has 32 bits. Open hint 1.")
def constants_of_sixteen(block_size, constants, double_quant):
    return 4 + constants * (8 / block_size + 32 / block_size / 256 if double_quant else 16 / block_size)


@wrong("bits-per-weight", says="A second-level scale serves 256 constants: divide by that")
def eight_and_thirtytwo(block_size, constants, double_quant):
    return 4 + constants * ((8 + 32) / block_size if double_quant else 32 / block_size)


@right("bits-per-weight")
def exactly(block_size, constants, double_quant):
    each = Fraction(8 * 256 + 32, 256) if double_quant else Fraction(32)
    return np.float32(float(4 + constants * each / block_size))


@wrong("predict-and-measure", says="The step is divided by 12, not by its root. Open hint 1.")
def divided_by_twelve(weight, block_size):
    scale = weight.abs().amax(1, keepdim=True)
    rounded = (weight / scale * 7).round() / 7 * scale
    return (scale / 7).square().mean().sqrt().item() / 12, (weight - rounded).square().mean().sqrt().item()


@wrong("predict-and-measure", says="The step is absmax / 7: fourteen steps from -7 to 7. You")
def fifteen_steps_of_the_range(weight, block_size):
    scale = weight.abs().amax(1, keepdim=True)
    step = 2 * scale / 15
    rounded = (weight / step).round() * step
    return (step.square().mean() / 12).sqrt().item(), (weight - rounded).square().mean().sqrt().item()


@wrong("predict-and-measure", says="The measured number is a mean of magnitudes; take the root")
def mean_absolute(weight, block_size):
    scale = weight.abs().amax(1, keepdim=True)
    rounded = (weight / scale * 7).round() / 7 * scale
    return ((scale / 7).square().mean() / 12).sqrt().item(), (weight - rounded).abs().mean().item()


@right("predict-and-measure")
def with_norms(weight, block_size):
    step = weight.abs().max(dim=1).values / 7
    error = weight - torch.round(weight / step[:, None]) * step[:, None]
    return [step.norm() / math.sqrt(12 * len(step)), error.norm() / math.sqrt(error.numel())]


@wrong("counterexamples", says="None of your blocks exposes its bug. Give three tensors of")
def all_ones(levels):
    return [torch.ones(16), torch.ones(16), torch.ones(16)]


@wrong("counterexamples", says="a Tensor where a list of 3 is wanted")
def stacked(levels):
    blocks = torch.zeros(3, 16)
    blocks[0, :2] = torch.tensor([-1.0, 0.5])
    blocks[1, 0], blocks[1, 1] = 1.0, (levels[7] + levels[8]) / 2
    return blocks


@wrong("counterexamples", says="None of your blocks exposes its bug. Give three tensors of")
def in_float64(levels):
    middle = torch.zeros(16, dtype=torch.float64)
    middle[0], middle[1] = 1.0, (levels[7] + levels[8]).double() / 2
    first = -torch.ones(16, dtype=torch.float64)
    first[3] = 0.5
    return [first, middle, torch.zeros(16, dtype=torch.float64)]


@right("counterexamples")
def scaled_up(levels):
    first = torch.linspace(-4, 2, 16)
    second = torch.full((16,), 8.0)
    second[::2] = 8 * (levels[10] + levels[11]) / 2
    return [first, second, torch.zeros(16)]


# ---- 02


@wrong("scale-from-example", says="A scale here is positive: a negative weight has a negative")
def magnitude_only(weight, code, levels):
    return abs(weight) / levels[code]


@wrong("scale-from-example", says="You compute the level from the code, as if levels were")
def code_over_fifteen(weight, code, levels):
    return weight / (code / 15) if code else 0.0


@right("scale-from-example")
def with_an_array(weight, code, levels):
    return np.float64(weight) / np.asarray(levels, dtype=np.float32)[code]


@wrong("weights-of-a-code", says="Half a step each way is right for equal steps; NF4's levels")
def half_a_step_each_way(code, absmax, levels):
    step = 2 / 15 / 2
    return (levels[code] - step) * absmax, (levels[code] + step) * absmax


@wrong("weights-of-a-code")
def the_code_above(code, absmax, levels):
    edges = [levels[0], *((a + b) / 2 for a, b in itertools.pairwise(levels)), levels[15]]
    edges.append(levels[15])
    return edges[code + 1] * absmax, edges[code + 2] * absmax


@wrong("weights-of-a-code", says="a float where a tuple of 2 is wanted")
def a_length(code, absmax, levels):
    edges = [levels[0], *((a + b) / 2 for a, b in itertools.pairwise(levels)), levels[15]]
    return (edges[code + 1] - edges[code]) * absmax


@right("weights-of-a-code")
def as_tensors(code, absmax, levels):
    table = torch.tensor(levels)
    low = table[code] if code == 0 else table[code - 1 : code + 1].mean()
    high = table[code] if code == 15 else table[code : code + 2].mean()
    return low * absmax, high * absmax


@wrong("dequantize-packed", says="That divides by the scales. Quantizing divides; decoding")
def divided_by_scales(packed, scales, table, block_size, n):
    codes = torch.stack([packed >> 4, packed & 15], 1).flatten()[:n].long()
    return table[codes] / scales.repeat_interleave(block_size)[:n]


@wrong("dequantize-packed", says="The codes are multiplied by the scale as if they were")
def codes_times_scales(packed, scales, table, block_size, n):
    codes = torch.stack([packed >> 4, packed & 15], 1).flatten()[:n].float()
    return codes * scales.repeat_interleave(block_size)[:n]


@wrong("dequantize-packed", says="its dtype is torch.float64 instead of torch.float32")
def dequantized_in_double(packed, scales, table, block_size, n):
    codes = torch.stack([packed >> 4, packed & 15], 1).flatten()[:n].long()
    return table.double()[codes] * scales.repeat_interleave(block_size)[:n]


@right("dequantize-packed")
def block_of_blocks(packed, scales, table, block_size, n):
    codes = torch.empty(2 * packed.numel(), dtype=torch.int64)
    codes[0::2] = torch.div(packed, 16, rounding_mode="floor")
    codes[1::2] = torch.remainder(packed, 16)
    values = torch.take(table, codes)[:n]
    return torch.cat([part * scale for part, scale in zip(values.split(block_size), scales, strict=True)])


@wrong("least-error-scale", says="The sums go over the wrong dimension: one scale for each")
def over_the_wrong_dim(w, q):
    below = (q * q).sum(0)
    return torch.where(below == 0, 0, (w * q).sum(0) / below)


@wrong("least-error-scale", says="That makes the largest weight right, and only that one; all")
def largest_over_largest(w, q):
    below = q.abs().amax(1)
    return torch.where(below == 0, 0, w.abs().amax(1) / below)


@wrong("least-error-scale", says="That is a sum over a sum. In the derivative each weight is")
def sum_over_sum(w, q):
    below = q.sum(1)
    return torch.where(below == 0, 0, w.sum(1) / below)


@right("least-error-scale")
def blocks_in_a_loop(w, q):
    scales = []
    for block, levels in zip(w.double(), q.double(), strict=True):
        below = torch.dot(levels, levels)
        scales.append(0.0 if below == 0 else float(torch.dot(block, levels) / below))
    return torch.tensor(scales)


def _codes(x, levels):
    return torch.bucketize(x, (levels[1:] + levels[:-1]) / 2).to(torch.uint8)


@wrong("double-quantize", says="The offset is the mean of the scales; you took another")
def median_for_an_offset(scales, levels):
    offset = scales.median()
    groups = (scales - offset).split(256)
    absmax2 = torch.stack([group.abs().max() for group in groups])
    codes = [_codes(g / a if a else g, levels) for g, a in zip(groups, absmax2, strict=True)]
    return torch.cat(codes), absmax2, offset


@wrong("double-quantize", says="absmax2 is that of the scales before the offset is")
def absmax_before_the_offset(scales, levels):
    offset = scales.mean()
    absmax2 = torch.stack([group.abs().max() for group in scales.split(256)])
    codes = [_codes(g / a if a else g, levels) for g, a in zip((scales - offset).split(256), absmax2, strict=True)]
    return torch.cat(codes), absmax2, offset


@wrong("double-quantize", says="its dtype is torch.int64 instead of torch.uint8")
def codes_of_int64(scales, levels):
    offset = scales.mean()
    groups = (scales - offset).split(256)
    absmax2 = torch.stack([group.abs().max() for group in groups])
    codes = [_codes(g / a if a else g, levels) for g, a in zip(groups, absmax2, strict=True)]
    return torch.cat(codes).long(), absmax2, offset


@right("double-quantize")
def searched_and_filled(scales, levels):
    offset, n = scales.mean(), scales.numel()
    groups = torch.zeros(math.ceil(n / 256), 256)
    groups.view(-1)[:n] = scales - offset
    absmax2 = groups.abs().max(dim=1).values
    safe = torch.where(absmax2 == 0, 1, absmax2)
    codes = np.searchsorted(((levels[1:] + levels[:-1]) / 2).numpy(), (groups / safe[:, None]).numpy().ravel()[:n])
    return torch.from_numpy(codes.astype("uint8")), absmax2, offset


@wrong("flipped-blocks", says="The scales are right, but these are the blocks whose")
def below_the_offset(codes, absmax2, offset, levels):
    decoded = levels[codes.long()] * absmax2.repeat_interleave(256)[: len(codes)] + offset
    return decoded, (decoded < offset).nonzero().flatten()


@wrong("flipped-blocks", says="These are the blocks whose scales are positive; the others")
def the_good_ones(codes, absmax2, offset, levels):
    decoded = levels[codes.long()] * absmax2.repeat_interleave(256)[: len(codes)] + offset
    return decoded, (decoded >= 0).nonzero().flatten()


@wrong("flipped-blocks", says="The second-level scales are dealt out in turn; the first")
def groups_dealt_in_turn(codes, absmax2, offset, levels):
    decoded = levels[codes.long()] * absmax2.repeat(256)[: len(codes)] + offset
    return decoded, (decoded < 0).nonzero().flatten()


@right("flipped-blocks")
def split_into_groups(codes, absmax2, offset, levels):
    parts = [torch.take(levels, c.to(torch.int64)) * a for c, a in zip(codes.split(256), absmax2, strict=True)]
    decoded = torch.cat(parts).add_(offset)
    return decoded, torch.tensor([k for k in range(len(decoded)) if decoded[k] < 0], dtype=torch.int64)


@wrong("double-quantized-bits", says="A scale takes 8 bits now, not 32; only second-level scales")
def scales_of_thirtytwo(block_size, scale_block):
    return 4 + 32 / block_size + 32 / (block_size * scale_block)


@wrong("double-quantized-bits", says="The scales of the scales are missing: 32 bits for each")
def no_second_level(block_size, scale_block):
    return 4 + 8 / block_size


@right("double-quantized-bits")
def by_fractions(block_size, scale_block):
    return float(4 + Fraction(8, block_size) + Fraction(32, block_size * scale_block))


@wrong("model-bytes", says="That is without double quantization: scales in 32 bits and")
def scales_in_float32(shapes, block_size):
    return sum(math.ceil(r * c / 2) + 4 * math.ceil(r * c / block_size) for r, c in shapes)


@wrong("model-bytes", says="There is one offset for all tensors; each has its own. Open")
def one_offset_for_all(shapes, block_size):
    total = 4
    for rows, columns in shapes:
        blocks = math.ceil(rows * columns / block_size)
        total += math.ceil(rows * columns / 2) + blocks + 4 * math.ceil(blocks / 256)
    return total


@wrong("model-bytes", says="A second-level scale serves 256 *scales*, not 256 weights.")
def second_level_of_weights(shapes, block_size):
    total = 0
    for rows, columns in shapes:
        n = rows * columns
        total += math.ceil(n / 2) + math.ceil(n / block_size) + 4 * math.ceil(n / 256) + 4
    return total


@right("model-bytes")
def reduced(shapes, block_size):
    def add(total, shape):
        n = math.prod(shape)
        blocks = (n + block_size - 1) // block_size
        return total + torch.tensor((n + 1) // 2 + blocks + (blocks + 255) // 256 * 4 + 4)

    return functools.reduce(add, shapes, 0)


# ---- 03


@wrong("adapter-parameters", says="All of it is 2 times what it should be")
def twice_each(n_in, n_out, rank):
    return 2 * rank * (n_in + n_out)


@wrong("adapter-parameters", says="It is too large by `n_out` in each case")
def with_biases(n_in, n_out, rank):
    return rank * (n_in + n_out) + n_out


@right("adapter-parameters")
def of_two_layers(n_in, n_out, rank):
    return np.int32(rank) * n_in + np.int32(rank) * n_out


@wrong("break-even-rank", says="Half of the smaller side is right for squares only. Open")
def half_of_the_smaller(n_in, n_out):
    return min(n_in, n_out) // 2


@wrong("break-even-rank", says="That is the first rank at which LoRA is no longer smaller;")
def rounded_up(n_in, n_out):
    return math.ceil(n_in * n_out / (n_in + n_out))


@right("break-even-rank")
def counted_ranks(n_in, n_out):
    ranks = torch.arange(1, min(n_in, n_out) + 1)
    return (ranks * (n_in + n_out) < n_in * n_out).sum()


@wrong("lora-forward", says="A and B are multiplied in the wrong order: the product is B")
def a_and_b_exchanged(x, w, a, b, alpha, use_rslora):
    s = alpha / (len(a) ** 0.5 if use_rslora else len(a))
    return x @ w.T + s * (x @ b @ a)


@wrong("lora-forward", says="The adapter is multiplied by the rank instead of divided")
def multiplied_by_r(x, w, a, b, alpha, use_rslora):
    s = alpha * (len(a) ** 0.5 if use_rslora else len(a))
    return x @ w.T + s * (x @ a.T @ b.T)


@wrong("lora-forward", says="The two factors are swapped: plain LoRA has alpha / r,")
def flags_exchanged(x, w, a, b, alpha, use_rslora):
    s = alpha / (len(a) if use_rslora else len(a) ** 0.5)
    return x @ w.T + s * (x @ a.T @ b.T)


@right("lora-forward")
def one_example_at_a_time(x, w, a, b, alpha, use_rslora):
    s = alpha / math.sqrt(a.size(0)) if use_rslora else alpha / a.size(0)
    return torch.stack([(w @ one.T + b @ (a @ one.T) * s).T for one in x])


@wrong("adapter-gradients")
def each_through_itself(gradient, a, b, s):
    return s * a @ gradient.T @ gradient, s * gradient @ gradient.T @ b


@wrong("adapter-gradients", says="In each of the 2 values: all of it is what it should be, divided by")
def divided_by_s(gradient, a, b, s):
    return b.T @ gradient / s, gradient @ a.T / s


@wrong("adapter-gradients", says="In each of the 2 values: all of it is what it should be, times")
def squared_scale(gradient, a, b, s):
    return s * s * b.T @ gradient, s * s * gradient @ a.T


@right("adapter-gradients")
def with_matmul_of_transposes(gradient, a, b, s):
    return s * (gradient.T @ b).T, torch.einsum("oi,ri->or", gradient, a).mul(s)


@wrong("merge-adapter", says="RuntimeError in `return (w.float() + ")
def a_before_b(w, a, b, alpha):
    return (w.float() + alpha / len(a) * (a.T @ b.T).T.T).to(w.dtype)


@wrong("merge-adapter", says="r is the number of rows of A, (r, in); you divide by its")
def by_the_wrong_rank(w, a, b, alpha):
    return (w.float() + alpha / a.shape[1] * (b @ a)).to(w.dtype)


@wrong("merge-adapter", says="The merged weight is rounded to one 16-bit dtype")
def always_bfloat16(w, a, b, alpha):
    return (w.float() + alpha / len(a) * (b @ a)).to(torch.bfloat16)


@right("merge-adapter")
def rank_by_rank(w, a, b, alpha):
    total = w.double()
    for k in range(len(a)):
        total = total + alpha / len(a) * torch.outer(b[:, k].double(), a[k].double())
    return total.type(w.dtype)


@wrong("find-targets", says="You look at the beginning of a path; a target has to be its")
def beginning_with(paths, targets):
    return [p for p in paths if any(p.startswith(t) for t in targets)]


@wrong("find-targets", says="A module at the top has no dot before its name: its whole")
def never_the_whole_path(paths, targets):
    return [p for p in paths if any(p.endswith("." + t) for t in targets)]


@wrong("find-targets", says="Only the first came back. With")
def only_the_first(paths, targets):
    for p in paths:
        if any(p == t or p.endswith("." + t) for t in targets):
            return [p]
    return []


@right("find-targets")
def by_a_pattern(paths, targets):
    import re

    pattern = re.compile(r"(?:.*\.)?(?:" + "|".join(map(re.escape, targets)) + r")")
    return [str(p) for p in paths if targets and pattern.fullmatch(p)]


@wrong("best-rank-r", says="It would be right with `rank + 1` for `rank`")
def one_rank_more(matrix, rank):
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, : rank + 1] * s[: rank + 1] @ vh[: rank + 1]


@wrong("best-rank-r", says="The singular values are squared. Their squares are the")
def squared_values(matrix, rank):
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] * s[:rank] ** 2 @ vh[:rank]


@wrong("best-rank-r", says="That is what is left over, the part that a matrix of this")
def what_is_left(matrix, rank):
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return matrix - u[:, :rank] * s[:rank] @ vh[:rank]


@right("best-rank-r")
def zeroed_values(matrix, rank):
    u, s, v = torch.svd(matrix)
    s = s.clone()
    s[rank:] = 0
    return torch.einsum("ik,k,jk->ij", u, s, v)


@wrong("predict-trainable", says="Those are the frozen weights; an adapter has r (in + out)")
def counted_weights(hidden, mlp, layers, heads, kv_heads, rank):
    kv = hidden // heads * kv_heads
    return layers * (2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * mlp)


@wrong("predict-trainable", says="That is two of the seven layers, q and v. Open hint 2.")
def queries_and_values(hidden, mlp, layers, heads, kv_heads, rank):
    kv = hidden // heads * kv_heads
    return layers * rank * (2 * hidden + hidden + kv)


@right("predict-trainable")
def by_numel(hidden, mlp, layers, heads, kv_heads, rank):
    kv = hidden // heads * kv_heads
    sizes = torch.tensor([[hidden, hidden], [hidden, kv], [hidden, kv], [hidden, hidden], *[[mlp, hidden]] * 3])
    return sizes.sum() * rank * layers


# ---- 04


@wrong("state-bytes")
def and_the_gradients(parameters, bits):
    return 3 * (parameters * bits // 8 + (4 * math.ceil(parameters / 256) if bits == 8 else 0))


@wrong("state-bytes", says="All of it is 8 times what it should be: bits, where bytes")
def state_in_bits(parameters, bits):
    return 2 * (parameters * bits + (32 * math.ceil(parameters / 256) if bits == 8 else 0))


@right("state-bytes")
def by_divmod(parameters, bits):
    whole, rest = np.divmod(parameters, 256)
    scales = (whole + (rest > 0)) * 4 if bits == 8 else 0
    return (parameters * (bits // 8) + scales) * 2


@wrong("adamw-step", says="It would be right with `step + 1` for `step`")
def step_from_zero(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    m = beta1 * m + (1 - beta1) * gradient
    v = beta2 * v + (1 - beta2) * gradient * gradient
    update = (m / (1 - beta1 ** (step + 1))) / ((v / (1 - beta2 ** (step + 1))).sqrt() + eps)
    return p * (1 - lr * weight_decay) - lr * update, m, v


@wrong("adamw-step", says="The weight moves along the gradient, uphill; the step is")
def uphill(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    m = beta1 * m + (1 - beta1) * gradient
    v = beta2 * v + (1 - beta2) * gradient * gradient
    update = (m / (1 - beta1**step)) / ((v / (1 - beta2**step)).sqrt() + eps)
    return p * (1 - lr * weight_decay) + lr * update, m, v


@wrong("adamw-step", says="v is the running mean of the gradient's *square*. Open hint")
def gradient_not_squared(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    m = beta1 * m + (1 - beta1) * gradient
    v = beta2 * v + (1 - beta2) * gradient.abs()
    update = (m / (1 - beta1**step)) / ((v / (1 - beta2**step)).sqrt() + eps)
    return p * (1 - lr * weight_decay) - lr * update, m, v


@wrong("adamw-step", says="Value 2 of 3 is wrong: it is the argument `m` as it came.")
def old_moments_returned(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    new_m = beta1 * m + (1 - beta1) * gradient
    new_v = beta2 * v + (1 - beta2) * gradient * gradient
    update = (new_m / (1 - beta1**step)) / ((new_v / (1 - beta2**step)).sqrt() + eps)
    return p * (1 - lr * weight_decay) - lr * update, m, v


@right("adamw-step")
def in_numpy_double(p, gradient, m, v, step, lr, beta1, beta2, eps, weight_decay):
    p, g, m, v = (tensor.double().numpy() for tensor in (p, gradient, m, v))
    m, v = m + (1 - beta1) * (g - m), v + (1 - beta2) * (g * g - v)
    p = p - lr * weight_decay * p - lr * (m / (1 - beta1**step)) / (np.sqrt(v / (1 - beta2**step)) + eps)
    return tuple(torch.from_numpy(np.asarray(x, dtype=np.float32)) for x in (p, m, v))


@wrong("pages-of", says="The first is missing")
def first_page_left_out(first, count, per_page):
    return list(range(first // per_page + 1, (first + count - 1) // per_page + 1))


@wrong("pages-of", says="an int where a list of 2 is wanted")
def how_many_pages(first, count, per_page):
    return (first + count - 1) // per_page - first // per_page + 1


@wrong("pages-of", says="All are one too large: is it counted from 0?")
def pages_counted_from_one(first, count, per_page):
    return [page + 1 for page in range(first // per_page, (first + count - 1) // per_page + 1)]


@right("pages-of")
def ordered_keys(first, count, per_page):
    return list(dict.fromkeys(element // per_page for element in range(first, first + count)))


@wrong("sweep-order", says="a generator where a list of 5 is wanted")
def a_generator(step, pages):
    return (page if step % 2 else pages - 1 - page for page in range(pages))


@wrong("sweep-order", says="Every step goes backwards; that is a loop as well. Open")
def always_backwards(step, pages):
    return list(reversed(range(pages)))


@wrong("sweep-order", says="Each step begins one page further and goes round; it should")
def starting_at_the_step(step, pages):
    return [(step + page) % pages for page in range(pages)]


@right("sweep-order")
def of_a_tensor(step, pages):
    order = torch.arange(pages)
    return (order if step % 2 == 1 else order.flip(0)).tolist()


@wrong("evict", says="That is the page of `due` used longest ago; these have to")
def oldest_of_the_due(last_used, due):
    return min((page for page in last_used if page in due), key=last_used.get)


@wrong("evict", says="returned a list; an int is wanted")
def all_by_age(last_used, due):
    return sorted((page for page in last_used if page not in due), key=last_used.get)


@right("evict")
def heaped(last_used, due):
    import heapq

    heap = [(time, page) for page, time in last_used.items()]
    heapq.heapify(heap)
    while heap:
        _, page = heapq.heappop(heap)
        if page not in due:
            return torch.tensor(page)


@wrong("bytes-moved", says="It would be right with `pages - 1` for `pages`")
def one_page_stays_anyway(pages, resident, page_bytes):
    return 2 * max(pages - resident - 1, 0) * page_bytes


@wrong("bytes-moved", says="These are pages; the answer is in bytes.")
def pages_only(pages, resident, page_bytes):
    return 2 * max(pages - resident, 0)


@wrong("bytes-moved", says="If there is room for more pages than there are, nothing")
def absolute(pages, resident, page_bytes):
    return 2 * abs(pages - resident) * page_bytes


@right("bytes-moved")
def sets_of_pages(pages, resident, page_bytes):
    away = set(range(pages)) - set(range(resident))
    return np.uint64(2 * len(away) * page_bytes)


# ---- 05


@wrong("full-training-bytes", says="AdamW keeps two moments for each weight, with four bytes")
def moments_in_sixteen(parameters):
    return parameters * (2 + 2 + 2 + 2)


@wrong("full-training-bytes", says="These are two bytes too many")
def gradients_in_float32(parameters):
    return parameters * (2 + 4 + 4 + 4)


@right("full-training-bytes")
def bits_by_eight(parameters):
    return np.multiply(parameters, (16 + 16 + 32 + 32), dtype=np.int64) // 8


@wrong("qlora-forward", says="The adapter is missing: this is the base alone. Open hint 1.")
def the_base_alone(x, w, a, b, s):
    return x @ w.T


@wrong("qlora-forward", says="It would be right with zeros for `w`, as if it were left")
def the_adapter_alone(x, w, a, b, s):
    return s * (x @ a.T @ b.T)


@wrong("qlora-forward", says="Adapter: this part is what it should be, times `s`. With")
def scale_in_both_halves(x, w, a, b, s):
    return x @ w.T + (s * x @ a.T) @ (s * b.T)


@right("qlora-forward")
def column_by_column(x, w, a, b, s):
    columns = [x @ row + s * (x @ (b_row @ a)) for row, b_row in zip(w, b, strict=True)]
    return torch.stack(columns, dim=-1)


@wrong("qlora-backward", says="dx uses the weight transposed: y = x W^T, so dx = g W. Open")
def through_w_transposed(g, x, w, a, b, s):
    return g @ w.T + s * g @ b @ a, s * (g @ b).T @ x, s * g.T @ (x @ a.T)


@wrong("qlora-backward", says="The factor s is missing in the adapter's share of dx. Open")
def s_missing_in_dx(g, x, w, a, b, s):
    return g @ w + g @ b @ a, s * (g @ b).T @ x, s * g.T @ (x @ a.T)


@wrong("qlora-backward", says="Value 3 of 3 is wrong; the rest is right: all of it is what it should be")
def s_missing_in_db(g, x, w, a, b, s):
    return g @ w + s * g @ b @ a, s * (g @ b).T @ x, g.T @ (x @ a.T)


@wrong("qlora-backward", says="That is the gradient of the whole weight; A's passes")
def the_base_trained(g, x, w, a, b, s):
    return g @ w + s * g @ b @ a, g.T @ x, s * g.T @ (x @ a.T)


@right("qlora-backward")
def row_for_row(g, x, w, a, b, s):
    dx, da, db = torch.zeros_like(x), torch.zeros_like(a), torch.zeros_like(b)
    for gi, xi, out in zip(g, x, dx, strict=True):
        out.copy_(w.T @ gi + s * a.T @ (b.T @ gi))
        da += s * torch.outer(b.T @ gi, xi)
        db += s * torch.outer(gi, a @ xi)
    return [dx, da, db]


@wrong("stored-bytes", says="Only double quantization has an offset. Open hint 2.")
def offset_always(elements, block_size, double_quant):
    blocks = math.ceil(elements / block_size)
    return math.ceil(elements / 2) + (blocks + 4 * math.ceil(blocks / 256) if double_quant else 4 * blocks) + 4


@wrong("stored-bytes", says="A second-level scale has four bytes. Open hint 2.")
def two_level_one_byte(elements, block_size, double_quant):
    blocks = math.ceil(elements / block_size)
    return math.ceil(elements / 2) + (blocks + math.ceil(blocks / 256) + 4 if double_quant else 4 * blocks)


@wrong("stored-bytes", says="Two codes share a byte, and an odd one takes a byte to")
def codes_rounded_down(elements, block_size, double_quant):
    blocks = math.ceil(elements / block_size)
    return elements // 2 + (blocks + 4 * math.ceil(blocks / 256) + 4 if double_quant else 4 * blocks)


@right("stored-bytes")
def by_blocks_of_an_array(elements, block_size, double_quant):
    blocks = torch.arange(0, elements, block_size).numel()
    groups = -(blocks // -256)
    return np.int64(-(elements // -2)) + (blocks + groups * 4 + 4 if double_quant else blocks * 4)


@wrong("qlora-bytes", says="Two bytes are missing for each parameter of the adapters")
def gradients_forgotten(quantized, others, adapters, tokens, hidden, layers):
    return quantized * 4.127 / 8 + 2 * others + adapters * (2 + 8) + 2 * tokens * hidden * layers


@wrong("qlora-bytes", says="Part by part: inputs of the layers 2 times what it should")
def inputs_in_float32(quantized, others, adapters, tokens, hidden, layers):
    return quantized * 4.127 / 8 + 2 * others + adapters * (2 + 2 + 8) + 4 * tokens * hidden * layers


@right("qlora-bytes")
def by_a_dictionary(quantized, others, adapters, tokens, hidden, layers):
    bits = {"weights": quantized * 4.127, "others": others * 16, "adapters": adapters * 96}
    bits["inputs"] = tokens * hidden * layers * 16
    return np.longdouble(sum(bits.values())) / 8


@wrong("fits", says="What exactly fills the card fits: at most, so `<=`.")
def strictly_less(peak, gib, reserve):
    return peak < gib * 2**30 - reserve * 10**9


@wrong("fits", says="returned a float; a bool is wanted")
def how_much_is_left(peak, gib, reserve):
    return gib * 2**30 - reserve * 10**9 - peak


@right("fits")
def a_tensor_of_bool(peak, gib, reserve):
    return torch.tensor(peak, dtype=torch.float64) <= gib * 2**30 - reserve * 10**9


# ---- 06


@wrong("guessing-loss", says="That is the logarithm to base 10; losses are in nats, with")
def to_base_ten(vocabulary):
    return math.log10(vocabulary)


@wrong("guessing-loss", says="All of it is what it should be, times `vocabulary`. With")
def vocabulary_times(vocabulary):
    return -vocabulary * math.log(1 / vocabulary)


@right("guessing-loss")
def entropy(vocabulary):
    p = torch.full((vocabulary,), 1 / vocabulary)
    return torch.distributions.Categorical(probs=p).entropy()


@wrong("build-labels", says="The end of the answer has no label: a model trained like this")
def end_of_turn_unlabelled(input_ids, prompt_lengths, lengths):
    place = torch.arange(input_ids.shape[1])
    return torch.where((place >= prompt_lengths[:, None]) & (place < lengths[:, None] - 1), input_ids, -100)


@wrong("build-labels", says="The first token of the answer has no label: positions count")
def prompt_off_by_one(input_ids, prompt_lengths, lengths):
    place = torch.arange(input_ids.shape[1])
    return torch.where((place > prompt_lengths[:, None]) & (place < lengths[:, None]), input_ids, -100)


@wrong("build-labels", says="That is a mask. The label of a token is the token itself.")
def ones_for_labels(input_ids, prompt_lengths, lengths):
    place = torch.arange(input_ids.shape[1])
    return torch.where((place >= prompt_lengths[:, None]) & (place < lengths[:, None]), 1, -100)


@right("build-labels")
def slices_copied(input_ids, prompt_lengths, lengths):
    labels = torch.full(input_ids.shape, -100, dtype=torch.int64)
    for row, (begin, end) in enumerate(zip(prompt_lengths, lengths, strict=True)):
        labels[row, begin:end] = input_ids[row, begin:end]
    return labels


@wrong("supervised-loss", says="These are bits; nats are wanted, with the natural")
def loss_in_bits(logits, labels):
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    return loss / math.log(2)


@wrong("supervised-loss", says="its shape is (1, 4) instead of ()")
def one_for_each_token(logits, labels):
    return torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")


@wrong("supervised-loss", says="All of it is -1 times what it should be: the sign is")
def negative_loss(logits, labels):
    return -torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:])


@right("supervised-loss")
def by_nll(logits, labels):
    chances = torch.log_softmax(logits.double(), dim=-1)[:, :-1].transpose(1, 2)
    return torch.nn.functional.nll_loss(chances, labels[:, 1:], ignore_index=-100).float()


@wrong("accumulate", says="Only the last part is left: each one has to be added to")
def last_part_only_counted(gradients, tokens):
    total = torch.zeros_like(gradients[0])
    for gradient, count in zip(gradients, tokens, strict=True):
        total = gradient * count
    return total / sum(tokens)


@wrong("accumulate", says="Divide by the tokens of all parts together, not of the")
def by_the_most_tokens(gradients, tokens):
    return sum(g * t for g, t in zip(gradients, tokens, strict=True)) / max(tokens)


@right("accumulate")
def by_einsum_of_weights(gradients, tokens):
    return torch.einsum("k,k...->...", torch.tensor(tokens) / sum(tokens), torch.stack(gradients))


@wrong("learning-rate", says="After the warm-up the rate stays at the peak; it should")
def warm_up_never_ends(step, steps, peak, warmup):
    return peak * min(1, step / warmup)


@wrong("learning-rate", says="It falls by a tenth, to 0.9 of the peak; it should fall to")
def falls_by_a_tenth(step, steps, peak, warmup):
    if step <= warmup:
        return peak * step / warmup
    return peak * (0.9 + 0.1 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))))


@wrong("learning-rate", says="All of it is what it should be, divided by `peak`")
def a_peak_of_one(step, steps, peak, warmup):
    if step <= warmup:
        return step / warmup
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


@right("learning-rate")
def single_precision(step, steps, peak, warmup):
    peak = np.float32(peak)
    if step <= warmup:
        return peak * np.float32(step / warmup)
    return peak * (np.float32(0.55) + np.float32(0.45) * np.cos(np.float32(np.pi * (step - warmup) / (steps - warmup))))


@wrong("calls-match", says="An answer with further arguments passes. Names, arguments")
def extra_arguments_allowed(said, wanted):
    if said is None or len(said) != len(wanted):
        return False
    for one, other in zip(said, wanted, strict=True):
        if one["name"] != other["name"]:
            return False
        for key, value in other["arguments"].items():
            given = one["arguments"].get(key)
            if given != value or isinstance(given, bool) != isinstance(value, bool):
                return False
    return True


@wrong("calls-match", says="An answer with a call too few or too many passes: `zip`")
def only_as_far_as_both_go(said, wanted):
    if said is None:
        return False
    for one, other in zip(said, wanted, strict=False):
        if one["name"] != other["name"] or one["arguments"].keys() != other["arguments"].keys():
            return False
        for key, value in other["arguments"].items():
            given = one["arguments"][key]
            if given != value or isinstance(given, bool) != isinstance(value, bool):
                return False
    return True


@right("calls-match")
def by_recursion(said, wanted):
    def same(one, other):
        if isinstance(one, dict) and isinstance(other, dict):
            return set(one) == set(other) and all(same(one[key], other[key]) for key in one)
        if isinstance(one, list) and isinstance(other, list):
            return len(one) == len(other) and all(itertools.starmap(same, zip(one, other, strict=True)))
        return (type(one) is bool) == (type(other) is bool) and one == other

    return same(said, wanted)


# ---- 07


@wrong("seed-interval", says="That uses 1.96, which is right for many runs. Three runs")
def not_student(results, t):
    half = 1.96 * statistics.stdev(results) / math.sqrt(len(results))
    return statistics.mean(results) - half, statistics.mean(results) + half


@wrong("seed-interval", says="The root is of n, not of n - 1. (It is the variance that is")
def root_of_n_less_one(results, t):
    half = t * statistics.stdev(results) / math.sqrt(len(results) - 1)
    return statistics.mean(results) - half, statistics.mean(results) + half


@wrong("seed-interval", says="These are the smallest and the largest result; the interval")
def smallest_and_largest(results, t):
    return min(results), max(results)


@right("seed-interval")
def by_hand(results, t):
    n = len(results)
    mean = math.fsum(results) / n
    half = np.float32(t * math.sqrt(sum((x - mean) ** 2 for x in results) / (n - 1) / n))
    return [np.float32(mean) - half, np.float32(mean) + half]


@wrong("paired", says="a float where a list of 3 is wanted")
def a_mean_difference(ours, theirs):
    seeds = ours.keys() & theirs.keys()
    return sum(ours[seed] - theirs[seed] for seed in seeds) / len(seeds)


@wrong("paired", says="returned a tuple; a float is wanted")
def pairs_of_results(ours, theirs):
    return [(ours[seed], theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]


@wrong("paired", says="a generator where a list of 3 is wanted")
def a_lazy_list(ours, theirs):
    return (ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys()))


@right("paired")
def differences_as_tensors(ours, theirs):
    return [torch.tensor(ours[seed]) - torch.tensor(theirs[seed]) for seed in sorted(ours) if seed in theirs]


@wrong("smallest-rank", says="returned a tuple; an int is wanted")
def its_interval(differences):
    return min((rank, interval) for rank, interval in differences.items() if interval[0] <= 0)[1]


@wrong("smallest-rank", says="That is the rank of the best mean. The question is which")
def narrowest(differences):
    return min(differences, key=lambda rank: differences[rank][1] - differences[rank][0])


@wrong("smallest-rank", says="returned a list; an int is wanted")
def all_that_qualify(differences):
    return sorted(rank for rank, (low, high) in differences.items() if low <= 0)


@right("smallest-rank")
def worse_ones_taken_away(differences):
    worse = {rank for rank, (low, _) in differences.items() if low > 0}
    return np.min(list(set(differences) - worse))


@wrong("not-dominated", says="A higher loss counts as better here; less is better, of")
def more_loss_is_better(conditions):
    return sorted(
        name
        for name, (size, loss) in conditions.items()
        if not any(s <= size and x >= loss and (s, x) != (size, loss) for s, x in conditions.values())
    )


@wrong("not-dominated", says="returned a tuple; a str is wanted")
def points_kept(conditions):
    return sorted(
        point
        for point in conditions.values()
        if not any(s <= point[0] and x <= point[1] and (s, x) != point for s, x in conditions.values())
    )


@wrong("not-dominated", says="a set where a list of 6 is wanted")
def a_set_of_names(conditions):
    return {
        name
        for name, (size, loss) in conditions.items()
        if not any(s <= size and x <= loss and (s, x) != (size, loss) for s, x in conditions.values())
    }


@right("not-dominated")
def crossed_out(conditions):
    left = dict(conditions)
    for one, other in itertools.permutations(conditions, 2):
        (s, x), (size, loss) = conditions[one], conditions[other]
        if s <= size and x <= loss and (s < size or x < loss):
            left.pop(other, None)
    return sorted(np.array(list(left)))


@wrong("tokens-for-share", says="A whole number is wanted: it has to be rounded up. With")
def not_a_whole_number(decoding, fixed, per_token, share):
    return max(1, (decoding / share - fixed) / per_token)


@wrong("tokens-for-share", says="The share is of the whole step, in which `fixed` has the")
def share_of_the_rest(decoding, fixed, per_token, share):
    return max(1, math.ceil((decoding / share - (fixed - decoding)) / per_token))


@right("tokens-for-share")
def with_fractions(decoding, fixed, per_token, share):
    exact = (Fraction(decoding) / Fraction(share) - Fraction(fixed)) / Fraction(per_token)
    return np.int64(max(1, math.ceil(exact)))


# ---- 08


def cut(whole, processes):
    """The parts that processes keep: answers to combine-gradients, which asked for the whole, cut."""
    rows = -(-len(whole) // processes)
    return [whole[k * rows : (k + 1) * rows] for k in range(processes)]


@wrong("reduce-scatter", says="It is divided by the tokens of all, and by the number of")
def divided_by_their_number_too(gradients, tokens):
    total = sum(tokens)
    return cut(sum(g * (t / total) for g, t in zip(gradients, tokens, strict=True)) / len(gradients), len(tokens))


@wrong("reduce-scatter", says="Each gradient is weighted by its tokens, but nothing is")
def weights_not_normalized(gradients, tokens):
    return cut(sum(g * t for g, t in zip(gradients, tokens, strict=True)), len(tokens))


@right("reduce-scatter")
def weighted_by_broadcasting(gradients, tokens):
    stacked = torch.stack(gradients, dim=-1)
    return cut((stacked * torch.tensor(tokens)).sum(-1) / torch.tensor(tokens).sum(), len(tokens))


@wrong("part-of", says="It would be right with `process + 1` for `process`. With")
def one_part_ahead(tensor, process, processes):
    size = -(-len(tensor) // processes)
    return tensor[(process + 1) * size : (process + 2) * size]


@wrong("part-of", says="The last part is filled up with zeros. That is done for the")
def filled_with_zeros(tensor, process, processes):
    size = -(-len(tensor) // processes)
    part = torch.zeros(size, *tensor.shape[1:], dtype=tensor.dtype)
    rows = tensor[process * size : (process + 1) * size]
    part[: len(rows)] = rows
    return part


@right("part-of")
def narrowed(tensor, process, processes):
    rows = len(tensor)
    size = (rows + processes - 1) // processes
    begin = min(process * size, rows)
    return tensor.narrow(0, begin, min(size, rows - begin))


@wrong("bytes-on-the-wire", says="One n-th is what a process has already; what reaches it is")
def its_own_share(blocks, gradients, processes):
    return (2 * blocks + gradients) / processes


@wrong("bytes-on-the-wire", says="Blocks are gathered twice, for the forward and for the")
def three_gathers(blocks, gradients, processes):
    return (3 * blocks + gradients) * (processes - 1) / processes


@right("bytes-on-the-wire")
def less_ones_own(blocks, gradients, processes):
    return torch.tensor(2.0 * blocks + gradients) - torch.tensor((2.0 * blocks + gradients) / processes)


@wrong("gpu-bytes", says="Two blocks are whole at a time: the one that computes, and")
def a_single_block(sharded, block, own, gpus):
    return sharded / gpus + block + own if gpus > 1 else sharded + own


@wrong("gpu-bytes", says="What is gathered is missing: two blocks are whole while")
def nothing_gathered(sharded, block, own, gpus):
    return sharded / gpus + own


@right("gpu-bytes")
def bill_by_cases(sharded, block, own, gpus):
    bill = np.float64(own) + sharded / np.float64(gpus)
    if gpus > 1:
        bill += block
        bill += block
    return bill


@wrong("smallest-node", says="Each GPU's own activations take room on every card:")
def own_on_one_card_only(sharded, gathered, own, card):
    if sharded + own <= card:
        return 1
    room = card - gathered
    return max(2, math.ceil(sharded / room)) if room > 0 else None


@wrong("smallest-node", says="That is one card more than needed, at least where the")
def one_more_than_needed(sharded, gathered, own, card):
    if sharded + own <= card:
        return 1
    room = card - own - gathered
    return max(2, math.ceil(sharded / room)) + 1 if room > 0 else None


@right("smallest-node")
def counted_up(sharded, gathered, own, card):
    if own + sharded <= card:
        return np.int32(1)
    if gathered + own >= card:
        return
    return next(n for n in itertools.count(2) if Fraction(sharded, n) + gathered + own <= card)


@wrong("read-plan")
def balanced(rows, before, after, process):
    begin, end = process * rows // after, (process + 1) * rows // after
    plan = []
    for file in range(before):
        first, last = file * rows // before, (file + 1) * rows // before
        if max(begin, first) < min(end, last):
            plan.append((file, max(begin, first) - first, min(end, last) - first))
    return plan


@wrong("read-plan", says="The last number is the row after the last one; you give how")
def lengths_instead_of_ends(rows, before, after, process):
    size, mine = -(-rows // before), -(-rows // after)
    plan = []
    for file in range(before):
        low = max(process * mine, file * size)
        high = min((process + 1) * mine, (file + 1) * size, rows)
        if low < high:
            plan.append((file, low - file * size, high - low))
    return plan


@right("read-plan")
def walked(rows, before, after, process):
    size, mine = math.ceil(rows / before), math.ceil(rows / after)
    row, end, plan = process * mine, min((process + 1) * mine, rows), []
    while row < end:
        file, place = divmod(row, size)
        take = min(size - place, end - row)
        plan.append((np.int64(file), place, place + take))
        row += take
    return plan
