"""Exercises of notebook 02, second half: scales in 8 bits, what they decode to, and what it all costs."""

import math

import torch

from qlora_lab.checks.exercise import Exercise, Misconception
from qlora_lab.datatypes import dynamic_map
from qlora_lab.quantization import quantize

SCALE_LEVELS = torch.tensor(dynamic_map(), dtype=torch.float32)
THRESHOLDS = (SCALE_LEVELS[1:] + SCALE_LEVELS[:-1]) / 2


def _number(generator: torch.Generator, low: int, high: int) -> int:
    return torch.randint(low, high, (), generator=generator).item()


def _randn(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator)


def double_quantize(scales, levels):
    offset = scales.mean()
    blocks = torch.nn.functional.pad(scales - offset, (0, -len(scales) % 256)).view(-1, 256)
    absmax = blocks.abs().amax(1)
    x = blocks / absmax.clamp(min=1e-38)[:, None]
    codes = torch.bucketize(x, (levels[1:] + levels[:-1]) / 2)
    return codes.view(-1)[: len(scales)].to(torch.uint8), absmax, offset


def flipped_blocks(codes, absmax, offset, levels):
    scales = levels[codes.int()] * absmax.repeat_interleave(256)[: len(codes)] + offset
    return scales, (scales < 0).nonzero().flatten()


def double_quantized_bits(block_size: int, scale_block: int) -> float:
    return 4 + 8 / block_size + 32 / (block_size * scale_block)


def model_bytes(shapes: list, block_size: int) -> int:
    """Measured, not computed: the tensors are really quantized, and what they store is counted."""
    return sum(quantize(torch.zeros(shape), "nf4", block_size, double_quant=True).nbytes for shape in shapes)


def _rounded_up(n: int, size: int = 256) -> int:
    return -(-n // size)


def _model_bytes(
    shapes, block_size, offset=4, second=4, first=1, together=False, in_blocks=_rounded_up, groups=_rounded_up
) -> int:
    counts = [math.prod(shape) for shape in shapes]
    total = 0
    for n in [sum(counts)] if together else counts:
        blocks = in_blocks(n, block_size)
        total += math.ceil(n / 2) + first * blocks + second * groups(blocks) + offset
    return total


def _scales(generator: torch.Generator, number: int):
    """Scales none of which lies so close to a threshold that the order of operations would decide its code."""
    n = (256, 40, 300, 512, 700, 1, 257, 600)[number]
    while True:
        scales = _randn(generator, n).abs() + 2.0 + number
        if n > 300:
            scales[256:] *= 3
        if n == 1:
            return scales, SCALE_LEVELS.clone()
        centred = torch.nn.functional.pad(scales - scales.mean(), (0, -n % 256)).view(-1, 256)
        absmax = centred.abs().amax(1, keepdim=True)
        x = (centred / absmax).view(-1)[:n]
        if (absmax > 1e-3).all() and (x[:, None] - THRESHOLDS).abs().amin() > 1e-6:
            return scales, SCALE_LEVELS.clone()


def _stored_scales(generator: torch.Generator, number: int):
    n = (300, 256, 40, 512, 700, 257, 30, 600)[number]
    codes = torch.randint(0, 256, (n,), generator=generator, dtype=torch.uint8)
    codes[number], codes[-1] = 0, 255
    absmax = 2.0 + _randn(generator, -(-n // 256)).abs()
    zero = int(torch.bucketize(-0.5 - number / 20, THRESHOLDS))  # decodes to exactly 0, which is not below zero
    codes[10 + number], absmax[0] = zero, 2.0
    return codes, absmax, -2 * SCALE_LEVELS[zero], SCALE_LEVELS.clone()


def _shapes(generator: torch.Generator, number: int):
    """From the second case on one has whole groups of 256 blocks, and one a broken block of odd size."""
    size = (64, 32, 128)[number % 3]
    shapes = [(_number(generator, 1, 90), _number(generator, 1, 700)) for _ in range(2 + number)]
    return shapes + [(256, size * (1 + number % 2)), (3, 21)] * (number > 0), size


def _decoded(scales):
    return scales, (scales < 0).nonzero().flatten()


def _normalized(s):
    blocks = torch.nn.functional.pad(s - s.mean(), (0, -len(s) % 256)).view(-1, 256)
    return (blocks / blocks.abs().amax(1).clamp(min=1e-38)[:, None]).view(-1)[: len(s)]


def _encoded(blocks, count, levels):
    absmax = blocks.abs().amax(1)
    x = blocks / absmax.clamp(min=1e-38)[:, None]
    codes = torch.bucketize(x, (levels[1:] + levels[:-1]) / 2).view(-1)[:count]
    return codes.to(torch.uint8), absmax


def _without_mean(s, levels, offset):
    return *_encoded(torch.nn.functional.pad(s, (0, -len(s) % 256)).view(-1, 256), len(s), levels), offset


def _in_one_block(s, levels):
    return *_encoded((s - s.mean())[None], len(s), levels), s.mean()


def _own_means(s, levels):
    parts = [part - part.mean() for part in s.split(256)]
    coded = [_encoded(part[None], len(part), levels) for part in parts]
    means = torch.stack([part.mean() for part in s.split(256)])
    return torch.cat([codes for codes, _ in coded]), torch.cat([absmax for _, absmax in coded]), means


EXERCISES = (
    Exercise(
        "double-quantize",
        _scales,
        double_quantize,
        (
            Misconception(
                "The mean is returned but was not subtracted first: scales are all positive, so half of the 256 codes "
                "would never occur. Open hint 1.",
                lambda s, levels: _without_mean(s, levels, s.mean()),
            ),
            Misconception(
                "There is no offset: subtract the mean before anything else, and return it. Open hint 1.",
                lambda s, levels: _without_mean(s, levels, torch.zeros(())),
            ),
            Misconception(
                "One absmax for all scales; each 256 of them have their own. Open hint 2.",
                lambda s, levels: _in_one_block(s, levels),
            ),
            Misconception(
                "Each block has a mean of its own here; the offset is one number for the whole tensor. Open hint 1.",
                lambda s, levels: _own_means(s, levels),
            ),
            Misconception(
                "You count the levels below a value; the nearest level is found by counting the midpoints below it. "
                "Open hint 3.",
                lambda s, levels: (
                    torch.bucketize(_normalized(s), levels).clamp(max=255).to(torch.uint8),
                    *double_quantize(s, levels)[1:],
                ),
            ),
            Misconception(
                "These are 255 equal steps; the code is that of the nearest of the given levels. Open hint 3.",
                lambda s, levels: (
                    ((_normalized(s) + 1) * 127.5).round().to(torch.uint8),
                    *double_quantize(s, levels)[1:],
                ),
            ),
        ),
        tolerance=1e-5,
    ),
    Exercise(
        "flipped-blocks",
        _stored_scales,
        flipped_blocks,
        (
            Misconception(
                "The offset is missing, so about half of the scales seem negative. Open hint 1.",
                lambda c, a, o, levels: flipped_blocks(c, a, 0 * o, levels),
            ),
            Misconception(
                "The offset was multiplied with absmax too; it is added last. Open hint 1.",
                lambda c, a, o, levels: _decoded(
                    (levels[c.int()] + o) * a.repeat_interleave(256)[: len(c)],
                ),
            ),
            Misconception(
                "The second-level scales are dealt out in turn; the first 256 scales share the first. Open hint 2.",
                lambda c, a, o, levels: _decoded(levels[c.int()] * a.repeat(256)[: len(c)] + o),
            ),
            Misconception(
                "The codes are taken as equal steps, (code - 128) / 127; look them up in `levels`. Open hint 1.",
                lambda c, a, o, levels: _decoded((c.float() - 128) / 127 * a.repeat_interleave(256)[: len(c)] + o),
            ),
            Misconception(
                "The scales are right, but a mask came back; the places are wanted. Open hint 3.",
                lambda c, a, o, levels: (flipped_blocks(c, a, o, levels)[0], flipped_blocks(c, a, o, levels)[0] < 0),
            ),
            Misconception(
                "A scale of exactly zero is not below it: `<`, not `<=`. Open hint 3.",
                lambda c, a, o, levels: (
                    flipped_blocks(c, a, o, levels)[0],
                    (flipped_blocks(c, a, o, levels)[0] <= 0).nonzero().flatten(),
                ),
            ),
            Misconception(
                "The scales are right, but these are the blocks whose *level* is negative; the offset lifts most of "
                "them above zero. Open hint 3.",
                lambda c, a, o, levels: (
                    flipped_blocks(c, a, o, levels)[0],
                    (levels[c.int()] < 0).nonzero().flatten(),
                ),
            ),
        ),
        tolerance=1e-6,
    ),
    Exercise(
        "double-quantized-bits",
        lambda generator, number: (2 ** _number(generator, 4, 13), 2 ** _number(generator, 5, 11)),
        double_quantized_bits,
        (
            Misconception(
                "That is without double quantization: a scale takes 8 bits now, not 32. Open hint 1.",
                lambda b, c: 4 + 32 / b,
            ),
            Misconception(
                "The scales of the scales are missing: 32 bits for each `scale_block` scales. Open hint 2.",
                lambda b, c: 4 + 8 / b,
            ),
            Misconception(
                "A second-level scale serves `scale_block` *scales*, and each of these serves `block_size` weights: "
                "divide by both. Open hint 2.",
                lambda b, c: 4 + 8 / b + 32 / c,
            ),
            Misconception(
                "These are bytes; bits are asked for. Open hint 1.", lambda b, c: double_quantized_bits(b, c) / 8
            ),
            Misconception(
                "The four bits of the code itself are missing: this is the price of the scales alone. Open hint 1.",
                lambda b, c: double_quantized_bits(b, c) - 4,
            ),
        ),
        tolerance=1e-9,
    ),
    Exercise(
        "model-bytes",
        _shapes,
        model_bytes,
        (
            Misconception(
                "You rounded once, for all tensors together. Each is stored alone: round up for each, and count an "
                "offset for each. Open hint 1.",
                lambda shapes, size: _model_bytes(shapes, size, together=True),
            ),
            Misconception(
                "The offset, four bytes for each tensor, is missing. Open hint 2.",
                lambda shapes, size: _model_bytes(shapes, size, offset=0),
            ),
            Misconception(
                "The second-level scales, four bytes for each 256 scales or part of 256, are missing. Open hint 2.",
                lambda shapes, size: _model_bytes(shapes, size, second=0),
            ),
            Misconception(
                "The second-level scales are rounded down: 256 scales or a part of 256 share one. Open hint 1.",
                lambda shapes, size: _model_bytes(shapes, size, groups=lambda blocks: blocks // 256),
            ),
            Misconception(
                "`n // 256 + 1` is one too many where 256 divides the number of scales; -(-n // 256) rounds up. "
                "Open hint 1.",
                lambda shapes, size: _model_bytes(shapes, size, groups=lambda blocks: blocks // 256 + 1),
            ),
            Misconception(
                "There is a second-level scale for each 256 scales, not one for each tensor. Open hint 2.",
                lambda shapes, size: _model_bytes(shapes, size, groups=lambda blocks: 1),
            ),
            Misconception(
                "A last block that is shorter needs a scale as well: round the number of blocks up. Open hint 1.",
                lambda shapes, size: _model_bytes(shapes, size, in_blocks=lambda n, size: n // size),
            ),
            Misconception(
                "An odd code takes a byte to itself: round the bytes of the codes up. Open hint 1.",
                lambda shapes, size: _model_bytes(shapes, size) - sum(rows * columns % 2 for rows, columns in shapes),
            ),
            Misconception(
                "Each scale is counted with four bytes; under double quantization it takes one. Open hint 2.",
                lambda shapes, size: _model_bytes(shapes, size, first=4),
            ),
            Misconception(
                "That is without double quantization: scales in 32 bits and nothing else. Open hint 2.",
                lambda shapes, size: _model_bytes(shapes, size, offset=0, second=0, first=4),
            ),
            Misconception(
                "These are the formula's bits per weight times the weights. It holds for whole blocks only; to the "
                "byte, each part is rounded up. Open hint 1.",
                lambda shapes, size: int(sum(map(math.prod, shapes)) * double_quantized_bits(size, 256) / 8),
            ),
        ),
    ),
)
