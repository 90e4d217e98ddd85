"""Exercises of notebook 02 about sizes: bits per weight, and the bytes of a model."""

import math

import torch

from qlora_lab.checks.exercise import Exercise, Misconception
from qlora_lab.quantization.tensor import quantize


def _number(generator: torch.Generator, low: int, high: int) -> int:
    return torch.randint(low, high, (), generator=generator).item()


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


def _shapes(generator: torch.Generator, number: int):
    """From the second case on one has whole groups of 256 blocks, and one a broken block of odd size."""
    size = (64, 32, 128)[number % 3]
    shapes = [(_number(generator, 1, 90), _number(generator, 1, 700)) for _ in range(2 + number)]
    return shapes + [(256, size * (1 + number % 2)), (3, 21)] * (number > 0), size


EXERCISES = (
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
